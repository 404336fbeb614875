"""A system in a process of its own that loads once and answers requests: JSON, a line each.

A request is {"do": method, ...arguments}, an answer what the method returned. Systems have the
methods `search` and `score`; sentences are named by their place in test.json.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
# What each system is started by, from the repository's root; its arguments follow.
COMMANDS = {
    "bidi": [
        "bash",
        "-c",
        'source launch/environment.sh && exec python experiments/peers/serve_bidi.py "$@"',
        "bash",
    ],
    "transformers": [sys.executable, str(HERE / "serve_transformers.py")],
    "ctranslate2": [sys.executable, str(HERE / "serve_ctranslate2.py")],
    "torch training": [sys.executable, str(HERE / "serve_torch_training.py")],
}


def batches(sources: list[list], batch: int | None) -> list[list[int]]:
    """Places of sources of like lengths, so many together; None is one by one."""
    order = sorted(range(len(sources)), key=lambda place: len(sources[place]))
    size = batch or 1
    return [order[start : start + size] for start in range(0, len(order), size)]


def serve(system: Any) -> None:
    """Answers until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(system, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


def on_cores(threads: int) -> list[str]:
    """What to put before a command so that it runs on so many cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return ["taskset", "-c", ",".join(map(str, cores))]


def environment(threads: int) -> dict[str, str]:
    """For a process on so many cores; launch/environment.sh chooses for them by itself."""
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return kept | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}


class Served:
    """A system that is served on so many cores; ends with the `with` block."""

    def __init__(self, name: str, threads: int, *arguments: str):
        """`name` is one of `COMMANDS`."""
        self._process = subprocess.Popen(
            [*on_cores(threads), *COMMANDS[name], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(threads),
        )

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the system's method `do` returns."""
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(answer)
