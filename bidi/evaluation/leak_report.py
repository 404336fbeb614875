"""What `leak.measure` found, as a table and as a picture."""

import io
from typing import Any

import numpy as np
import rich.console
import rich.table

from bidi.evaluation.leak import BINS, CONDITIONS, PARTS

# Lines that lie on each other are told apart.
_STYLES = {"gold": "C1o-", "searched": "C0s--", "hidden": "C7^:"}


def print_leak(report: dict[str, Any], console: rich.console.Console) -> None:
    """The gist of a report."""
    title = f"{report['split']}: nats a label beside the other stream gold, searched or hidden"
    table = rich.table.Table(title=title)
    for heading in ("", *CONDITIONS, "leak", "95 %", "copied"):
        table.add_column(heading, justify="right")
    for name, summary in (*report["directions"].items(), ("both", report["both"])):
        for part in (*PARTS, "all"):
            of_part, leak = summary[part], summary[part]["leak"]
            entropies = [of_part["cross_entropy"][condition] for condition in CONDITIONS]
            copied = summary["copied"]["searched"] if part == "shown" else None
            table.add_row(
                f"{name} {part}",
                *("-" if value is None else f"{value:.3f}" for value in entropies),
                f"{leak['difference']:+.3f}" if leak else "-",
                f"{leak['low']:+.3f}..{leak['high']:+.3f}" if leak else "",
                "" if copied is None else f"{copied:.1f} %",
                end_section=part == "all",
            )
    console.print(table)
    wrong, same = report["both"]["copied"]["wrong"], report["same_outputs"]
    if wrong["shown"]:
        console.print(
            f"Of {wrong['shown']} wrong tokens that searched streams show, the other stream takes "
            f"{wrong['searched']:.1f} % over; it would write {wrong['hidden']:.1f} % unread.",
            soft_wrap=True,
        )
    if not report["both"]["shown"]["labels"]:
        console.print(
            "No label is shown, so none leaks: the differences are what a wrong context costs.",
            soft_wrap=True,
        )
    if same is not None:
        console.print(f"Both streams wrote the same for {same:.1f} % of the sources.")


def plot(report: dict[str, Any]) -> bytes:
    """The cross-entropy over the output and, below it, the leak; of each direction, as PNG.

    Raises:
        ModuleNotFoundError: the package matplotlib is missing.
    """
    figure = require_matplotlib()(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(2, 1))
    centres = 100 * (np.arange(BINS) + 0.5) / BINS
    for column, (direction, summary) in enumerate(report["directions"].items()):
        # A tenth without labels has None, which becomes a gap in the line.
        entropies = {
            condition: np.array(summary["by_position"]["cross_entropy"][condition], float)
            for condition in CONDITIONS
        }
        above, below = axes[:, column]
        for condition, values in entropies.items():
            above.plot(centres, values, _STYLES[condition], label=condition)
        below.bar(centres, entropies["searched"] - entropies["gold"], 0.8 * 100 / BINS)
        above.set_title(direction)
        below.set(xlabel="% of the output, as it is written", xlim=(0, 100))
        for axis in (above, below):
            axis.grid(alpha=0.3)
    axes[0, 0].set(ylabel="nats a token", ylim=(0, None))
    axes[0, 0].legend(title="other stream")
    axes[1, 0].set(ylabel="leak")
    figure.suptitle(f"{report['split']}: cross-entropy of the first references' tokens")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def require_matplotlib() -> Any:
    """The class of figures, which draws without a screen.

    Raises:
        ModuleNotFoundError: the package matplotlib is missing.
    """
    try:
        # An optional extra, and slow to import.
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The leak is drawn by the package matplotlib: pip install 'bidi[plot]'"
        ) from None
    return Figure
