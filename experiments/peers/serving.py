"""A system in a process of its own that loads once and answers requests: JSON, a line each.

A request is {"do": method, ...arguments}, an answer what the method returned. Systems have the
methods `search` and `score`; sentences are named by their place in test.json.
"""

import contextlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
# What each system is started by, from the repository's root; its arguments follow. bidi compiles
# anew, so that the time of its first search does not depend on what was run before.
COMMANDS = {
    "bidi": [
        "bash",
        "-c",
        "source launch/environment.sh && JAX_ENABLE_COMPILATION_CACHE=false "
        'exec python experiments/peers/serve_bidi.py "$@"',
        "bash",
    ],
    "transformers": [sys.executable, str(HERE / "serve_transformers.py")],
    "ctranslate2": [sys.executable, str(HERE / "serve_ctranslate2.py")],
    "torch training": [sys.executable, str(HERE / "serve_torch_training.py")],
}
# How the names of what launch/environment.sh sets begin, where it changes other programs' speed.
OF_BIDI = ("GLIBC_TUNABLES", "MALLOC_", "XLA_FLAGS")


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
    """For a process on so many cores, without `OF_BIDI`.

    run.sh hands these on, but the other systems shall have the malloc that their users have. bidi's
    command sources launch/environment.sh, which sets them anew, for these cores.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OF_BIDI)}
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
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        self._process.wait()

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the system's method `do` returns."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and answers nothing
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            command, status = shlex.join(self._process.args), self._process.wait()
            raise RuntimeError(f"{command} ended with status {status}: mend what it says above")
        return json.loads(answer)
