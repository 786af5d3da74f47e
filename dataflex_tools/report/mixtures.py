"""Mixtures in words and as JSON: what a mixture gives each domain and how it got there; mixtures side by side."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.manifest import facet_of, read_manifest
from dataflex_tools.artifact.mixture import LoadedMixture, load_mixture, natural_share
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.mixing import MixState
from dataflex_tools.core.printable import printable
from dataflex_tools.report.tables import table

# K domains, S entries of a schedule

_SHOWN_DOMAINS = 40  # the largest; JSON has all


def is_mixture(folder: Path) -> bool:
    """Whether a folder holds a mixture. Raises ArtifactError if it holds no finished artifact."""
    manifest = read_manifest(folder)
    return manifest.get("kind") == "plan" and facet_of(manifest) == "mix"


def are_mixtures(folders: Sequence[Path]) -> bool:
    """Whether all folders hold mixtures, False if none does. Raises ConfigError, with the names, for some of each."""
    found = {str(folder): is_mixture(folder) for folder in folders}
    if len(set(found.values())) > 1:
        mixtures = ", ".join(name for name, is_mix in found.items() if is_mix)
        others = ", ".join(name for name, is_mix in found.items() if not is_mix)
        raise ConfigError(f"compare: {mixtures} mixes domains and {others} does not; compare artifacts of one kind")
    return all(found.values())


def mixture_facts(loaded: LoadedMixture) -> dict[str, Any]:
    """Weights of each domain after the last step beside its natural share, entropy, warnings, schedule and trajectory.

    `ratio`: weight over natural share; None, as `natural`, where the share is not known, or is 0.
    """
    mixture, stats = loaded.mixture, loaded.manifest["stats"]
    found = natural_share(loaded.manifest, mixture.names)
    shares: list[float | None] = found[0].tolist() if found else [None] * len(mixture.names)
    weights = mixture.weight_SK[-1].tolist()
    return {
        "domains": [
            {"domain": name, "natural": share, "weight": weight, "ratio": weight / share if share else None}
            for name, share, weight in zip(mixture.names, shares, weights, strict=True)
        ],
        "natural_of": found[1] if found else None,
        **{key: stats[key] for key in ("entropy", "entropy_share", "schedule", "warnings")},
        "facts": stats.get("facts", {}),
        "trajectory": _trajectory(mixture.names, mixture.trajectory),
    }


def mixture_lines(facts: Mapping[str, Any]) -> list[str]:
    """What `mixture_facts` found, as lines for a terminal."""
    entries, last = facts["schedule"]["entries"], facts["schedule"]["last_step"]
    share = facts["entropy_share"]
    of_most = "" if share is None else f", {share:.1%} of the most that {len(facts['domains'])} domains can have"
    lines = [f"warning    {text}" for text in facts["warnings"]]
    lines += [f"{name:10} {_shown(value)}" for name, value in facts["facts"].items() if name not in _ELSEWHERE]
    lines = [printable(line) for line in lines]
    lines.append(f"entropy    {facts['entropy']:.4g} nats{of_most}")
    steps = f"{entries:,} entries, the last from optimizer step {last:,} on" if entries > 1 else "the same at every step"
    lines += [f"weights    {steps}", "", _domain_table(facts["domains"], facts["natural_of"])]
    if trajectory := facts["trajectory"]:
        lines += ["", _trajectory_table(trajectory)]
    return lines


def run_lines(stats: Mapping[str, Any]) -> list[str]:
    """What a training came to, as lines for a terminal: steps, what it was shown of each domain, and what was capped."""
    lines = [
        f"trained    {stats['steps']:,} steps, {stats['consumed_samples']:,} samples drawn from "
        f"{stats['selected_rows']:,} rows of {stats['selected_tokens']:,} tokens"
    ]
    if not (domains := stats.get("mixture")):
        return lines
    lines += [f"capped     {name}: {_shown(fact)}" for name, fact in (stats.get("capped") or {}).items()]
    columns = ["domain", "samples", "of samples", "of tokens", "epochs"]
    largest = sorted(domains.items(), key=lambda item: -item[1]["token_share"])
    rows = [
        [name, f"{d['samples']:,}", _percent(d["row_share"]), _percent(d["token_share"]), f"{d['epochs']:.3g}"]
        for name, d in largest[:_SHOWN_DOMAINS]
    ]
    return [*lines, "", table(columns, rows + _rest(len(domains), columns), right=columns[1:])]


_ELSEWHERE = ("entropy", "warning", "warnings")  # facts that have lines of their own


def _shown(value: Any) -> str:
    """A fact for people: numbers short, names with their numbers."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fit_text(result: Mapping[str, Any]) -> str:
    """What `flextools fit` found, for a terminal; no trailing newline."""
    facts, natural = result["facts"], result["natural"]
    best = facts["best_run"]
    predictions = [
        [title, f"{facts[key]:.4f}", "{:.4f} to {:.4f}".format(*facts[f"{key}_interval"])]
        for title, key in (("mixture", "predicted"), ("natural", "predicted_natural"))
    ]
    predictions.append([f"best run, {best['run']}", f"{best['target']:.4f}", "measured"])
    domains = [
        {"domain": name, "natural": natural[name], "weight": weight, "ratio": weight / natural[name]}
        for name, weight in result["weights"].items()
    ]
    lines = [*(f"warning: {text}" for text in result["warnings"]), *result["notes"], ""]
    lines += [_domain_table(domains, None), ""]
    lines += [table(["target", "predicted", "95 % of runs there"], predictions, right=["predicted"]), ""]
    judged = {key: facts[key] for key in ("spearman", "rmse", "regret", "optimism")}
    lines.append(f"of runs predicted by fits without them: {_shown(judged)}")
    if free := facts.get("unconstrained"):
        lines.append(f"without kl and target_tokens: {_shown(free)}")
    return "\n".join(lines if result["out"] is None else [*lines, "", f"{result['out']}  {result['digest']}"])


def _trajectory(names: Sequence[str], states: Sequence[MixState]) -> dict[str, Any] | None:
    """First, mean and last weights; the mean is over the states, the start included."""
    if not states:
        return None
    weight_SK = np.stack([state.weight_K for state in states])
    columns = {"first": weight_SK[0], "mean": weight_SK.mean(axis=0), "last": weight_SK[-1]}
    return {
        "states": len(states),
        "first_step": states[0].step,
        "last_step": states[-1].step,
        "domains": [
            {"domain": name, **{key: float(weight_K[code]) for key, weight_K in columns.items()}}
            for code, name in enumerate(names)
        ],
    }


def _domain_table(domains: Sequence[Mapping[str, Any]], natural_of: str | None) -> str:
    natural = f"natural ({natural_of})" if natural_of else "natural"
    columns = ["domain", natural, "weight", "ratio"]
    shown = sorted(domains, key=lambda entry: -entry["weight"])[:_SHOWN_DOMAINS]
    rows = [
        [entry["domain"], _percent(entry["natural"]), _percent(entry["weight"]), _times(entry["ratio"])] for entry in shown
    ]
    return table(columns, rows + _rest(len(domains), columns), right=columns[1:])


def _trajectory_table(trajectory: Mapping[str, Any]) -> str:
    title = f"trajectory: {trajectory['states']:,} states, optimizer steps {trajectory['first_step']:,} to "
    columns = ["domain", "first", "mean", "last"]
    domains = sorted(trajectory["domains"], key=lambda entry: -entry["last"])
    rows = [[entry["domain"], *(_percent(entry[key]) for key in columns[1:])] for entry in domains[:_SHOWN_DOMAINS]]
    return f"{title}{trajectory['last_step']:,}\n" + table(columns, rows + _rest(len(domains), columns), right=columns[1:])


def compare_mixtures(folders: Sequence[Path]) -> dict[str, Any]:
    """Mixtures compared pair by pair, as JSON values: weights after the last step, distances, what else differs.

    `total_variation`: half the sum of absolute differences, in [0, 1]; `kl` of the first from the second and `kl_back`, in
    nats, None where infinite: a domain that has weight in the one has none in the other. Domains that a mixture does not
    know have weight 0 in it. Raises ConfigError for fewer than two folders, ArtifactError for one that holds no mixture.
    """
    require(
        len(folders) >= 2, f"compare: found {len(folders)} artifacts, wanted at least 2; name the folders of two mixtures"
    )
    loaded = [load_mixture(Path(folder)) for folder in folders]
    short = [one.folder.name for one in loaded]
    labels = short if len(set(short)) == len(short) else [str(one.folder) for one in loaded]
    require(len(set(labels)) == len(labels), f"compare: {', '.join(labels)} name an artifact twice; give different ones")
    names = list(dict.fromkeys(name for one in loaded for name in one.mixture.names))
    weights = {label: _weights(one, names) for label, one in zip(labels, loaded, strict=True)}
    pairs = [
        {
            "mixtures": [a, b],
            "total_variation": float(np.abs(weights[a] - weights[b]).sum() / 2),
            "kl": _kl(weights[a], weights[b]),
            "kl_back": _kl(weights[b], weights[a]),
        }
        for a, b in itertools.combinations(labels, 2)
    ]
    return {
        "mixtures": [_about(label, one) for label, one in zip(labels, loaded, strict=True)],
        "domains": [
            {"domain": name, **{label: float(weight_K[code]) for label, weight_K in weights.items()}}
            for code, name in enumerate(names)
        ],
        "pairs": pairs,
        "notes": _notes(labels, loaded),
    }


def compare_mixtures_text(result: Mapping[str, Any]) -> str:
    """What `compare_mixtures` found, as tables for a terminal; no trailing newline."""
    labels = [mixture["name"] for mixture in result["mixtures"]]
    about = [[m["name"], m["method"], f"{m['entropy']:.4g}", m["digest"][:16]] for m in result["mixtures"]]
    largest = sorted(result["domains"], key=lambda entry: -max(entry[label] for label in labels))
    weights = [[entry["domain"], *(_percent(entry[label]) for label in labels)] for entry in largest[:_SHOWN_DOMAINS]]
    columns = ["domain", *labels]
    pairs = [
        [" & ".join(p["mixtures"]), f"{p['total_variation']:.4f}", *(_nats(p[key]) for key in ("kl", "kl_back"))]
        for p in result["pairs"]
    ]
    measures = ["total variation", "KL(first|second)", "KL(second|first)"]
    parts = [
        f"{len(labels)} mixtures of {len(result['domains'])} domains, weights after the last step",
        *(printable(f"note: {note}") for note in result["notes"]),
        "",
        table(["mixture", "method", "entropy", "digest"], about, right=["entropy"]),
        "",
        table(columns, weights + _rest(len(largest), columns), right=labels),
        "",
        table(["pair", *measures], pairs, right=measures),
    ]
    return "\n".join(parts)


def _weights(loaded: LoadedMixture, names: Sequence[str]) -> np.ndarray:
    own = dict(zip(loaded.mixture.names, loaded.mixture.weight_SK[-1].tolist(), strict=True))
    return np.array([own.get(name, 0.0) for name in names])


def _kl(of_K: np.ndarray, from_K: np.ndarray) -> float | None:
    """Sum of p log(p / q) in nats, 0 where p is 0; None if infinite."""
    has_K = of_K > 0
    if (from_K[has_K] == 0).any():
        return None
    return float((of_K[has_K] * np.log(of_K[has_K] / from_K[has_K])).sum())


def _about(label: str, loaded: LoadedMixture) -> dict[str, Any]:
    manifest = loaded.manifest
    return {
        "name": label, "path": str(loaded.folder), "method": manifest["method"], "digest": manifest["digest"],
        "entropy": loaded.mixture.entropy, "schedule": manifest["stats"]["schedule"],
    }  # fmt: skip


def _notes(labels: Sequence[str], loaded: Sequence[LoadedMixture]) -> list[str]:
    notes = []
    known = [set(one.mixture.names) for one in loaded]
    for label, names in zip(labels, known, strict=True):
        if lacking := sorted(set.union(*known) - names):
            notes.append(f"{label} does not know {', '.join(lacking)}: weight 0")
    schedules = [label for label, one in zip(labels, loaded, strict=True) if len(one.mixture.step_S) > 1]
    if schedules:
        notes.append(f"{', '.join(schedules)} changes over the steps: the weights shown are the last")
    if len({(one.manifest.get("tokenizer") or {}).get("sha256") for one in loaded}) > 1:
        notes.append("made with different tokenizers: a share of tokens is not the same amount of text in each")
    if len({_made_for(one.manifest) for one in loaded}) > 1:
        notes.append("made for different data")
    return notes


def _made_for(manifest: Mapping[str, Any]) -> str:
    """What tells the data of a mixture from others: the corpus, or the tables of runs."""
    corpus = manifest["corpus"]
    return str(corpus.get("fingerprint") or corpus.get("tables"))


def _rest(count: int, columns: Sequence[str]) -> list[list[str]]:
    more = count - _SHOWN_DOMAINS
    return [[f"and {more} more", *("" for _ in columns[1:])]] if more > 0 else []


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return "0" if share == 0 else f"{share:.2%}" if share >= 1e-4 else f"{share:.1e}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}x"


def _nats(value: float | None) -> str:
    return "inf" if value is None else f"{value:.4f}"
