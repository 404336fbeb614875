"""What contradicts itself is refused by name."""

import pytest

from bidi.data.partner import Partner


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"predicted_from": 3}, r"Partner\.predicted_from = 3 is for .* but .*kind = 'gold'"),
        (
            {"predicted_until": 3},
            r"Partner\.predicted_until = 3 is for Partner\.kind = 'predicted'",
        ),
        ({"corrupted": 0.1}, r"Partner\.corrupted = 0\.1 is for Partner\.kind = 'predicted'"),
        (
            {"kind": "predicted", "predicted_from": 2, "predicted_until": 1},
            r"predicted_from = 2 and Partner\.predicted_until = 1 must be",
        ),
        (
            {"kind": "predicted", "predicted_from": -1, "predicted_until": 1},
            r"predicted_from = -1 and",
        ),
        ({"kind": "predicted", "corrupted": 1.0}, r"Partner\.corrupted = 1\.0 must be at least"),
        ({"kind": "predicted", "corrupted": -0.1}, r"Partner\.corrupted = -0\.1 must be at"),
    ],
)
def test_contradictions_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Partner(**fields)


def test_what_fits():
    assert Partner() == Partner("gold")
    assert Partner("predicted", predicted_from=10, predicted_until=10).corrupted == 0
