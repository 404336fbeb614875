"""What is made of the rounds; the rounds themselves run in tests/test_benchmark.py."""

import numpy as np
import pytest

from bidi import experiment
from bidi.benchmarking import updates
from bidi.benchmarking.rounds import Spread
from bidi.data.prepared import Prepared
from bidi.provenance import CompileMeter


@pytest.fixture
def loaded(trained):
    return experiment.load([trained.gin_file], ["Transformer.own_decoders = True"])


def test_l2r_alone_is_a_valid_experiment_and_differs_in_nothing_else(trained):
    interacting = [
        "Transformer.interaction = 'layers'",
        "Search.coupling = 'paired'",
        "Partner.kind = 'predicted'",
    ]
    both = experiment.load([trained.gin_file], interacting)
    alone = experiment.load([trained.gin_file], ["Streams.ways = 'l2r'"])
    assert updates.l2r_alone(both) == alone


def test_a_round_says_what_its_batches_held(loaded, trained):
    system = updates.Updates(loaded, Prepared.open(str(trained.data)), CompileMeter())
    seen = []
    inner, system._data = system._data, iter([])

    def batches():
        for batch in inner:
            seen.append(batch)
            yield batch

    system._data = batches()
    taken = system.run(updates=3)
    inner.close()
    assert len(seen) == 3
    labels = sum((batch["labels"] != 0).sum(axis=(0, 2)) for batch in seen)
    np.testing.assert_array_equal(taken.labels_W, labels / 3)
    assert taken.target_fill == pytest.approx(labels.sum() / (3 * seen[0]["labels"].size))
    tokens = sum((batch["source"] != 0).sum() for batch in seen)
    assert taken.source_fill == pytest.approx(tokens / (3 * seen[0]["source"].size))
    assert 0 <= taken.seconds_waited < taken.seconds


def test_a_report_by_hand(loaded, monkeypatch):
    class System:
        flops, compile_seconds, memory = 6e9, 7.5, {"arguments": 1, "temporary": 2}

    monkeypatch.setattr(updates, "peak_flops", lambda kind, dtype: 3e9)
    rounds = [
        updates.Round(2.0, 0.5, np.array([30.0, 10.0]), 0.75, 0.5),
        updates.Round(1.0, 0.0, np.array([20.0, 20.0]), 0.25, 0.5),
    ]
    report = updates.system_report(loaded, System(), rounds, {"product": [6e9, 24e9]}, [4.0, 0.5])
    assert report["milliseconds_per_update"] == Spread(1500, 1000, 2000)
    assert report["milliseconds_waited"] == Spread(250, 0, 500)
    assert report["batches_per_second"] == Spread(2.25, 0.5, 4)
    assert report["share_of_input"] == Spread(1.0625, 0.125, 2)
    assert report["tokens_per_second"] == Spread(30, 20, 40)
    assert report["tokens_per_second_by_direction"] == {
        "l2r": Spread(17.5, 15, 20),
        "r2l": Spread(12.5, 5, 20),
    }
    assert report["flops_per_second"] == Spread(4.5e9, 3e9, 6e9)
    assert report["share_of_product"] == {"product": Spread(0.375, 0.25, 0.5)}
    # Eight devices of 3 GFLOP/s each.
    assert report["share_of_peak"] == Spread(0.1875, 0.125, 0.25)
    assert report["padding"] == {"source": 0.5, "target": 0.5}
    assert report["compile_seconds"] == 7.5
    assert report["program_memory"] == System.memory
