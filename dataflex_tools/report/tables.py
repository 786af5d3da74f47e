"""Plain-text tables for the terminal."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex_tools.core.printable import printable


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> str:
    """Aligned text; columns named in `right` are right-aligned. Wide cells fold on a terminal.

    Names and cells may come from data: they are shown as they are, neither as control characters nor as markup.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        grid.add_column(Text(printable(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    out = io.StringIO()
    Console(file=out, width=140, color_system=None).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def losses_table(result: Mapping[str, Any]) -> str:
    """Evaluation results: a row per group, then all tokens together, the mean over groups and the worst of them."""
    rows = [
        [
            name,
            f"{item['samples']:,}",
            f"{item['tokens']:,}",
            f"{item['loss']:.4f}",
            f"{item['perplexity']:,.2f}",
            _bits(item),
        ]
        for name, item in [*result["groups"].items(), ("ALL", result["all"])]
    ]
    rows.append(["macro mean", "", "", f"{result['macro_loss']:.4f}", "", ""])
    rows.append([f"worst: {result['worst']}", "", "", f"{result['groups'][result['worst']]['loss']:.4f}", "", ""])
    names = ["group", "samples", "label tokens", "loss", "perplexity", "bits/byte"]
    return table(names, rows, right=names[1:])


def runs_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Perplexities of several runs: a row per run, ALL and each group, the smallest of a column marked."""
    groups = list(dict.fromkeys(name for result in results.values() for name in result["groups"]))
    names = ["ALL", *groups]
    values = {
        run: [result["all"]["perplexity"], *(result["groups"].get(name, {}).get("perplexity") for name in groups)]
        for run, result in results.items()
    }
    best = [min(filter(None, column)) for column in zip(*values.values(), strict=True)]
    rows = [
        [run, *("" if value is None else f"{value:,.2f}{'*' if value == least else ' '}" for value, least in zip(
            row, best, strict=True)), f"{results[run]['macro_loss']:.4f}"]
        for run, row in values.items()
    ]  # fmt: skip
    note = "perplexity on held-out text, * smallest of its column; macro loss: mean over domains, nats per token"
    if len({result["data"] for result in results.values()}) > 1:
        note += "\nnote: the runs were evaluated on different text, so the numbers do not compare; give all the same --data"
    return f"{table(['run', *names, 'macro loss'], rows, right=[*names, 'macro loss'])}\n\n{note}"


def _bits(item: Mapping[str, Any]) -> str:
    return f"{item['bits_per_byte']:.4f}" if item["bits_per_byte"] is not None else ""


def methods_table(methods: Sequence[Mapping[str, Any]]) -> str:
    """A row per method, selectors with the signals they need, mixers with what they observe; one kind after the other."""
    rows = [
        [m["name"], m["kind"], ", ".join([*m["signals"], *m["observes"]]) or "none", m["cost"], m["paper"]]
        for m in sorted(methods, key=lambda m: m["kind"], reverse=True)
    ]
    return table(["method", "kind", "needs or observes", "cost", "paper"], rows)


def estimate_table(estimate: Mapping[str, Any]) -> str:
    """What a dry run found: a row per part of the work, then the totals."""
    rows = [
        [part["part"], part["what"], _bytes(part.get("bytes", 0)), _seconds(part.get("seconds", 0.0))]
        for part in estimate["parts"]
    ]
    text = table(["part", "to do", "disk", "time"], rows, right=["disk", "time"])
    return (
        f"{text}\n\nabout {_seconds(estimate['seconds']) or '0 s'}, {_bytes(estimate['disk_bytes']) or 'no'} disk, "
        f"{_bytes(estimate['memory_bytes']) or 'little'} memory before activations (estimated; nothing was written)"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count else ""
        count /= 1024
    return f"{count:.1f} TiB"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return "< 1 s" if seconds else ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
