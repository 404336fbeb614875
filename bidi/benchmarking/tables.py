"""What was measured, as tables on the terminal."""

from collections.abc import Iterator
from typing import Any

import rich.box
import rich.console
import rich.table

from bidi.benchmarking.rounds import Spread


def print_updates(report: dict[str, Any], console: rich.console.Console) -> None:
    """A report of `updates.measure`."""
    systems = report["systems"]
    table = _table("Training: median (least .. most)", *systems)
    for cells in zip(*(_system_lines(system) for system in systems.values()), strict=True):
        table.add_row(cells[0][0], *(value for _, value in cells))
    console.print(table)
    for product, rate in report["products"].items():
        console.print(
            f"matrix product {product} on all devices: {_giga(rate)} GFLOP/s", soft_wrap=True
        )
    console.print(
        f"time of an update, both / L2R alone: {report['ratio']:.3f}; bound by operations "
        f"{report['bound']:.3f}, time over bound {report['percent_over_bound']:+.1f} %",
        soft_wrap=True,
    )
    _print_memory(report, console)


def _system_lines(system: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "ms/update", str(system["milliseconds_per_update"])
    yield "target tokens/s", str(system["tokens_per_second"])
    for direction in ("l2r", "r2l"):
        its_own = system["tokens_per_second_by_direction"].get(direction, "")
        yield f"  {direction}", str(its_own)
    yield "model GFLOP/s", _giga(system["flops_per_second"])
    for product, share in system["share_of_product"].items():
        yield f"  % of {product}", _percent(share)
    if system["share_of_peak"] is not None:
        yield "  % of the chips' peak", _percent(system["share_of_peak"])
    for side, padding in system["padding"].items():
        yield f"{side} padding, %", f"{100 * padding:.1f}"
    yield "batches/s, iterator alone", str(system["batches_per_second"])
    yield "  a batch's time, % of an update's", _percent(system["share_of_input"])
    yield "ms/update waiting, at most", str(system["milliseconds_waited"])
    yield "compilation, s", f"{system['compile_seconds']:.1f}"
    yield "program's room, MB a device", _megabytes(system["program_memory"]["temporary"])


def print_searches(report: dict[str, Any], console: rich.console.Console) -> None:
    """A report of `searches.measure`, with what `searches.shares` found under `shares`."""
    _print_alone(report["rows"], console)
    _print_batched(report["rows"], console)
    _print_sizes(report["rows"], console)
    for row, by_batch in report["shares"].items():
        for batch, shares in by_batch.items():
            shown = ", ".join(f"{part} {100 * share:.1f}" for part, share in shares.items())
            console.print(f"% of the devices' time, {row}, {batch}: {shown}", soft_wrap=True)
    _print_memory(report, console)


def print_article(report: dict[str, Any], console: rich.console.Console) -> None:
    """A report of `product.measure`."""
    table = _table("Su's search", "ms/sentence", "times as fast", "same, %")
    for row in report["rows"]:
        table.add_row(
            row["name"],
            f"{row['milliseconds_per_sentence']:,.1f}",
            f"{row['times_as_fast']:,.1f}",
            f"{100 * row['same']:.1f}",
        )
    console.print(table)


def print_loss(report: dict[str, Any], console: rich.console.Console) -> None:
    """A report of `losses.measure`."""
    rows, ways, steps, size, vocabulary = report["shape"]
    table = _table(
        f"The loss and its gradient on one device: {rows * ways * steps:,} tokens of size {size} "
        f"({report['dtype']}), vocabulary {vocabulary:,}",
        *("ms", "least .. most", "temporary, MB", "read, MB", "compiled, s"),
    )
    for name, form in report["forms"].items():
        time, memory = form["milliseconds"], form["memory"]
        table.add_row(
            name,
            f"{time.median:,.1f}",
            f"{time.least:,.1f} .. {time.most:,.1f}",
            *(_megabytes(memory[part]) for part in ("temporary", "arguments")),
            f"{form['compile_seconds']:.1f}",
        )
    console.print(table)
    console.print(f"time in chunks / with whole logits: {report['ratio']:.3f}", soft_wrap=True)


def _print_alone(rows: list[dict[str, Any]], console: rich.console.Console) -> None:
    headings = ("ms/sentence", "least .. most", "tokens/s", "of L2R's speed", "compiled, s")
    table = _table("Search, one sentence at a time", *headings)
    for row in rows:
        at = row["batches"]["one"]
        time, ratio = at["milliseconds_per_sentence"], at["ratio_to_l2r"]
        table.add_row(
            row["name"],
            f"{time.median:.2f}",
            f"{time.least:.2f} .. {time.most:.2f}",
            f"{at['tokens_per_second'].median:,.0f}",
            "" if ratio is None else f"{ratio.median:.3f}",
            f"{at['compile_seconds']:.1f}",
        )
    console.print(table)


def _print_batched(rows: list[dict[str, Any]], console: rich.console.Console) -> None:
    headings = ("batch", "sentences/s", "least .. most", "tokens/s", "of L2R's", "needed, %")
    table = _table("Search in batches, each row at its best size", *headings)
    for row in rows:
        at, ratio = row["batches"][row["best"]], row["ratio_to_l2r_at_best"]
        rate = at["sentences_per_second"]
        table.add_row(
            row["name"],
            row["best"],
            f"{rate.median:,.1f}",
            f"{rate.least:,.1f} .. {rate.most:,.1f}",
            f"{at['tokens_per_second'].median:,.0f}",
            "" if ratio is None else f"{ratio:.3f}",
            f"{100 * at['row_steps_needed'] / at['row_steps_run']:.1f}",
        )
    console.print(table)
    console.print(
        "needed: of the steps that batches ran, those before their sentences were done; sentences "
        "that the cache had too little room for were searched twice, which is in the time",
        soft_wrap=True,
    )


def _print_sizes(rows: list[dict[str, Any]], console: rich.console.Console) -> None:
    sizes = [size for size in rows[0]["batches"] if size != "one"]
    table = _table("Sentences/s by size of batch in source tokens, * best", *sizes)
    for row in rows:
        rates = (row["batches"][size]["sentences_per_second"].median for size in sizes)
        cells = (
            f"{rate:,.1f}{'*' if size == row['best'] else ''}"
            for size, rate in zip(sizes, rates, strict=True)
        )
        table.add_row(row["name"], *cells)
    console.print(table)


def print_compiled(report: dict[str, Any], console: rich.console.Console) -> None:
    """What `compiled.update` and `compiled.search` say, of the programs of `bidi.compile`."""
    programs = report["programs"]
    columns = {name: dict(_compiled_lines(one)) for name, one in programs.items()}
    table = _table(f"{report['topology']} ({report['chip']}): on each device", *columns)
    for line in dict.fromkeys(line for lines in columns.values() for line in lines):
        table.add_row(line, *(lines.get(line, "") for lines in columns.values()))
    console.print(table)
    for name, one in programs.items():
        if "why" in one:
            console.print(f"{name}: {one['why']}", soft_wrap=True)


def _compiled_lines(one: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "devices", str(one["devices"])
    for part, size in one["memory"].items():
        yield f"{part}, MB", "?" if size is None else _megabytes(size)
    yield "fits", "yes" if one["fits"] else "NO"
    if "compile_seconds" in one:
        yield "compilation, s", f"{one['compile_seconds']:,.1f}"
    if "work" not in one:
        return
    work, roofline = one["work"], one["roofline"]
    yield "matrix products, GFLOP", f"{work['flops'] / 1e9:,.1f}"
    if "flops_needed" in one:
        yield "  needed by arithmetic", f"{one['flops_needed'] / 1e9:,.1f}"
    yield "main memory traffic, MB", _megabytes(work["bytes"])
    yield "kernels", f"{work['kernels']:,.0f}"
    if work["open_loops"] == 1:
        yield "  in a round of the loop", f"{work['open_kernels']:,.0f}"
    for kind, collective in work["collectives"].items():
        yield f"{kind}: how many", f"{collective['count']:,.0f}"
        yield f"{kind}: of arrays of, MB", _megabytes(collective["bytes"])
        yield f"{kind}: sent, MB", _megabytes(collective["sent"])
    for limit in ("compute", "memory", "interconnect"):
        yield f"ms at least by {limit}", f"{1000 * roofline[limit]:,.3f}"
    yield "bound by", roofline["bound"]
    for what in ("target_tokens", "sentences"):
        if what in one:
            yield f"{what.replace('_', ' ')}/s at most", f"{one[what] / roofline['seconds']:,.0f}"
    if "rounds" in one:
        yield "rounds of the loop, as counted", f"{one['rounds']:,}"


def _table(title: str, *headings: str) -> rich.table.Table:
    """Numbers under headings, to the right of what each row is called."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _print_memory(report: dict[str, Any], console: rich.console.Console) -> None:
    memory = report["memory"]
    console.print(f"memory at most, {memory['what']}: {_megabytes(memory['bytes'])} MB")


def _giga(rate: Spread) -> str:
    return str(Spread(rate.median / 1e9, rate.least / 1e9, rate.most / 1e9))


def _percent(share: Spread) -> str:
    return f"{100 * share.median:.1f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
