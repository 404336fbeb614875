"""A run of bidi.train in small: letters to the same letters, upper case."""

import dataclasses
import pathlib
import random
import shutil

from bidi import experiment
from bidi.data.prepare import prepare
from bidi.training import loop

STEPS = 120

GIN = """
Data.directory = '{root}/data'
Data.source = @ParallelText()
Data.source_vocabulary = @letters/Vocabulary()
Data.target_vocabulary = @words/Vocabulary()
Data.max_source_length = 7
Data.max_target_length = 7
letters/Vocabulary.model_type = 'char'
words/Vocabulary.model_type = 'word'
ParallelText.source = {{
    'train': '{root}/train.in', 'validation': '{root}/validation.in', 'test': '{root}/test.in',
}}
ParallelText.target = {{
    'train': '{root}/train.out',
    'validation': '{root}/validation.out',
    'test': ['{root}/test.out', '{root}/test.other'],
}}
Streams.ways = 'both'
Batches.rows = 8
Batches.source_length = 8
Batches.target_length = 8
Batches.pack = False
Transformer.encoder_layers = 1
Transformer.decoder_layers = 1
Transformer.model_size = 16
Transformer.heads = 2
Transformer.feedforward_size = 16
Transformer.dropout = 0.0
Optimizer.learning_rate = 0.02
Optimizer.warmup_steps = 4
Training.steps = {steps}
Training.evaluate_every = 60
Training.checkpoint_every = 60
Training.log_every = 30
Search.coupling = 'none'
Search.max_length_factor = 1.0
Search.max_length_offset = 4
Evaluation.metric = 'wer'
Evaluation.batch_tokens = 128
Evaluation.samples = 3
"""

# What makes of it an experiment whose streams meet in the middle.
HALVES = [
    "Streams.layout = 'halves'",
    "Search.coupling = 'joint'",
    "Transformer.interaction = 'layers'",
]

# Among them one too long, one empty, one that the terminal might take for markup, and unknown
# letters.
TEST_SOURCES = ["abc", "e", "", "abcdeabcdeab", "[/b]", "cde", "edcba", "bb", "naïve"]


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """Workdirs, checkpoints at half of `STEPS` and at `STEPS`.

    Attributes:
        gin_file: of the run.
        data: the prepared data.
        both: the run, of both directions in one decoder.
        l2r: its parameters as those of a model of one direction.
        r2l: of the other.
    """

    gin_file: pathlib.Path
    data: pathlib.Path
    both: pathlib.Path
    l2r: pathlib.Path
    r2l: pathlib.Path


def make(root: pathlib.Path) -> TrainedRun:
    """Writes text, prepares it and trains."""
    draw = random.Random(0)
    for split, count in (("train", 200), ("validation", 16)):
        words = ["".join(draw.choices("abcde", k=draw.randint(1, 7))) for _ in range(count)]
        _write(root / f"{split}.in", words)
        _write(root / f"{split}.out", [" ".join(word.upper()) for word in words])
    _write(root / "test.in", TEST_SOURCES)
    _write(root / "test.out", [" ".join(source.upper()) or "A" for source in TEST_SOURCES])
    _write(root / "test.other", [" ".join(source[::-1].upper()) or "B" for source in TEST_SOURCES])

    gin_file = root / "run.gin"
    gin_file.write_text(GIN.format(root=root, steps=STEPS))
    loaded = experiment.load([gin_file], [])
    prepare(loaded.data)
    run = TrainedRun(gin_file, root / "data", root / "both", root / "l2r", root / "r2l")
    assert loop.train(loaded, run.both).finished
    for direction in ("l2r", "r2l"):
        workdir = shutil.copytree(run.both, root / direction)
        text = (workdir / "config.gin").read_text()
        assert text.count("Streams.ways = 'both'") == 1
        (workdir / "config.gin").write_text(
            text.replace("Streams.ways = 'both'", f"Streams.ways = '{direction}'")
        )
    return run


def _write(path: pathlib.Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
