import io
import sys

import pytest
import rich.console

from bidi.evaluation import leak, leak_report


def summary(copied=91.0, of_nothing=False):
    """A summary of `leak.measure` with a leak of a tenth of a nat everywhere."""
    entropies = {"gold": 0.3, "searched": 0.4, "hidden": 0.5}
    interval = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.01}
    part = {"labels": 10, "cross_entropy": entropies, "leak": interval}
    empty = {"labels": 0, "cross_entropy": dict.fromkeys(entropies), "leak": None}
    parts = dict.fromkeys(("all", *leak.PARTS), part)
    if of_nothing:
        parts["shown"] = empty
    positions = {name: [None, *[value] * 9] for name, value in entropies.items()}
    return {
        **parts,
        "by_position": {"cross_entropy": positions},
        "copied": {
            "searched": None if of_nothing else copied,
            "wrong": {
                "shown": 0 if of_nothing else 7,
                "searched": None if of_nothing else 42.9,
                "hidden": None if of_nothing else 14.3,
            },
        },
    }


def report(**values):
    of_all = summary(**values)
    directions = {"l2r": of_all, "r2l": of_all}
    return {"split": "test", "same_outputs": 94.0, "directions": directions, "both": of_all}


def printed(of_report):
    text = io.StringIO()
    leak_report.print_leak(of_report, rich.console.Console(file=text, width=80))
    return text.getvalue()


def test_the_table_fits_a_terminal_and_says_the_leak():
    text = printed(report())
    (row,) = [line for line in text.splitlines() if "r2l shown" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == [
        "r2l shown", "0.300", "0.400", "0.500", "+0.100", "+0.050..+0.150", "91.0 %"
    ]  # fmt: skip
    assert text.count("91.0 %") == 3
    assert "Of 7 wrong tokens" in text
    assert "42.9 %" in text
    assert "the same for 94.0 % of the sources" in text
    assert "none leaks" not in text


def test_nothing_shown_is_no_number():
    text = printed(report(of_nothing=True))
    (row,) = [line for line in text.splitlines() if "l2r shown" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["l2r shown", "-", "-", "-", "-", "", ""]
    assert "wrong tokens" not in text
    assert "none leaks" in text


def test_the_picture_shows_the_numbers():
    drawn = leak_report.plot(report())
    assert drawn.startswith(b"\x89PNG")
    changed = report()
    changed["directions"]["r2l"] = summary()
    changed["directions"]["r2l"]["by_position"]["cross_entropy"]["hidden"][4] = 0.8
    assert drawn != leak_report.plot(changed)


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bidi\[plot\]'"):
        leak_report.plot(report())
