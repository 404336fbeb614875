"""What a result was made with: commit, versions, device, time spent on compilation."""

import importlib.metadata
import pathlib
import platform
import subprocess

import jax

_PACKAGES = ("bidi", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileMeter:
    """Counts compilations in this process and the seconds they take."""

    def __init__(self):
        """Listens from now on."""
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.count += 1
            self.seconds += duration_secs


def provenance() -> dict[str, object]:
    """JSON-ready facts about this program and the machine that it runs on."""
    device = jax.local_devices()[0]
    return {
        "commit": _commit(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "machine": platform.machine(),
        },
    }


def _commit() -> str | None:
    """The checkout's commit, `+changes` where files differ from it; None outside a checkout."""
    root = pathlib.Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie within a repository of something else.
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
