"""Plans side by side: how much of what they pick they share, how alike they rank, and what their picks are made of."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.ids import first_occurrences, positions_of
from dataflex_tools.artifact.plan import LoadedPlan, load_plan
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.plan import Budget, select_rows
from dataflex_tools.core.printable import printable
from dataflex_tools.ops.agreement import doubling_edges, histogram, overlap, spearman
from dataflex_tools.report.tables import table

# K samples that are compared, P rows of a pick

FRACTIONS = (0.01, 0.05, 0.1, 0.25)
_SHOWN_DOMAINS = 20  # the largest; JSON has all


@dataclass(frozen=True)
class _Side:
    """One plan, cut down to the samples that are compared, in the same order for all plans."""

    name: str
    plan: LoadedPlan
    row_K: np.ndarray

    @property
    def score_K(self) -> np.ndarray:
        return self.plan.score_N[self.row_K]

    @property
    def num_tokens_K(self) -> np.ndarray:
        return self.plan.num_tokens_N[self.row_K]

    @property
    def num_selectable(self) -> int:
        return int(np.isfinite(self.score_K).sum())


def compare(folders: Sequence[Path], fractions: Sequence[float] = FRACTIONS) -> dict[str, Any]:
    """Plans compared pair by pair, as JSON values; a fraction is of the compared samples.

    Plans of one corpus are compared row by row; plans of different corpora on the samples (by content) that all of them
    hold, and the result says so (`samples`, `notes`). Raises ConfigError for fewer than two folders or a fraction
    outside (0, 1], ArtifactError for a folder that holds no finished plan, or if no sample is in all plans.
    """
    require(len(folders) >= 2, f"compare: found {len(folders)} artifacts, wanted at least 2; name the folders of two plans")
    require(len(fractions) > 0, "compare: no fraction given; give at least one, e.g. 0.05")
    budgets = [Budget(fraction=fraction) for fraction in fractions]
    plans = [load_plan(Path(folder)) for folder in folders]
    sides, is_same = _sides(plans)
    tokens_K = np.concatenate([side.num_tokens_K for side in sides])
    edges = doubling_edges(int(tokens_K.min()), int(tokens_K.max()))
    return {
        "plans": [_facts(side) for side in sides],
        "samples": {"compared": len(sides[0].row_K), "is_same_corpus": is_same},
        "notes": _notes(sides, is_same),
        "rank_correlation": [_correlation(a, b) for a, b in itertools.combinations(sides, 2)],
        "length_edges": edges.tolist(),
        "pool": [_made_of(side, np.arange(len(side.row_K)), edges) for side in sides],
        "budgets": [_at_budget(sides, budget, edges) for budget in budgets],
    }


def _sides(plans: Sequence[LoadedPlan]) -> tuple[list[_Side], bool]:
    """The plans under distinct names, and whether their corpora are the same."""
    short = [plan.folder.name for plan in plans]
    names = short if len(set(short)) == len(short) else [str(plan.folder) for plan in plans]
    require(len(set(names)) == len(names), f"compare: {', '.join(names)} name an artifact twice; give different ones")
    is_same = len({plan.manifest["corpus"]["fingerprint"] for plan in plans}) == 1
    if is_same:
        rows = [np.arange(len(plan)) for plan in plans]
    else:
        first_K = first_occurrences(plans[0].ids_N16)
        places = [positions_of(plans[0].ids_N16[first_K], plan.ids_N16) for plan in plans]
        is_common_K = np.all([place_K >= 0 for place_K in places], axis=0)
        rows = [place_K[is_common_K] for place_K in places]
    if len(rows[0]) == 0:
        sizes = ", ".join(f"{name} ({len(plan):,} rows)" for name, plan in zip(names, plans, strict=True))
        raise ArtifactError(f"no sample is in all of {sizes}; compare plans of corpora that overlap")
    return [_Side(name, plan, row_K) for name, plan, row_K in zip(names, plans, rows, strict=True)], is_same


def _facts(side: _Side) -> dict[str, Any]:
    manifest = side.plan.manifest
    return {
        "name": side.name, "path": str(side.plan.folder), "method": manifest["method"], "digest": manifest["digest"],
        "rows": len(side.plan), "selectable": side.num_selectable, "fingerprint": manifest["corpus"]["fingerprint"],
    }  # fmt: skip


def _notes(sides: Sequence[_Side], is_same: bool) -> list[str]:
    notes = []
    if not is_same:
        sizes = ", ".join(f"{side.name} {len(side.plan):,}" for side in sides)
        notes.append(
            f"the plans are of different corpora (rows: {sizes}): compared are the {len(sides[0].row_K):,} samples that "
            "all of them hold, duplicates once; fractions are of these"
        )
    if any((side.num_tokens_K != sides[0].num_tokens_K).any() for side in sides):
        notes.append("the plans count tokens differently (another tokenizer, template or cutoff): lengths differ for that")
    return notes


def _correlation(a: _Side, b: _Side) -> dict[str, Any]:
    both_K = np.isfinite(a.score_K) & np.isfinite(b.score_K)
    return {
        "plans": [a.name, b.name],
        "spearman": spearman(a.score_K[both_K], b.score_K[both_K]),
        "rows": int(both_K.sum()),
    }


def _at_budget(sides: Sequence[_Side], budget: Budget, edges: np.ndarray) -> dict[str, Any]:
    """`too_few` names the plans that cannot fill the budget; they have no pick at it."""
    num_compared = len(sides[0].row_K)
    count = len(select_rows(np.zeros(num_compared), np.ones(num_compared), budget))
    able = [side for side in sides if side.num_selectable >= count]
    picks = {side.name: select_rows(side.score_K, side.num_tokens_K, budget) for side in able}
    pairs = []
    for a, b in itertools.combinations(picks, 2):
        found = overlap(picks[a], picks[b])
        pairs.append({"plans": [a, b], "shared": found.num_shared, "share": found.share, "jaccard": found.jaccard})
    return {
        "fraction": budget.fraction,
        "num_samples": count,
        "share_by_chance": count / num_compared,
        "too_few": [side.name for side in sides if side.name not in picks],
        "pairs": pairs,
        "picks": [_made_of(side, picks[side.name], edges) for side in able],
    }


def _made_of(side: _Side, pick_P: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    tokens_P, domain_P = side.num_tokens_K[pick_P], side.plan.domain_N[side.row_K[pick_P]]
    count_D = np.bincount(domain_P, minlength=len(side.plan.domain_names))
    return {
        "plan": side.name,
        "rows": len(pick_P),
        "tokens": int(tokens_P.sum()),
        "domains": {name: int(count) for name, count in zip(side.plan.domain_names, count_D, strict=True) if count},
        "lengths": histogram(tokens_P, edges).tolist(),
    }


def compare_text(result: Mapping[str, Any]) -> str:
    """What `compare` found, as tables for a terminal; no trailing newline."""
    plans = [[p["name"], p["method"], f"{p['rows']:,}", f"{p['selectable']:,}", p["digest"][:16]] for p in result["plans"]]
    same = "the same corpus" if result["samples"]["is_same_corpus"] else "different corpora"
    parts = [
        f"{len(plans)} plans of {same}, {result['samples']['compared']:,} samples compared",
        *(printable(f"note: {note}") for note in result["notes"]),
        "",
        table(["plan", "method", "rows", "selectable", "digest"], plans, right=["rows", "selectable"]),
        "",
        _agreement_table(result),
    ]
    for budget in result["budgets"]:
        title = f"what the best {budget['fraction']:.4g} ({budget['num_samples']:,} samples) are made of"
        few = [f"{printable(name)} cannot fill this budget: too few rows can be selected" for name in budget["too_few"]]
        parts += ["", title, *few, "", *_made_of_tables(result, budget)]
    return "\n".join(parts)


def _agreement_table(result: Mapping[str, Any]) -> str:
    """Rank correlation of each pair, then the shared share and Jaccard index at each budget."""
    budgets = result["budgets"]
    columns = ["pair", "rank correlation", *(f"best {b['fraction']:.4g}" for b in budgets)]
    rows = []
    for entry in result["rank_correlation"]:
        cells = [_pair_cell(budget, entry["plans"]) for budget in budgets]
        rank = "-" if entry["spearman"] is None else f"{entry['spearman']:.3f}"
        rows.append([" & ".join(entry["plans"]), rank, *cells])
    rows.append(["by chance", "0", *(f"{budget['share_by_chance']:.1%}" for budget in budgets)])
    return "picks shared (Jaccard index)\n" + table(columns, rows, right=columns[1:])


def _pair_cell(budget: Mapping[str, Any], plans: Sequence[str]) -> str:
    for pair in budget["pairs"]:
        if pair["plans"] == plans:
            return f"{pair['share']:.1%} ({pair['jaccard']:.3f})"
    return "-"


def _made_of_tables(result: Mapping[str, Any], budget: Mapping[str, Any]) -> list[str]:
    columns = [{**result["pool"][0], "plan": "all"}, *budget["picks"]]
    names = [column["plan"] for column in columns]
    largest: dict[str, float] = {}  # share of each domain where it is largest
    for column in columns:
        for name, count in column["domains"].items():
            largest[name] = max(largest.get(name, 0.0), count / column["rows"])
    domains = sorted(largest, key=lambda name: (-largest[name], name))
    shown = domains[:_SHOWN_DOMAINS]
    by_domain = [[name, *(_share(c["domains"].get(name, 0), c["rows"]) for c in columns)] for name in shown]
    if len(domains) > len(shown):
        by_domain.append([f"and {len(domains) - len(shown)} more", *("" for _ in columns)])
    edges = result["length_edges"]
    by_length = [
        [_bin(low, high), *(_share(column["lengths"][place], column["rows"]) for column in columns)]
        for place, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    mean = ["mean", *(f"{column['tokens'] / column['rows']:,.1f}" for column in columns)]
    return [
        table(["domain", *names], by_domain, right=names),
        "",
        table(["tokens", *names], [*by_length, mean], right=names),
    ]


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if count else "-"


def _bin(low: int, high: int) -> str:
    return f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}"
