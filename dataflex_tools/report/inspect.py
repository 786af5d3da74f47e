"""An artifact in words and as JSON: what it is, made from what, how big; scores, best and worst rows, or weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.manifest import MANIFEST, facet_of, read_manifest
from dataflex_tools.artifact.mixture import load_mixture
from dataflex_tools.artifact.plan import LoadedPlan, load_plan
from dataflex_tools.core.plan import Budget, stable_order
from dataflex_tools.core.printable import printable
from dataflex_tools.report.mixtures import mixture_facts, mixture_lines, run_lines

# N samples of the corpus

_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_BINS, _BAR = 16, 40
_SHOWN_DOMAINS = 40  # the largest; JSON has all
_TOP = 0.05  # the share that LESS's authors train on
_PREVIEW = 160  # characters of a row's text

TextOf = Callable[[int], str]


def summarise(folder: Path, *, text_of: TextOf | None = None, k: int = 5) -> dict[str, Any]:
    """Facts of an artifact of any kind as JSON values.

    `text_of(row)` gives a readable preview of a corpus row; without it the best and worst `k` rows come without text.
    Raises ArtifactError if the folder holds no finished artifact.
    """
    manifest = read_manifest(folder)
    files = manifest["files"]
    keys = (
        "kind", "facet", "method", "signal", "settings", "spec", "corpus", "model", "tokenizer", "parents", "stats",
        "licence", "created", "producer", "digest",
    )  # fmt: skip
    facts = {"path": str(folder)} | {key: manifest[key] for key in keys if manifest.get(key) is not None}
    facts["size"] = {
        "files": len(files) + 1,
        "bytes": sum(entry["bytes"] for entry in files) + (folder / MANIFEST).stat().st_size,
        "rows": sum(entry["rows"] or 0 for entry in files),
    }
    if manifest["kind"] != "plan":
        return facts
    if facet_of(manifest) == "mix":
        facts["mixture"] = mixture_facts(load_mixture(folder))
    else:
        plan = load_plan(folder)
        facts |= {
            "copies": plan.num_copies,
            "scores": _scores(plan.score_N),
            "domains": _domains(plan),
            **_extremes(plan, text_of, k),
        }
    return facts


def describe(folder: Path, *, text_of: TextOf | None = None, k: int = 5) -> str:
    """What `summarise` finds, as text for a terminal; one line ends each fact, no trailing newline."""
    facts = summarise(folder, text_of=text_of, k=k)
    lines = [printable(line) for line in (_headline(facts), *_origin(facts))]
    if "mixture" in facts:
        lines += mixture_lines(facts["mixture"])
    if facts["kind"] == "run":
        lines += run_lines(facts["stats"])
    lines += [f"warning    {text}" for text in facts.get("stats", {}).get("warnings", ()) if "scores" in facts]
    if "scores" in facts:
        copies = f"copies     {facts['copies']:,} rows repeat the content of others; a selection takes each content once"
        lines += [copies] if facts["copies"] else []
        lines += ["", *_score_lines(facts["scores"]), "", *_domain_lines(facts["domains"])]
        for title in ("best", "worst"):
            lines += ["", f"{title} rows", *map(_row_line, facts[title])] if facts[title] else []
    return "\n".join(lines)


def _scores(score_N: np.ndarray) -> dict[str, Any]:
    finite = score_N[np.isfinite(score_N)]
    result: dict[str, Any] = {"selectable": len(finite), "excluded": len(score_N) - len(finite)}
    if len(finite):
        counts, edges = np.histogram(finite, bins=_BINS)
        result |= {
            "mean": float(finite.mean()),
            "std": float(finite.std()),
            "distinct": len(np.unique(finite)),
            "quantiles": dict(zip(map(str, _QUANTILES), np.quantile(finite, _QUANTILES).tolist(), strict=True)),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }
    return result


def _domains(plan: LoadedPlan) -> list[dict[str, Any]]:
    chosen = np.zeros(len(plan), dtype=bool)
    counts_N = plan.counts_N
    if num_top := min(max(1, int(_TOP * counts_N.sum())), int(np.isfinite(plan.score_N[counts_N]).sum())):
        chosen[plan.pick(Budget(num_samples=num_top))] = True

    def sums(weight_N: np.ndarray) -> list[float]:
        return [float(x) for x in np.bincount(plan.domain_N, weights=weight_N, minlength=len(plan.domain_names))]

    finite_N = np.isfinite(plan.score_N)
    columns = (
        sums(np.ones(len(plan))), sums(plan.num_tokens_N), sums(chosen), sums(finite_N),
        sums(np.where(finite_N, plan.score_N, 0.0)),
    )  # fmt: skip
    return [
        {
            "domain": name,
            "rows": int(rows),
            "tokens": int(tokens),
            "share": rows / max(1, len(plan)),
            "mean_score": score / finite if finite else None,
            "share_of_top": top / num_top if num_top else None,
        }
        for name, rows, tokens, top, finite, score in zip(plan.domain_names, *columns, strict=True)
    ]


def _extremes(plan: LoadedPlan, text_of: TextOf | None, k: int) -> dict[str, list[dict[str, Any]]]:
    order = stable_order(plan.score_N)
    order = order[np.isfinite(plan.score_N[order]) & plan.counts_N[order]]
    num_best = min(k, len(order))
    num_worst = min(k, len(order) - num_best)  # a row is not shown twice
    chosen = {"best": order[:num_best], "worst": order[::-1][:num_worst]}
    return {title: [_row(plan, int(row), text_of) for row in rows] for title, rows in chosen.items()}


def _row(plan: LoadedPlan, row: int, text_of: TextOf | None) -> dict[str, Any]:
    fact = {
        "row": row,
        "score": float(plan.score_N[row]),
        "domain": plan.domain_names[plan.domain_N[row]],
        "num_tokens": int(plan.num_tokens_N[row]),
        "sample_id": plan.ids_N16[row].tobytes().hex(),
    }
    return fact | ({"text": text_of(row)} if text_of else {})


def _headline(facts: Mapping[str, Any]) -> str:
    size = facts["size"]
    what = facts.get("method") or facts.get("signal") or ""
    return (
        f"{facts['path']}: {'mixture' if 'mixture' in facts else facts['kind']} {what}".rstrip()
        + f", {size['rows']:,} rows, {size['files']} files, {_bytes(size['bytes'])}"
    )


def _origin(facts: Mapping[str, Any]) -> list[str]:
    lines = [f"created    {facts.get('created')} by flextools {facts.get('producer', {}).get('version')}"]
    corpus = facts.get("corpus") or {}
    for name, entry in corpus.get("tables", {}).items():
        lines.append(f"{name:10} {entry['path']} ({_short(entry)}), {corpus['runs']:,} runs")
    if "rows" in corpus:
        domains = corpus.get("domains") or []
        lines.append(f"corpus     {corpus['rows']:,} rows, {len(domains)} domains, fingerprint {_short(corpus)}")
    if model := facts.get("model"):
        lines.append(f"model      {model['name']} (weights {_short(model)})")
    if tokenizer := facts.get("tokenizer"):
        lines.append(f"tokenizer  {_short(tokenizer)}, template {tokenizer.get('template')}")
    settings = facts.get("settings") or (facts.get("spec") or {}).get("settings")
    if isinstance(settings, Mapping) and settings:
        lines.append("settings   " + ", ".join(f"{key}={value}" for key, value in settings.items()))
    lines += [f"from       {parent['path']} ({parent['digest'][:16]})" for parent in facts.get("parents", [])]
    return lines


def _short(fact: Mapping[str, Any]) -> str:
    return str(fact.get("fingerprint") or fact.get("sha256"))[:16]


def _score_lines(scores: Mapping[str, Any]) -> list[str]:
    head = f"scores     {scores['selectable']:,} selectable, {scores['excluded']:,} excluded"
    if not scores["selectable"]:
        return [head]
    quantiles = "  ".join(f"{float(q):.0%} {value:.4g}" for q, value in scores["quantiles"].items())
    lines = [
        f"{head}, mean {scores['mean']:.4g}, std {scores['std']:.4g}, {scores['distinct']:,} distinct",
        f"quantiles  {quantiles}",
    ]
    counts, edges = scores["histogram"]["counts"], scores["histogram"]["edges"]
    for low, count in zip(edges, counts, strict=False):
        bar = "#" * -(-count * _BAR // max(counts))
        lines.append(f"  {low:>11.4g} {bar:<{_BAR}} {count:,}")
    return lines


def _domain_lines(domains: list[dict[str, Any]]) -> list[str]:
    domains = [{**entry, "domain": printable(entry["domain"])} for entry in domains]
    width = max([len("domain"), *(len(entry["domain"]) for entry in domains)])
    lines = [f"{'domain':<{width}}  {'rows':>10} {'tokens':>13} {'share':>7} {'of best 5%':>10} {'mean score':>11}"]
    shown = sorted(domains, key=lambda entry: -entry["rows"])[:_SHOWN_DOMAINS]
    for entry in shown:
        mean = "-" if entry["mean_score"] is None else f"{entry['mean_score']:.4g}"
        top = "-" if entry["share_of_top"] is None else f"{entry['share_of_top']:.1%}"
        lines.append(
            f"{entry['domain']:<{width}}  {entry['rows']:>10,} {entry['tokens']:>13,} {entry['share']:>7.1%} "
            f"{top:>10} {mean:>11}"
        )
    return lines + ([f"and {len(domains) - len(shown)} more domains"] if len(domains) > len(shown) else [])


def _row_line(fact: Mapping[str, Any]) -> str:
    line = f"  row {fact['row']:,}  {fact['score']:.6g}  {printable(fact['domain'])}  {fact['num_tokens']:,} tokens"
    if text := " ".join(fact.get("text", "").split()):
        shown = text if len(text) <= _PREVIEW else text[:_PREVIEW] + "..."
        line += f"\n      {printable(shown)}"
    return line


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError
