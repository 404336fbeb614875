"""The bar that long work shows on a terminal."""

import sys

import rich.console
import rich.progress


def progress_bar() -> rich.progress.Progress:
    """A bar with counts and the time that is left, on stderr; silent where that is no terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
    )
