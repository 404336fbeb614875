import itertools

from hypothesis import given
from hypothesis import strategies as st

from bidi.data.families import families, letters

# Long enough for several runs of five words, of few words, so that they resemble now and then.
TEXTS = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.lists(st.sampled_from(["the", "cat", "sits"]), min_size=3, max_size=9).map(" ".join),
    ),
    max_size=9,
)


def similarity(one, two):
    runs = [set(zip(*(t.split()[i:] for i in range(5)), strict=False)) for t in (one, two)]
    # A text of fewer words is one run.
    runs = [r or {tuple(t.split())} for r, t in zip(runs, (one, two), strict=True)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def by_all_pairs(owners, texts):
    names = list(owners)
    related = [
        (i, j)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if owners[i] == owners[j] or similarity(texts[i], texts[j]) >= 0.5
    ]
    for _ in texts:
        for i, j in related:
            names[i] = names[j] = min(names[i], names[j])
    return names


@given(TEXTS)
def test_all_pairs_that_resemble_are_found(examples):
    owners, texts = ([example[side] for example in examples] for side in (0, 1))
    assert families(owners, texts) == by_all_pairs(owners, texts)


def test_half_is_enough_and_less_is_not():
    # Runs of `common` and two words more: 4 + 2, so that 4 of 8 are shared; then 3 of 9.
    common = "one two three four five six seven eight"
    assert families(["a", "b"], [f"{common} x y", f"{common} z q"]) == ["a", "a"]
    less = common.removesuffix(" eight")
    assert families(["a", "b"], [f"{less} x y z", f"{less} p q r"]) == ["a", "b"]


def test_owners_and_chains():
    a, b = "one two three four five six", "six seven eight nine ten eleven"
    assert families(["z", "y", "z", "x"], [a, a, b, b]) == ["x"] * 4
    assert families(["z", "y"], [a, b]) == ["z", "y"]
    assert families([], []) == []


def test_only_letters_count():
    assert letters("Größe: 3 MiB, GCC-12!") == "gr e mib gcc"
    assert families(["b", "a"], ["Files of GCC 11 (x86), a", "files of gcc 12 x a"]) == ["a", "a"]
