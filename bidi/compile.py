"""Compiles for devices that are not here: python -m bidi.compile --topology=v5e:4x4 --gin_file=...

Compiles the update and the search of an experiment for TPUs, by libtpu (pip install
'bidi[tpu-compile]'), or for NVIDIA's GPUs, by jax's plugin ('bidi[gpu-compile]'), on a machine that
has neither, without data, and says per device: memory by what fills it, operations, traffic, how
many kernels are started, what devices send each other, and the least time that the chip's limits
allow. Vocabularies have the sizes that the configuration asks for.
"""

import json

import jax
from absl import flags

from bidi import verb
from bidi.benchmarking import compiled, tables, topology
from bidi.errors import UserError
from bidi.files import path_of, write_whole
from bidi.provenance import provenance

_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "Chip and how many: v5e:4x4 (v5e-16), v6e:4x4, v4:2x2x1 (v4-8), v5p:2x2x1; a100:1, h100:8 (a "
    "machine of eight), h200:2x8 (two of them).",
)
_PROGRAMS = flags.DEFINE_list("programs", ["train", "search"], "What to compile.")
_SOURCE_TOKENS = flags.DEFINE_integer(
    "source_tokens",
    None,
    "search: length of the sources, without end marker; by default 31, or as many as are read.",
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "A file for the report, as JSON.", allow_override=True
)


def main(bindings: list[str]) -> None:
    """Compiles, prints a table and writes what `--output` asks for."""
    # There may be their compilers, but there are no TPUs and GPUs: jax would look for them.
    jax.config.update("jax_platforms", "cpu")
    loaded = verb.load(verb.gin_files(), bindings)
    if not _TOPOLOGY.value:
        raise UserError("--topology is missing: for which chips? v5e:4x4, for example")
    if not _PROGRAMS.value or set(_PROGRAMS.value) - {"train", "search"}:
        raise UserError(f"--programs={','.join(_PROGRAMS.value)}: there are train and search")
    longest = loaded.max_source_length
    source_tokens = _SOURCE_TOKENS.value or min(31, longest)
    if source_tokens > longest:
        raise UserError(
            f"--source_tokens={source_tokens}, but searches of this experiment cut sources to "
            f"{longest}"
        )
    verb.check_output(_OUTPUT.value)
    devices = topology.topology(_TOPOLOGY.value)
    programs = {}
    if "train" in _PROGRAMS.value:
        programs["train"] = compiled.update(loaded, devices)
    if "search" in _PROGRAMS.value:
        programs["search"] = compiled.search(loaded, devices, source_tokens)
    report = {"topology": _TOPOLOGY.value, "chip": devices[0].device_kind, "programs": programs}
    tables.print_compiled(report, verb.console())
    if _OUTPUT.value:
        whole = {**report, "config": loaded.settings.text, "provenance": provenance()}
        write_whole(path_of(_OUTPUT.value), json.dumps(whole, indent=1))


if __name__ == "__main__":
    verb.run("bidi.compile", main)
