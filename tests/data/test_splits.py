import collections

import numpy as np

from bidi.data import splits
from bidi.tokens import UNK


def test_length_summary_is_that_of_the_lengths():
    side = splits._Side()
    lengths = [1] * 50 + [2] * 45 + [7] * 4 + [9]
    for length in lengths:
        side.add(np.full(length, UNK))
    assert side.summary() == {
        "tokens": sum(lengths),
        "unknown": sum(lengths),
        "mean": sum(lengths) / 100,
        "median": 1,
        "p95": 2,
        "p99": 7,
        "longest": 9,
    }
    assert collections.Counter(lengths) == side.lengths
