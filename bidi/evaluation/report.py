"""What an evaluation found, as JSON and as a table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from bidi.data.sources import Example
from bidi.evaluation import metrics, rouge
from bidi.evaluation.config import EvaluationConfig, TokenKind
from bidi.evaluation.found import Found, Hypothesis
from bidi.evaluation.generate import Generator

# Metrics that the table shows, and their headings.
_COLUMNS = {"bleu": "BLEU", "chrf": "chrF"}
_COLUMNS_OF_TITLES = {
    "rouge1": "R-1",
    "rouge2": "R-2",
    "rougeL": "R-L",
    "bleu": "BLEU",
    "copied": "copied",
    "novelty": "novel",
}


def scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], kind: TokenKind = "words"
) -> dict[str, Any]:
    """All metrics of a list of outputs; percent but for the length ratio and the signatures."""
    # What these metrics count is separated by white space.
    written = [separated(text, kind) for text in hypotheses]
    right = [[separated(text, kind) for text in texts] for texts in references]
    wrong = metrics.word_error_rate(written, right)
    return {
        "wer": wrong,
        "per": metrics.token_error_rate(written, right),
        "exact_match": 100.0 - wrong,
        **metrics.bleu_chrf(hypotheses, references, kind),
        "length_ratio": metrics.length_ratio(written, right),
        "positional_accuracy": metrics.positional_accuracy(
            [text.split() for text in written],
            [[text.split() for text in texts] for texts in right],
        ),
    }


def title_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str],
    kind: TokenKind,
) -> dict[str, Any]:
    """What is measured of titles and summaries besides `scores`; percent but for the signature."""
    return {
        **rouge.rouge(hypotheses, references, kind),
        **taken_over(hypotheses, sources, kind),
    }


def taken_over(texts: Sequence[str], sources: Sequence[str], kind: TokenKind) -> dict[str, float]:
    """How much of texts is their sources'; percent."""
    return {
        "copied": rouge.copied(texts, sources, kind),
        "novelty": rouge.novelty(texts, sources, kind),
    }


def separated(text: str, kind: TokenKind) -> str:
    """A text with white space between its tokens."""
    return " ".join("".join(text.split())) if kind == "characters" else text


def results(
    generator: Generator,
    examples: Sequence[Example],
    found: Sequence[Found],
    chosen: Sequence[Hypothesis | None],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Metrics of what was chosen, and of each direction's best alone; how often each won.

    `won` and `unfinished` are percent of the outputs: an empty source has none. Of titles,
    `references` says what the first ones take over from their sources.
    """
    references = [example.targets for example in examples]
    sources = [example.source for example in examples]

    def score(hypotheses: Sequence[Hypothesis | None]) -> dict[str, Any]:
        texts = [generator.text(hypothesis) for hypothesis in hypotheses]
        result = scores(texts, references, config.tokens)
        if config.metric == "rouge":
            result |= title_scores(texts, references, sources, config.tokens)
        return result

    directions = {}
    for direction in found[0].n_best:
        best = [one.n_best[direction][0] if one.n_best[direction] else None for one in found]
        directions[direction] = score(best)
    outputs = [hypothesis for hypothesis in chosen if hypothesis]
    won = Counter(hypothesis.direction for hypothesis in outputs)
    unfinished = sum(not hypothesis.finished for hypothesis in outputs)
    result = {
        "metrics": score(chosen),
        "directions": directions,
        "won": {name: 100 * won[name] / max(len(outputs), 1) for name in directions},
        "unfinished": 100 * unfinished / max(len(outputs), 1),
    }
    if config.metric == "rouge":
        right = [texts[0] for texts in references]
        result["references"] = taken_over(right, sources, config.tokens)
    return result


def samples(
    generator: Generator,
    examples: Sequence[Example],
    found: Sequence[Found],
    chosen: Sequence[Hypothesis | None],
) -> list[dict[str, Any]]:
    """What each end wrote for each example, and which was chosen."""
    return [
        {
            "source": example.source,
            "references": list(example.targets),
            **{
                name: generator.text(listed[0]) if listed else ""
                for name, listed in one.n_best.items()
            },
            "chosen": generator.text(hypothesis),
            "won": hypothesis.direction if hypothesis else None,
        }
        for example, one, hypothesis in zip(examples, found, chosen, strict=True)
    ]


def error_headings(config: EvaluationConfig) -> dict[str, str]:
    """What `wer` and `per` are called: in pronunciation a word is a whole output."""
    if config.metric == "wer":
        return {"wer": "WER", "per": "PER"}
    return {"wer": "inexact", "per": "CER" if config.tokens == "characters" else "WER"}


def print_results(
    report: dict[str, Any], config: EvaluationConfig, console: rich.console.Console
) -> None:
    """The gist of a report of `bidi.evaluate`."""
    systems = {"chosen": report["metrics"], **report["directions"]}
    if len(report["directions"]) == 1:
        systems = {"chosen": report["metrics"]}
    title = f"{report['split']}: {report['sentences']} sources"
    # Narrow: eleven columns fit eighty characters.
    table = rich.table.Table(title=title, box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    titles = "rouge1" in report["metrics"]
    shown = _COLUMNS_OF_TITLES if titles else error_headings(config) | _COLUMNS
    for heading in ("", *shown.values(), "first 4", "last 4", "length", "won"):
        table.add_column(heading, justify="right")
    for name, row in systems.items():
        position = row["positional_accuracy"]
        values = [*(row[key] for key in shown), position["first_4"], position["last_4"]]
        cells = [f"{value:.2f}" for value in values]
        won = f"{report['won'][name]:.1f} %" if name in report["won"] else ""
        table.add_row(name, *cells, f"{row['length_ratio']:.3f}", won)
    if right := report.get("references"):
        table.add_row("right", *(f"{right[key]:.2f}" if key in right else "" for key in shown))
    console.print(table)
    for sample in report["samples"]:
        lines = [rich.text.Text(sample["source"], style="bold")]
        for name in report["directions"]:
            mark = "*" if sample["won"] == name else " "
            lines.append(rich.text.Text(f"  {mark} {name}  {sample[name]}"))
        if report["agreement"]:
            lines.append(rich.text.Text(f"    chosen by both: {sample['chosen']}"))
        lines.append(rich.text.Text(f"    right: {' | '.join(sample['references'])}"))
        console.print(*lines, sep="\n")
