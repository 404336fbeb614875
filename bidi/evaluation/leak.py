"""The leak: how much of a label a stream has from the other stream instead of from the source.

Streams that are trained beside the gold text of the other stream may see the labels that they must
predict, and learn to copy. Every gold label is therefore priced three times, its own stream being
gold each time, the other one

    gold      gold too: what training with partner `gold` shows,
    searched  what the model itself wrote there in search,
    hidden    not read at all (a model that was trained to read is not at its best then).

The leak is the cross-entropy beside `searched` minus that beside `gold`. Only where a gold partner
shows the label is that copying; elsewhere, and so everywhere in layout `halves`, it is what a wrong
context costs. Gold is the first reference, whatever was written.

Letters: L labels, C conditions (the three above), T steps, W ways, N examples.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bidi.data.sources import Example
from bidi.data.streams import Streams
from bidi.evaluation.found import Found
from bidi.evaluation.generate import Generator
from bidi.evaluation.significance import Comparison, bootstrap_ratio
from bidi.tokens import FIRST_TEXT_ID, PAD

GOLD, SEARCHED, HIDDEN = range(3)
CONDITIONS = ("gold", "searched", "hidden")
# Whether a gold partner shows a label when it must be predicted; end markers apart.
UNSEEN, SHOWN, END = range(3)
PARTS = ("unseen", "shown", "end")
BINS = 10  # of the relative position

_RESAMPLES, _SEED = 1_000, 0


@dataclasses.dataclass(frozen=True)
class Labels:
    """Gold labels, one entry of each array for each.

    Attributes:
        example_L: int, which example it is of.
        way_L: int, the way of its stream.
        part_L: int, place in `PARTS`.
        step_L: int, of its stream.
        bin_L: int, tenth of the output that it stands in, in the order of writing; for an end
            marker it means nothing.
        label_L: int, the token.
        copy_L: int, the token that the searched partner shows in the label's place: what stands in
            its output as far from where this stream began. PAD where it shows none.
        predicted_LC: int, the likeliest token.
        nll_LC: float64, in nats.
    """

    example_L: np.ndarray
    way_L: np.ndarray
    part_L: np.ndarray
    step_L: np.ndarray
    bin_L: np.ndarray
    label_L: np.ndarray
    copy_L: np.ndarray
    predicted_LC: np.ndarray
    nll_LC: np.ndarray

    def where(self, chosen_L: np.ndarray) -> "Labels":
        """Those for which `chosen_L` is true."""
        return Labels(*(getattr(self, field.name)[chosen_L] for field in dataclasses.fields(self)))


@functools.cache
def label_places(streams: Streams, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the labels of an output stand in it, and which of them the other stream shows.

    Found by numbering an output's tokens: whatever streams are made of it is seen through.

    Args:
        streams: of both directions.
        length: tokens of the output.

    Returns:
        int [T, W], the index of each label in the output, -1 for what is no token of it; and bool
        [T, W], whether the other stream has read that token when the label must be predicted.
    """
    numbered = streams.tokens(FIRST_TEXT_ID + np.arange(length))
    places_TW = np.maximum(numbered["labels"] - FIRST_TEXT_ID, -1)
    read_TW = np.maximum(numbered["inputs"] - FIRST_TEXT_ID, -1)
    # At step t a stream sees the other's inputs 0 .. t, see attention.future_mask.
    seen_TW1T = np.tril(np.ones((len(read_TW),) * 2, bool))[:, None]
    is_there_TWT = places_TW[:, :, None] == read_TW[:, ::-1].T[None]
    shown_TW = (is_there_TWT & seen_TW1T).any(axis=-1) & (places_TW >= 0)
    return places_TW, shown_TW


def measure(
    generator: Generator, examples: Sequence[Example], found: Sequence[Found]
) -> dict[str, Any]:
    """The leak of a model whose streams read each other.

    Args:
        generator: the model.
        examples: sources and references.
        found: what it found for them.

    Returns:
        JSON-ready:

        - `examples`: how many were priced: those with an output.
        - `same_outputs`: percent of them for which both streams wrote the same; None for halves,
          which write one output together.
        - `directions`, of each direction, and `both`, of both together, each with
            - `all`, `unseen`, `shown` and `end`: all labels; the tokens that a gold partner does
              not show when they must be predicted, and those it shows (in whole streams the second
              half); the end markers. Of each: `labels`, how many; `cross_entropy` in nats a label
              and `accuracy` in percent, beside each of `CONDITIONS`; `leak` in nats a label, with
              its interval by bootstrap over the examples, see `significance.Comparison`. None where
              there are no labels.
            - `by_step` and `by_position`: the same of tokens, without the leak, as lists: over the
              steps of the streams; over tenths of the output in the order of writing.
            - `copied`: percent of tokens predicted that are those that the partner shows in their
              place: beside `gold`; beside `searched`; and, how often the same tokens would be
              predicted without being read, `hidden`. `shown` says how many the searched partner
              shows. `wrong` has the same for those of them that are not the label.
    """
    written = [place for place, one in enumerate(found) if one.winner]
    examples, found = [examples[place] for place in written], [found[place] for place in written]
    labels = _price(generator, examples, found)
    streams = generator.streams
    same_N = np.array([left == right for left, right in _written(streams, found)], bool)
    return {
        "examples": len(examples),
        "same_outputs": _percent(same_N) if streams.layout == "whole" else None,
        "directions": {
            direction: _summary(labels.where(labels.way_L == way))
            for way, direction in enumerate(streams.directions)
        },
        "both": _summary(labels),
    }


def _written(streams: Streams, found: Sequence[Found]) -> list[list[tuple[int, ...]]]:
    """The best output of each way; halves write one together."""
    writers = streams.writers if len(streams.writers) == 2 else streams.writers * 2
    return [[one.n_best[writer][0].tokens for writer in writers] for one in found]


def _price(generator: Generator, examples: Sequence[Example], found: Sequence[Found]) -> Labels:
    sources = [example.source for example in examples]
    # Of each example, gold and what each way wrote.
    outputs = [
        (
            tuple(int(token) for token in generator.target_vocabulary.encode(example.targets[0])),
            *written,
        )
        for example, written in zip(examples, _written(generator.streams, found), strict=True)
    ]
    read = generator.price(sources, outputs, [(0, 0), (0, 2), (1, 0)], interact=True)
    alone = generator.price(sources, outputs, [(0, 0)], interact=False)
    rows = []
    for example, of_example in enumerate(outputs):
        for way in range(2):
            # In pair 1 the second stream is searched, in pair 2 the first one.
            of_conditions = ((read[example], 0), (read[example], 1 + way), (alone[example], 0))
            rows.append(
                _of_stream(
                    generator.streams,
                    example,
                    way,
                    gold=of_example[0],
                    partner=of_example[2 - way],
                    log_probs_CT=np.stack([one.log_probs_PWT[p, way] for one, p in of_conditions]),
                    predicted_CT=np.stack([one.predicted_PWT[p, way] for one, p in of_conditions]),
                )
            )
    return Labels(
        *(
            np.concatenate([getattr(row, field.name) for row in rows])
            for field in dataclasses.fields(Labels)
        )
    )


def _of_stream(
    streams: Streams,
    example: int,
    way: int,
    gold: tuple[int, ...],
    partner: tuple[int, ...],
    log_probs_CT: np.ndarray,
    predicted_CT: np.ndarray,
) -> Labels:
    places_TW, shown_TW = label_places(streams, len(gold))
    made = streams.tokens(np.array(gold, np.int32))
    (steps_L,) = np.nonzero(made["weights"][:, way])
    place_L = places_TW[steps_L, way]
    from_start_L = place_L if streams.directions[way] == "l2r" else len(gold) - 1 - place_L
    return Labels(
        example_L=np.full(len(steps_L), example),
        way_L=np.full(len(steps_L), way),
        part_L=np.where(place_L < 0, END, np.where(shown_TW[steps_L, way], SHOWN, UNSEEN)),
        step_L=steps_L,
        bin_L=BINS * from_start_L // max(len(gold), 1),
        label_L=made["labels"][steps_L, way],
        copy_L=_copies(streams, partner, way, len(places_TW))[steps_L],
        predicted_LC=predicted_CT[:, steps_L].T,
        nll_LC=-log_probs_CT[:, steps_L].T.astype(float),
    )


def _copies(streams: Streams, partner: tuple[int, ...], way: int, steps: int) -> np.ndarray:
    """The token that a partner shows at each step: its own label there, if it has been read."""
    _, shown_TW = label_places(streams, len(partner))
    labels_TW = streams.tokens(np.array(partner, np.int32))["labels"]
    copies_T = np.full(steps, PAD)
    of_partner_T = np.where(shown_TW[:, way], labels_TW[:, way], PAD)[:steps]
    copies_T[: len(of_partner_T)] = of_partner_T
    return copies_T


def _summary(labels: Labels) -> dict[str, Any]:
    tokens = labels.where(labels.part_L != END)
    return {
        "all": _part(labels),
        **{name: _part(labels.where(labels.part_L == part)) for part, name in enumerate(PARTS)},
        "by_step": _curve(tokens, tokens.step_L, int(tokens.step_L.max(initial=-1)) + 1),
        "by_position": _curve(tokens, tokens.bin_L, BINS),
        "copied": _copied(labels),
    }


def _part(labels: Labels) -> dict[str, Any]:
    return {**_means(labels), "leak": _leak(labels)}


def _means(labels: Labels) -> dict[str, Any]:
    correct_LC = labels.predicted_LC == labels.label_L[:, None]
    return {
        "labels": len(labels.label_L),
        "cross_entropy": {
            name: float(labels.nll_LC[:, c].mean()) if len(labels.label_L) else None
            for c, name in enumerate(CONDITIONS)
        },
        "accuracy": {name: _percent(correct_LC[:, c]) for c, name in enumerate(CONDITIONS)},
    }


def _leak(labels: Labels) -> Comparison | None:
    if not len(labels.label_L):
        return None
    leaks_L = labels.nll_LC[:, SEARCHED] - labels.nll_LC[:, GOLD]
    leaks_N, labels_N = np.bincount(labels.example_L, leaks_L), np.bincount(labels.example_L)
    among = labels_N > 0
    return bootstrap_ratio(leaks_N[among], labels_N[among], samples=_RESAMPLES, seed=_SEED)


def _curve(tokens: Labels, place_L: np.ndarray, places: int) -> dict[str, Any]:
    at = [_means(tokens.where(place_L == place)) for place in range(places)]
    curve: dict[str, Any] = {"labels": [one["labels"] for one in at]}
    for key in ("cross_entropy", "accuracy"):
        curve[key] = {name: [one[key][name] for one in at] for name in CONDITIONS}
    return curve


def _copied(labels: Labels) -> dict[str, Any]:
    gold_shows = labels.where(labels.part_L == SHOWN)
    shown = labels.where(labels.copy_L != PAD)
    beside_gold_L = gold_shows.predicted_LC[:, GOLD] == gold_shows.label_L
    return {
        "gold": _percent(beside_gold_L),
        **_copied_of_searched(shown),
        "wrong": _copied_of_searched(shown.where(shown.copy_L != shown.label_L)),
    }


def _copied_of_searched(labels: Labels) -> dict[str, Any]:
    return {
        "shown": len(labels.copy_L),
        "searched": _percent(labels.predicted_LC[:, SEARCHED] == labels.copy_L),
        "hidden": _percent(labels.predicted_LC[:, HIDDEN] == labels.copy_L),
    }


def _percent(true: np.ndarray) -> float | None:
    return 100 * float(true.mean()) if len(true) else None
