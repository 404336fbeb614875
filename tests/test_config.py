import dataclasses
import math
from typing import Literal

import gin
import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bidi import config
from bidi.config_differences import Difference, differences
from bidi.errors import ConfigError


@gin.configurable("TestVocabulary")
@dataclasses.dataclass(frozen=True)
class Vocabulary:
    kind: Literal["unigram", "char"] = "unigram"
    size: int = 8000
    coverage: float = 1.0


@gin.configurable("TestFiles")
@dataclasses.dataclass(frozen=True)
class Files:
    paths: dict[str, str | list[str]] = gin.REQUIRED
    splits: dict[str, str] = dataclasses.field(default_factory=lambda: {"train": "train[:90%]"})


@gin.configurable("TestTable")
@dataclasses.dataclass(frozen=True)
class Table:
    name: str = gin.REQUIRED


@gin.configurable("TestData")
@dataclasses.dataclass(frozen=True)
class Data:
    source: Files | Table = gin.REQUIRED
    vocabulary: Vocabulary = dataclasses.field(default_factory=Vocabulary)
    target_vocabulary: Vocabulary | None = None
    names: list[str] = dataclasses.field(default_factory=list)


@gin.configurable("TestTraining")
@dataclasses.dataclass(frozen=True)
class Training:
    steps: int = 100
    rate: float = 0.1
    limit: float = math.inf
    keep: bool = True
    shape: tuple[int, ...] = (1, 2)
    note: str | None = None
    vocabularies: tuple[Vocabulary, ...] = ()

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, but it is {self.steps}")


@dataclasses.dataclass(frozen=True)
class Experiment:
    data: Data
    training: Training


def build():
    return Experiment(data=Data(), training=Training())


SOURCE = "TestData.source = @TestTable()\nTestTable.name = 'words'\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="a.gin"):
        (tmp_path / name).write_text(text)
        return name

    return write


def load(*bindings, files=()):
    return load_with_settings(*bindings, files=files)[0]


def load_with_settings(*bindings, files=()):
    return config.load(build, files, [*SOURCE.splitlines(), *bindings])


def error(*bindings, files=()):
    with pytest.raises(ConfigError) as caught:
        load(*bindings, files=files)
    assert not gin.config._CONFIG  # A failure leaves nothing behind.
    return str(caught.value)


def test_values_macros_scopes_and_overrides(write):
    base = write("STEPS = 5\nTestTraining.steps = %STEPS\nTestTraining.rate = 1\n", "base.gin")
    top = write(
        "include 'base.gin'\n"
        "STEPS = 7\n"
        "TestTraining:\n  shape = (3,)\n"
        "TestData.vocabulary = @source/TestVocabulary()\n"
        "source/TestVocabulary.kind = 'char'\n"
        "TestVocabulary.size = 30\n"
    )
    for files in ([top], [base, top]):
        result = load("TestTraining.note = 'x'", files=files)
        assert result.training == Training(steps=7, rate=1, shape=(3,), note="x")
        assert result.data == Data(Table("words"), Vocabulary("char", 30))


def test_configs_made_after_load_see_defaults_only():
    result = load("TestTraining.steps = 7")
    assert result.training.steps == 7
    assert Training().steps == 100
    assert dataclasses.replace(result.training, rate=0.5).steps == 7


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("TestTrainig.steps = 1", ["no config is named 'TestTrainig'", "'TestTraining'?"]),
        ("TestTraining.stpes = 1", ["no parameter 'stpes'", "'steps'?"]),
        ("testtraining.steps = 1", ["'TestTraining'?"]),
        ("TestTraining.zzz = 1", ["There are: keep, limit, note, rate"]),
        ("TestData.vocabulary = @TestVocabluary()", ["'TestVocabluary'", "'TestVocabulary'?"]),
        ("gin.macro.value = 1", ["no config is named 'gin.macro'"]),
        ("TestTraining.steps = %STEPS", ["no macro %STEPS is defined", "There are: none"]),
        ("A = %B\nB = %A\nTestTraining.steps = %A", ["%A is defined by itself"]),
        ("TestTraining.steps = %gin.REQUIRED", ["--gin.TestTraining.steps=..."]),
        ("N = %gin.REQUIRED\nTestTraining.steps = %N", ["--gin.N=..."]),
        ("TestTraining.steps = 'many'", ["must be int"]),
        ("TestTraining.steps = 1.5", ["must be int"]),
        ("TestTraining.steps = 1e6", ["must be int: write 1000000"]),
        ("TestTraining.steps = True", ["must be int"]),
        ("TestTraining.rate = False", ["must be float"]),
        ("TestTraining.rate = '0.1'", ["must be float"]),
        ("TestTraining.keep = 1", ["must be bool"]),
        ("TestTraining.note = 3", ["must be str | None: write '3'"]),
        ("TestTraining.shape = [1, 2]", ["tuple[int, ...]: write (1, 2)"]),
        ("TestTraining.shape = (1)", ["tuple[int, ...]: write (1,)"]),
        ("TestTraining.shape = (1, 2, 'x')", ["item 2", "int"]),
        ("TestTraining.shape = (1, True)", ["item 1"]),
        ("TestTraining.vocabularies = (@TestVocabulary(), @TestTable())", ["item 1"]),
        ("TestData.names = ('a', 'b')", ["list[str]: write ['a', 'b']"]),
        ("TestData.names = ['a', 2]", ["item 1"]),
        ("TestFiles.paths = {'test': ['a', 1]}", ["'test'", "str"]),
        ("TestVocabulary.kind = 'chr'", ["Literal['unigram', 'char']", "'char'?"]),
        ("TestData.vocabulary = @TestTable()", ["Vocabulary"]),
        ("TestData.vocabulary = @TestVocabulary", ["write () after the reference"]),
        ("N = 'x'\nTestTraining.steps = %N", ["TestTraining.steps = %N: must be int"]),
        ("TestTraining.steps = 1 2", ["Expected newline"]),
        ("TestTraining.steps = many", ["token 'many': a string needs quotes"]),
        ("import no_such_module", ["import no_such_module", "No module named"]),
        ("include 'none.gin'", ["none.gin (included by a.gin) cannot be read"]),
        ("include 'a.gin'", ["a.gin includes itself: a.gin -> a.gin"]),
    ],
)
def test_a_fault_in_a_file_is_refused_with_its_line(write, line, parts):
    message = error(files=[write(f"# a comment\nTestTraining.keep = True\n{line}\n")])
    assert all(part in message for part in parts), message
    if not line.startswith("include"):
        assert f"a.gin:{3 + line.count(chr(10))}: " in message, message


@pytest.mark.parametrize("text", ["TestTraining.shape = (1,\n", "TestTraining.note = 'x\n"])
def test_open_brackets_and_quotes(write, text):
    assert "a.gin:" in error(files=[write(text)])


def test_all_wrong_types_are_told_at_once(write):
    message = error("TestTraining.keep = 3", files=[write("TestTraining.steps = 'x'\n")])
    assert "a.gin:1" in message
    assert "--gin.TestTraining.keep: " in message


@pytest.mark.parametrize(
    ("bindings", "parts"),
    [
        (["TestFiles.paths = {}"], ["nothing uses it", "no TestFiles is built"]),
        (["x/TestVocabulary.size = 1"], ["nothing uses it: only TestVocabulary is built"]),
        (
            [
                "TestVocabulary.size = 1",
                "TestData.vocabulary = @x/TestVocabulary()",
                "x/TestVocabulary.size = 2",
            ],
            ["size = 1: nothing uses it: x/TestVocabulary.size takes its place"],
        ),
        (["STEPS = 1"], ["nothing uses it: no value is %STEPS"]),
        (["STEPS = 1", "STEP = 1", "TestTraining.steps = %STEP"], ["%STEPS", "mean 'STEP'?"]),
    ],
)
def test_what_nothing_uses_is_refused(bindings, parts):
    message = error(*bindings)
    assert all(part in message for part in parts), message
    assert f"--gin.{bindings[0].partition(' ')[0]}: " in message


def test_a_binding_that_the_program_overrides_is_refused():
    with pytest.raises(ConfigError, match="the program sets this value itself"):
        config.load(lambda: Training(steps=3), [], ["TestTraining.steps = 4"])


def test_an_outer_scope_counts_as_used_by_an_inner_one():
    bindings = ["TestData.vocabulary = @a/b/TestVocabulary()", "a/TestVocabulary.size = 3"]
    assert load(*bindings, "TestVocabulary.coverage = 0.5").data.vocabulary == Vocabulary(
        size=3, coverage=0.5
    )


def test_missing_required_values():
    with pytest.raises(ConfigError, match=r"no value for TestData\.source.*--gin\.TestData"):
        config.load(build, [], [])
    with pytest.raises(ConfigError, match=r"no value for TestTable\.name"):
        config.load(build, [], ["TestData.source = @TestTable()"])


def test_a_config_that_refuses_its_values_is_told_with_their_origin(write):
    message = error(files=[write("TestTraining.steps = -1\n")])
    assert message.splitlines() == [
        "TestTraining: steps must not be negative, but it is -1",
        "  a.gin:1: TestTraining.steps = -1",
    ]


def test_other_errors_of_the_program_pass():
    with pytest.raises(RuntimeError, match="not ours"):
        config.load(lambda: (_ for _ in ()).throw(RuntimeError("not ours")), [], [])


def test_unreadable_files(write, tmp_path):
    assert "none.gin (given by --gin_file) cannot be read" in error(files=["none.gin"])
    (tmp_path / "bad.gin").write_bytes(b"A = '\xff'\n")
    assert "bad.gin (given by --gin_file) cannot be read" in error(files=["bad.gin"])


def test_gin_arguments():
    argv = "train --gin.Model.ways=l2r --workdir=w --gin.N -3 --gin.Data.directory=a/b --gin.Q=1/2"
    argv += " --gin.X=(1,2) --gin.a/X.r=1e-3 --gin.Y=@Foo() --gin.Z='1' --gin.M=%LR --gin.P=None"
    rest, bindings = config.gin_arguments([*argv.split(), "--", "--gin.left=alone"])
    assert rest == ["train", "--workdir=w", "--", "--gin.left=alone"]
    assert bindings == [
        "Model.ways = 'l2r'",
        "N = -3",
        "Data.directory = 'a/b'",
        "Q = '1/2'",
        "X = (1,2)",
        "a/X.r = 1e-3",
        "Y = @Foo()",
        "Z = '1'",
        "M = %LR",
        "P = None",
    ]


@pytest.mark.parametrize("argv", [["--gin.X"], ["--gin.X="], ["--gin.X", "--y=1"], ["--gin.=1"]])
def test_gin_arguments_without_name_or_value(argv):
    with pytest.raises(ConfigError, match=r"write --gin\.NAME=value"):
        config.gin_arguments(argv)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1))
def test_no_word_of_a_command_line_becomes_a_second_statement(word):
    try:
        _, bindings = config.gin_arguments([f"--gin.TestTraining.note={word}"])
        result = load(*bindings)
    except ConfigError:
        return
    assert result.training in (Training(note=result.training.note), Training())
    if word.strip().isalpha() and word.strip() not in ("None", "True", "False"):
        assert result.training.note == word.strip()


def test_a_faulty_literal_on_the_command_line_is_told_with_its_flag():
    _, bindings = config.gin_arguments(["--gin.TestTraining.shape=(1, 2"])
    assert "--gin.TestTraining.shape: " in error(*bindings)


def test_flags_are_defined_once():
    config.define_flags()
    config.define_flags()
    assert flags.FLAGS["gin_file"].default == []
    assert flags.FLAGS["print_config"].default is False


text = st.text(st.characters(codec="utf-8"), max_size=90)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    training=st.builds(
        Training,
        steps=st.integers(0, 2**40),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        keep=st.booleans(),
        shape=st.lists(st.integers()).map(tuple),
        note=st.none() | text,
    ),
    paths=st.dictionaries(text, text | st.lists(text, max_size=3), max_size=4),
)
def test_the_operative_config_replays_to_itself(training, paths, tmp_path):
    bindings = [
        f"TestTraining.{name} = {getattr(training, name)!r}"
        for name in ("steps", "rate", "keep", "shape")
    ]
    bindings += ["N = %M", f"M = {training.note!r}", "TestTraining.note = %N"]
    bindings += ["TestData.source = @a/b/TestFiles()", f"a/TestFiles.paths = {paths!r}"]
    first, settings = config.load(build, [], bindings)
    assert first.training == training
    assert first.data.source == Files(paths=paths)
    saved = settings.text
    assert "TestTraining.shape = " in saved
    assert "TestFiles.splits = {'train': 'train[:90%]'}" in saved
    (tmp_path / "config.gin").write_text(saved, encoding="utf-8")
    again, settings = config.load(build, [tmp_path / "config.gin"], [])
    assert again == first
    assert settings.text == saved
    assert differences(saved, settings.text) == []


def test_describe_names_the_origin_of_every_value(write):
    file = write("STEPS = 5\nTestTraining.steps = %STEPS\nTestTraining.rate = 0.5\n")
    _, settings = load_with_settings("STEPS = 6", "TestVocabulary.size = 3", files=[file])
    lines = dict(line.split("  # ") for line in settings.description.splitlines())
    lines = {value.strip(): origin for value, origin in lines.items()}
    assert lines["TestTraining.steps = 6"] == "a.gin:2, where STEPS at --gin.STEPS"
    assert lines["TestTraining.rate = 0.5"] == "a.gin:3"
    assert lines["TestVocabulary.size = 3"] == "--gin.TestVocabulary.size"
    assert lines["TestVocabulary.kind = 'unigram'"] == "default"
    assert lines["TestTable.name = 'words'"] == "--gin.TestTable.name"
    described = {line.partition(" ")[0] for line in lines}
    shown = [Data, Table, Training, Vocabulary]
    fields = {f"Test{c.__name__}.{f.name}" for c in shown for f in dataclasses.fields(c)}
    # Infinity is no gin literal; the other two are configs of their own.
    hidden = {"TestTraining.limit", "TestData.vocabulary"}
    assert described == fields - hidden


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [("0", "0.0", True), ("(1, 2)", "(1.0, 2)", True), ("1", "True", False), ("1", "'1'", False)],
)
def test_numbers_of_one_value_do_not_differ(old, new, same):
    texts = [f"TestVocabulary.size = {text}\n" for text in (old, new)]
    assert (differences(*texts) == []) == same


def test_differences_follow_macros_and_name_what_is_new_or_gone():
    old = "N = 3\nGone.x = 1\nTraining.steps = %N\nTraining.rate = 0.1\na/V.s = (%N, @b/C())\n"
    new = "Training.steps = 4\nTraining.rate = 0.1\nNew.y = None\na/V.s = (3, @b/C())\n"
    assert differences(old, new) == [
        Difference("Gone.x", "1", None),
        Difference("New.y", None, "None"),
        Difference("Training.steps", "3", "4"),
    ]


def test_a_parameter_that_came_later_had_its_default():
    old = "Search.beam_size = 4\n"
    new = f"{old}Search.alpha = 0.6\nSearch.min_length = 2\nStreams.layout = 'whole'\n"
    assert differences(old, new) == [Difference("Search.min_length", "1", "2")]
    # What the old text has and the new one lacks is gone, whatever it was.
    gone = [d.name for d in differences(new, old)]
    assert gone == ["Search.alpha", "Search.min_length", "Streams.layout"]


def test_a_config_that_is_written_out_is_the_default():
    plain = "Data.directory = 'x'\n"
    for name, default in (
        ("Data.source_vocabulary", "Vocabulary"),
        ("Experiment.model", "Transformer"),
    ):
        written = f"{plain}{name} = @{default}()\n"
        assert differences(plain, written) == differences(written, plain) == []
    other = f"{plain}Experiment.model = @Recurrent()\n"
    assert differences(other, plain) == [
        Difference("Experiment.model", "@Recurrent()", "@Transformer()")
    ]
