"""Hypotheses of several directions or models, together."""

import dataclasses

from bidi.evaluation.found import Found, Hypothesis, together


def hypothesis(tokens, direction, score, finished=True):
    return Hypothesis(tuple(tokens), direction, 2 * score, score, finished)


A = hypothesis([6], "l2r", -2.0)
B = hypothesis([7, 8], "l2r", -0.5, finished=False)
C = hypothesis([6], "r2l", -1.0)
D = hypothesis([9], "r2l", -3.0)
E = hypothesis([8, 7], "r2l", -0.1, finished=False)


def test_all_is_both_lists_without_repeats_finished_first():
    found = Found({"l2r": (A, B), "r2l": (C, D, E)}, C)
    assert found.all == (C, D, E, B)
    assert Found({"l2r": (A, B)}, A).all == (A, B)


def test_models_of_one_direction_each_are_like_one_of_both():
    left, right = Found({"l2r": (A, B)}, A), Found({"r2l": (C, D, E)}, C)
    assert together([left, right]) == Found({"l2r": (A, B), "r2l": (C, D, E)}, C)
    assert together([left]) == left
    nothing = [Found({"l2r": ()}, None), Found({"r2l": ()}, None)]
    assert together(nothing) == Found({"l2r": (), "r2l": ()}, None)
    assert together([Found({"l2r": (B,)}, B), Found({"r2l": (D,)}, D)]).winner == D


def test_models_of_one_direction_are_numbered():
    left, other = Found({"l2r": (A, B)}, A), Found({"l2r": (B,)}, B)
    A1, B1, B2 = (
        dataclasses.replace(h, direction=name)
        for h, name in ((A, "l2r (1)"), (B, "l2r (1)"), (B, "l2r (2)"))
    )
    assert together([left, other]) == Found({"l2r (1)": (A1, B1), "l2r (2)": (B2,)}, A1)
    both = together([left, Found({"l2r": (B,), "r2l": (C, D)}, C)])
    assert list(both.n_best) == ["l2r (1)", "l2r (2)", "r2l (2)"]
    assert both.winner == dataclasses.replace(C, direction="r2l (2)")
    assert {h.direction for h in both.all} == {"l2r (1)", "r2l (2)"}
    nothing = Found({"l2r": ()}, None)
    assert together([nothing, nothing]) == Found({"l2r (1)": (), "l2r (2)": ()}, None)
