"""The fit stage: a mixture from runs that somebody else made, by their shares and what was measured after them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.artifact.mixture import load_mixture, write_mixture
from dataflex_tools.artifact.plan import check_out
from dataflex_tools.core import dist
from dataflex_tools.core.config import from_mapping, load_yaml, to_mapping
from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.core.fingerprint import digest, file_sha256
from dataflex_tools.core.mixing import Mixture, weights_of
from dataflex_tools.core.rng import generator
from dataflex_tools.data.run_tables import RunTables, named_numbers, read_run_tables
from dataflex_tools.methods.regmix import check_size, fit_runs
from dataflex_tools.ops.proposal import Known, SearchSettings, repetition_cap
from dataflex_tools.stages.config import FitConfig, recorded
from dataflex_tools.stages.mix import has_plan

logger = logging.getLogger("flextools")

# S runs, K domains, M metrics

METHOD = "regmix"  # whose fit and search it is
_SHARE_TOLERANCE = 0.02


@dataclass(frozen=True)
class PreparedFit:
    """All that is known before anything is fitted; `notes`: what was taken for granted, for people."""

    config: FitConfig
    settings: SearchSettings
    runs: RunTables
    target_S: np.ndarray
    known: Known
    notes: tuple[str, ...]

    @property
    def address(self) -> str:
        """Equal addresses give equal mixtures."""
        tokens = None if self.known.token_K is None else self.known.token_K.tolist()
        return digest(
            {
                "stage": "fit",
                "names": self.runs.names,
                "weights": self.runs.weight_SK.tolist(),
                "target": self.target_S.tolist(),
                "natural": self.known.prior_K.tolist(),
                "tokens": tokens,
                "settings": to_mapping(self.settings),
                "higher_is_better": self.config.higher_is_better,
                "seed": self.config.seed,
            }
        )


def prepare(config: FitConfig, *, overwrite: bool = False) -> PreparedFit:
    """Read and check the tables. Raises DataError for what cannot be fitted."""
    settings = from_mapping(SearchSettings, config.settings, where="fit: settings")
    if config.out is not None:
        check_out(Path(config.out), overwrite=overwrite)
    runs = read_run_tables(Path(config.ratios), Path(config.metrics), index=config.index)
    check_size(len(runs.names), len(runs.ids), settings.num_folds)
    target_S, used = _target(config, runs)
    known, natural_of = _known(config, runs, settings)
    repetition_cap(known, settings)
    notes = (*runs.notes, f"target: {_target_text(config, used)}", f"natural shares: {natural_of}")
    return PreparedFit(config, settings, runs, target_S, known, notes)


def is_done(prepared: PreparedFit, *, overwrite: bool = False) -> bool:
    """Whether `out` holds exactly this mixture. Raises ArtifactError if it holds something else, unless `overwrite`."""
    out, config = prepared.config.out, recorded(prepared.config)
    return out is not None and has_plan(out, prepared.address, config, prepared.settings, overwrite=overwrite)


def fit(config: FitConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Read, fit and, with `out`, write; returns weights, natural shares, facts and notes as JSON values.

    Raises DataError for tables that cannot be fitted, ArtifactError if `out` holds something else, unless `overwrite`.
    """
    prepared = prepare(config, overwrite=overwrite)
    is_there = is_done(prepared, overwrite=overwrite)
    dist.barrier()  # no rank writes before all have looked
    if is_there and config.out is not None:
        logger.info("reused: %s has this mixture already", config.out)
        return _result(prepared, load_mixture(Path(config.out)).mixture)
    mixture = fit_runs(
        prepared.known,
        prepared.runs.weight_SK,
        prepared.target_S,
        prepared.settings,
        rng=generator(config.seed, METHOD, "fit"),
        higher_is_better=config.higher_is_better,
    )
    mixture = _named(mixture, prepared.runs)
    if config.out is not None and dist.is_main():
        _write(prepared, mixture, Path(config.out), overwrite=overwrite)
    dist.barrier()
    return _result(prepared, mixture)


def given_values(items: Sequence[str] | None, *, option: str) -> str | dict[str, float] | None:
    """What an option that may be repeated says: one name or file, or NAME=NUMBER for each; names alone weigh 1.

    Raises ConfigError for what is no number, or a name that comes twice.
    """
    if not items:
        return None
    if len(items) == 1 and "=" not in items[0]:
        return items[0]
    found: dict[str, float] = {}
    for item in items:
        name, _, text = item.rpartition("=") if "=" in item else (item, "", "1")
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(f"{option} {item!r}: {text!r} is no number, wanted NAME=NUMBER") from None
        if name in found:
            raise ConfigError(f"{option} names {name!r} twice; give one value")
        found[name] = value
    return found


def _target(config: FitConfig, runs: RunTables) -> tuple[np.ndarray, list[str]]:
    """What is to be lowered or raised, (S,), and the metrics it is made of; raises for one that says nothing."""
    given = config.target
    if isinstance(given, str):
        given = dict.fromkeys(runs.metrics, 1.0) if given == "mean" else {given: 1.0}
    for name in given:
        if name not in runs.metrics:
            hint = did_you_mean(name, runs.metrics)
            raise ConfigError(f"--target names {name!r}, which is no metric of {config.metrics}; {hint}")
    weight_M = weights_of(given, runs.metrics, where="fit: target")
    for row, m in np.argwhere(~np.isfinite(runs.metric_SM) & (weight_M > 0)):
        raise DataError(
            f"{config.metrics}: {runs.metrics[m]!r} of run {runs.ids[row]} is missing or not a number; remove the run from "
            "both tables, or name other metrics with --target"
        )
    target_S = runs.metric_SM[:, weight_M > 0] @ weight_M[weight_M > 0]
    if np.ptp(target_S) == 0:
        raise DataError(
            f"{config.metrics}: the target is {target_S[0]:g} after all {len(target_S)} runs, so that no mixture is better "
            "than another; name other metrics with --target"
        )
    return target_S, [name for name, weight in zip(runs.metrics, weight_M, strict=True) if weight > 0]


def _target_text(config: FitConfig, used: list[str]) -> str:
    shown = ", ".join(used[:5]) + (f" and {len(used) - 5} more" if len(used) > 5 else "")
    what = shown if len(used) == 1 else f"{'mean' if isinstance(config.target, str) else 'weighted mean'} of {shown}"
    return f"{what}, {'higher' if config.higher_is_better else 'lower'} is better"


def _known(config: FitConfig, runs: RunTables, settings: SearchSettings) -> tuple[Known, str]:
    """Natural shares, and tokens where these were given, with a text that says where they are from."""
    if config.natural is None:
        shares = dict(zip(runs.names, runs.weight_SK.mean(axis=0).tolist(), strict=True))
        said = "the mean of the runs; give those of your data with --natural"
    else:
        shares, said = _natural(config.natural, runs), "as given"
    _check_natural(shares, runs)
    amount_K = np.array([float(shares[name]) for name in runs.names])
    are_shares = any(abs(amount_K.sum() / total - 1) < _SHARE_TOLERANCE for total in (1, 100))
    if settings.target_tokens is not None and are_shares:
        found = "the mean of the runs" if config.natural is None else "shares"
        raise ConfigError(
            f"settings.target_tokens needs the tokens of each domain, found {found}; give --natural with counts of tokens"
        )
    return Known(runs.names, amount_K / amount_K.sum(), None if are_shares else amount_K), said


def _natural(given: Mapping[str, float] | str, runs: RunTables) -> dict[str, float]:
    if not isinstance(given, str):
        return dict(given)
    path = Path(given)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return named_numbers(path, runs.names)
    found = load_yaml(path)
    for name, value in found.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{path}: {name!r} holds {value!r}, wanted a share or a number of tokens")
    return found


def _check_natural(shares: Mapping[str, float], runs: RunTables) -> None:
    for name in shares:
        if name not in runs.names:
            raise ConfigError(f"--natural names {name!r}, which is no domain of the runs; {did_you_mean(name, runs.names)}")
    for name in runs.names:
        if name not in shares:
            raise ConfigError(f"--natural does not name {name!r}, a domain of the runs; give a share for each")
        if not 0 < shares[name] < np.inf:
            raise ConfigError(
                f"--natural: the share of {name!r} is {shares[name]}, wanted above 0; give a small one, or leave the domain "
                "out of the runs"
            )


def _named(mixture: Mixture, runs: RunTables) -> Mixture:
    """With the names of the runs in place of their rows, and the runs themselves as a table."""
    best = {**mixture.facts["best_run"], "run": runs.ids[mixture.facts["best_run"]["run"]]}
    columns = {f"weight_{name}": runs.weight_SK[:, k] for k, name in enumerate(runs.names)}
    columns |= {f"metric_{name}": runs.metric_SM[:, m] for m, name in enumerate(runs.metrics)}
    tables = {"fit": {**mixture.tables["fit"], "run": np.array(runs.ids)}, "runs": columns}
    return replace(mixture, facts={**mixture.facts, "best_run": best}, tables=tables)


def _write(prepared: PreparedFit, mixture: Mixture, out: Path, *, overwrite: bool) -> None:
    config, runs, known = prepared.config, prepared.runs, prepared.known
    paths = {"ratios": Path(config.ratios), "metrics": Path(config.metrics)}
    tables = {key: {"path": str(path), "sha256": file_sha256(path)} for key, path in paths.items()}
    stats: dict[str, Any] = {"natural": _by_name(runs.names, known.prior_K), "facts": dict(mixture.facts)}
    if known.token_K is not None:
        stats["num_tokens"] = _by_name(runs.names, known.token_K)
    body = {
        "address": prepared.address,
        "method": METHOD,
        "settings": to_mapping(prepared.settings),
        "corpus": {"tables": tables, "runs": len(runs.ids)},
        "model": None,
        "tokenizer": None,
        "parents": [],
        "stats": stats,
        "config": recorded(config),
        "licence": config.licence,
    }
    manifest = write_mixture(out, mixture, facts=body, overwrite=overwrite)
    logger.info("wrote %s: %s", out, manifest["digest"][:16])


def _by_name(names: Sequence[str], value_K: np.ndarray) -> dict[str, float]:
    return dict(zip(names, value_K.tolist(), strict=True))


def _result(prepared: PreparedFit, mixture: Mixture) -> dict[str, Any]:
    warning, out = mixture.facts.get("warning"), prepared.config.out
    return {
        "weights": _by_name(mixture.names, mixture.weight_SK[0]),
        "natural": _by_name(mixture.names, prepared.known.prior_K),
        "facts": {key: value for key, value in mixture.facts.items() if key != "warning"},
        "warnings": [warning] if warning else [],
        "notes": list(prepared.notes),
        "out": out,
        "digest": None if out is None else read_manifest(Path(out))["digest"],
    }
