"""The answer of `flextools bench-select` as text: a table of arms, and a sentence per method."""

from collections.abc import Mapping
from typing import Any

from dataflex_tools.core.printable import printable
from dataflex_tools.report.tables import estimate_table, table

_COLUMNS = {  # title: (key, number format)
    "target loss": ("target_loss", ".4f"), "other loss": ("other_loss", ".4f"), "target share": ("target_share", ".0%"),
    "samples": ("samples", ",.0f"), "tokens": ("tokens", ",.0f"), "steps": ("steps", ",.0f"), "seconds": ("seconds", ",.0f"),
}  # fmt: skip
_FEW = 5  # seeds up to which an interval says more than it knows


def cell(value: Mapping[str, Any] | None, pattern: str) -> str:
    """A mean with its standard deviation where there is one, "-" for None."""
    if value is None:
        return "-"
    return f"{value['mean']:{pattern}}" + (f" +- {value['std']:{pattern}}" if value["std"] else "")


def bench_text(result: Mapping[str, Any]) -> str:
    """What a finished bench found; no trailing newline."""
    recipe, arms = result["recipe"], result["arms"]
    columns = {title: item for title, item in _COLUMNS.items() if any(arm[item[0]] is not None for arm in arms)}
    rows = []
    for arm in arms:
        first, *rest = (cell(arm[key], pattern) for key, pattern in columns.values())
        versus = arm["versus"].get("random")
        rows.append([arm["name"], first, _interval(versus) if versus else "-", *rest])
    titles = ["trained on", *list(columns)[:1], "against random", *list(columns)[1:]]
    num_seeds = recipe["seeds"]
    lines = [
        f"mean +- standard deviation over {num_seeds} seeds; losses in nats per answer token, lower is better; target: "
        + printable(", ".join(recipe["target_groups"])),
        *(printable(f"note: {note}") for note in result["notes"]),
        "",
        table(titles, rows, right=titles[1:]),
        "",
        *(_answer(arm, arms) for arm in arms if not arm["is_control"]),
    ]
    return "\n".join([*lines, *_caution(num_seeds)])


def bench_mix_text(result: Mapping[str, Any]) -> str:
    """What a finished bench of mixers found: perplexities in the order ALL, domains, then weights; no trailing newline."""
    arms, groups = result["arms"], list(result["arms"][0]["groups"])
    digits = ",.0f" if max(arm["all"]["mean"] for arm in arms) >= 100 else ",.2f"
    lines = [
        [arm["name"], cell(arm["all"], digits), *(cell(arm["groups"][name], digits) for name in groups),
         cell(arm["macro_loss"], ".3f"), _interval(arm["versus"]) if arm["versus"] else "-"]
        for arm in arms
    ]  # fmt: skip
    titles = ["mixture", "ALL", *groups, "macro loss", f"against {result['recipe']['baseline']}"]
    weights = [[name, *(f"{given[group]:.3f}" for group in groups)] for name, given in result["weights"].items()]
    seeds = result["recipe"]["seeds"]
    return "\n".join([
        f"perplexity on held-out text, mean +- standard deviation over {seeds} seeds; macro loss: mean over domains, nats",
        "", table(titles, lines, right=titles[1:]), "",
        "proportions, mean over the steps of a training", "", table(["mixture", *groups], weights, right=groups),
        "", *_caution(seeds),
    ])  # fmt: skip


def _caution(num_seeds: int) -> list[str]:
    """What to think of so many seeds."""
    if num_seeds == 1:
        return ["one seed tells no gain from luck: set seeds to 3 or more"]
    few = f"in brackets: 95 % of resampled means; of {num_seeds} seeds such an interval is too narrow"
    return [few] if num_seeds <= _FEW else []


def _interval(versus: Mapping[str, Any]) -> str:
    text = f"{versus['mean']:+.4f}"
    return text if versus["low"] is None else f"{text} [{versus['low']:+.4f}, {versus['high']:+.4f}]"


def _answer(arm: Mapping[str, Any], arms: list[Mapping[str, Any]]) -> str:
    """Against which controls it wins; those that imitate another method's lengths are left out."""
    own = {f"random_length_matched_{other['name']}" for other in arms} - {f"random_length_matched_{arm['name']}"}
    found = []
    for name, versus in arm["versus"].items():
        if name in own:
            continue
        if versus["low"] is None:
            verdict = "is below" if versus["mean"] < 0 else "is not below"
        elif versus["high"] < 0:
            verdict = "beats"
        else:
            verdict = "loses to" if versus["low"] > 0 else "cannot be told from"
        found.append(f"{verdict} {name} ({_interval(versus)})")
    return f"{arm['name']} {' and '.join(found)}"


def bench_estimate_text(estimate: Mapping[str, Any]) -> str:
    """What a dry run of a bench found."""
    parts = [f"== {name} (score)\n{estimate_table(item)}\n" for name, item in estimate["scores"].items()]
    return "\n".join([*parts, f"then {estimate['trainings']} trainings, and an evaluation of each"])
