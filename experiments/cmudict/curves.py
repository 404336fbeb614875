"""Validation loss against training time: python experiments/cmudict/curves.py PNG WORKDIR...

Draws PNG and prints a table: of each run its updates, minutes, validation loss (nats a label, of
both directions together where there are two), and how much the loss changed over the last tenth of
the updates, by which one sees whether it is flat. Minutes are updates at the run's median speed:
what else the machine did at times does not bend a curve. Needs pip install 'bidi[plot]'.
"""

import json
import pathlib
import sys

import matplotlib as mpl

mpl.use("Agg")  # draws to files, wherever there is no display

import matplotlib.pyplot as plt
import numpy as np

from bidi.training.report import METRICS_FILE, training_summary


def main(picture: str, workdirs: list[str]) -> None:
    """Prints the table and draws the picture."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    print("| run | updates | minutes | validation loss | change over the last tenth |")
    print("|---|--:|--:|--:|--:|")
    for workdir in map(pathlib.Path, workdirs):
        steps, minutes, losses = curve(workdir)
        name = workdir.resolve().name
        numbers = f"{steps[-1]:,} | {minutes[-1]:.1f} | {losses[-1]:.4f}"
        print(f"| {name} | {numbers} | {last_change(steps, losses):+.4f} |")
        axes.plot(minutes, losses, marker=".", label=name)
    axes.set(xlabel="minutes of training", ylabel="validation loss, nats a label", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def curve(workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Updates, minutes and loss at each validation of a run."""
    rows = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    validated = [row for row in rows if "validation/loss" in row]
    steps = np.array([row["step"] for row in validated])
    speed = training_summary(workdir, steps[-1])["median_milliseconds_per_update"]
    return steps, steps * speed / 60_000, np.array([row["validation/loss"] for row in validated])


def last_change(steps: np.ndarray, losses: np.ndarray) -> float:
    """The last loss minus that of a tenth of the updates before, between validations by a line."""
    return float(losses[-1] - np.interp(0.9 * steps[-1], steps, losses))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
