"""Writes a trained model for other libraries: python -m bidi.export --workdir=... --output=DIR.

DIR is then what `AutoModelForSeq2SeqLM.from_pretrained` and `AutoTokenizer.from_pretrained` of
Hugging Face transformers, version 5 or newer, load. It holds one direction of a model without
interaction; a right-to-left one writes its outputs from the end there, too: reverse their tokens
before they are decoded. Beam, length penalty and greatest length are those of the run, or of
--gin.Search.NAME=value; where transformers searches differently, see `interchange.huggingface`.
"""

from absl import flags

from bidi import trained, verb
from bidi.data.streams import Direction, Streams
from bidi.errors import UserError
from bidi.files import path_of, write_directory
from bidi.interchange import huggingface

flags.adopt_module_key_flags(trained)  # so that --help shows them
# allow_override: `translate` has this flag too, and may be imported into the same program.
_OUTPUT = flags.DEFINE_string(
    "output", None, "The directory to make; it must not exist.", allow_override=True
)
# The only one so far: a command says what it writes.
flags.DEFINE_enum(
    "format", "huggingface", ["huggingface"], "Whose: that of Hugging Face transformers."
)
_DIRECTION = flags.DEFINE_enum(
    "direction", None, ["l2r", "r2l"], "Which direction, of a model that writes both."
)


def main(bindings: list[str]) -> None:
    """Loads, converts and writes."""
    models = trained.load(bindings)
    if not _OUTPUT.value:
        raise UserError("--output is missing: which directory shall be made?")
    output = path_of(_OUTPUT.value)
    if output.exists():
        raise UserError(f"--output={output} exists already: remove it or name another")
    system = models.system
    if len(system.generators) > 1:
        raise UserError("--partner_workdir is not for this verb: export each model by itself")
    direction = _direction(models.experiment.streams)
    files = huggingface.export_files(
        models.experiment,
        system.generators[0].params,
        (models.workdir / "source.model").read_bytes(),
        (models.workdir / "target.model").read_bytes(),
        direction,
    )
    # transformers goes by this one.
    write_directory(output, files, last="config.json")
    print(f"Wrote the {direction} model of step {system.steps[0]} to {output}")
    if direction == "r2l":
        print("It writes from the end: reverse the tokens of its outputs before decoding them")


def _direction(streams: Streams) -> Direction:
    if _DIRECTION.value is None and len(streams.directions) > 1:
        raise UserError("this model writes both directions: choose one by --direction")
    if _DIRECTION.value not in (None, *streams.directions):
        raise UserError(
            f"--direction={_DIRECTION.value}, but this model writes {streams.directions[0]} alone"
        )
    return _DIRECTION.value or streams.directions[0]


if __name__ == "__main__":
    verb.run("bidi.export", main)
