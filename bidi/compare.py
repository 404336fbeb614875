"""Is one evaluation better than another: python -m bidi.compare --a=A.json --b=B.json.

A and B are what bidi.evaluate wrote for the same split, each with its outputs beside it (A.txt): in
a workdir or anywhere else. Prints the difference of their error rates, and of BLEU or ROUGE-L
where that is the metric, with a paired bootstrap over the examples, and how far both err on the
same ones.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.table
from absl import flags
from etils import epath

from bidi import verb
from bidi.data.prepared import Prepared
from bidi.data.text import read_lines
from bidi.errors import UserError
from bidi.evaluation import metrics
from bidi.evaluation.config import EvaluationConfig, TokenKind
from bidi.evaluation.report import error_headings, separated
from bidi.evaluation.rouge import rouge_l_errors
from bidi.evaluation.significance import (
    Comparison,
    error_overlap,
    paired_bootstrap,
    paired_bootstrap_bleu,
)
from bidi.files import path_of

_A = flags.DEFINE_string("a", None, "A report of bidi.evaluate, with its outputs beside it.")
_B = flags.DEFINE_string("b", None, "Another one, of the same split.")
_SEED = 0
# Name, that of A and of B, and the difference.
_Row = tuple[str, float, float, Comparison]
# Names the examples in a report.
_DIGEST = "examples_sha256"


def main(bindings: list[str]) -> None:
    """Compares two reports."""
    if not (_A.value and _B.value):
        raise UserError("--a and --b must name two reports of bidi.evaluate")
    if flags.FLAGS.gin_file:
        raise UserError("--gin_file is not for this verb: --a has its config")
    path_a, path_b = path_of(_A.value), path_of(_B.value)
    # The data are those of A's config; B may have been made by another program.
    report, other = _report(path_a, "split", "config"), _report(path_b, "split")
    split = report["split"]
    if split != other["split"]:
        raise UserError(
            f"{path_a} is of {split}, {path_b} of {other['split']}: not the same examples"
        )
    loaded = verb.load([], bindings, {f"the config in {path_a}": report["config"]})
    kind = loaded.evaluation.tokens
    prepared = Prepared.open(loaded.data.directory)
    now = {_DIGEST: prepared.digest(split)}
    _check_examples({path_a: report, path_b: other, prepared.directory: now})
    references = [example.targets for example in prepared.examples(split)]
    a, b = (_outputs(path) for path in (path_a, path_b))
    if not len(a) == len(b) == len(references):
        raise UserError(
            f"{path_a} has {len(a)} outputs, {path_b} {len(b)}, the split {len(references)} "
            "examples: evaluate both on the same data"
        )
    table = rich.table.Table(title=f"{split}: A - B, percent points; 95 % interval")
    for heading in ("", "A", "B", "A - B", "interval", "p"):
        table.add_column(heading, justify="right")
    words, outputs = _separated(references, kind), _separated([a, b], kind)
    rates = _rates(outputs, words, loaded.evaluation)
    bleu = _bleu([a, b], references, kind) if loaded.evaluation.metric == "bleu" else ()
    for name, of_a, of_b, found in (*rates, *bleu):
        interval = f"[{found['low']:+.2f}, {found['high']:+.2f}]"
        numbers = (f"{of_a:.2f}", f"{of_b:.2f}")
        table.add_row(name, *numbers, f"{found['difference']:+.2f}", interval, f"{found['p']:.4f}")
    console = verb.console()
    console.print(table)
    overlap = error_overlap(*(metrics.word_errors(of, words) for of in outputs))
    console.print(
        f"Wrong in both {overlap['both']:.2f} %, only in A {overlap['only_a']:.2f} %, only in B "
        f"{overlap['only_b']:.2f} %; correlation {overlap['correlation']:.3f}",
        soft_wrap=True,
    )


def _rates(
    outputs: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    evaluation: EvaluationConfig,
) -> Iterator[_Row]:
    """Error rates of texts whose tokens are separated."""
    headings = error_headings(evaluation)
    rates = {headings["wer"]: metrics.word_errors, headings["per"]: metrics.token_errors}
    if evaluation.metric == "rouge":
        rates["100 - R-L"] = functools.partial(rouge_l_errors, kind=evaluation.tokens)
    for name, errors in rates.items():
        errors_a, errors_b = (errors(texts, references) for texts in outputs)
        found = paired_bootstrap(errors_a, errors_b, seed=_SEED)
        yield name, errors_a.percent, errors_b.percent, found


def _bleu(
    outputs: Sequence[Sequence[str]], references: Sequence[Sequence[str]], kind: TokenKind
) -> Iterator[_Row]:
    counts = [metrics.bleu_counts(texts, references, kind) for texts in outputs]
    bleu_a, bleu_b = (metrics.bleu_of(of.sum(axis=0)) for of in counts)
    yield "BLEU", bleu_a, bleu_b, paired_bootstrap_bleu(*counts, seed=_SEED)


def _separated(lists: Sequence[Sequence[str]], kind: TokenKind) -> list[list[str]]:
    return [[separated(text, kind) for text in texts] for texts in lists]


def _report(path: epath.Path, *needed: str) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a report, WORKDIR/eval/NAME.json")
    try:
        report = json.loads(path.read_bytes())
        texts = {key: report[key] for key in needed}
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError(f"no texts: {texts}")
        return report
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no report of bidi.evaluate ({error!r})") from None


def _outputs(report: epath.Path) -> list[str]:
    path = report.with_suffix(".txt")
    if not path.is_file():
        raise UserError(f"{path} is missing: the outputs, which bidi.evaluate writes too")
    return list(read_lines(path))


def _check_examples(reports: Mapping[epath.Path, Mapping[str, Any]]) -> None:
    """Those made before reports named their examples are taken at their word."""
    known = {path: report[_DIGEST] for path, report in reports.items() if _DIGEST in report}
    if len(set(known.values())) > 1:
        raise UserError(
            "not the same examples: evaluate both on the same data\n"
            + "\n".join(f"  {path}: {digest}" for path, digest in known.items())
        )


if __name__ == "__main__":
    verb.run("bidi.compare", main)
