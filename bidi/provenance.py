"""What a result was made with: commit, versions, device."""

import importlib.metadata
import pathlib
import platform
import subprocess

import jax

_PACKAGES = ("bidi", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


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
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
