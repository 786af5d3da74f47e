"""A mixture on disk: domain proportions over the steps of a training, how they came about, and from what."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.card import dataset_card
from dataflex_tools.artifact.columns import domains_fault
from dataflex_tools.artifact.files import check_types, open_parquet, read_columns, with_metadata
from dataflex_tools.artifact.folder import write_folder
from dataflex_tools.artifact.manifest import FORMAT, check_file, facet_of, read_manifest
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.mixing import MixState, Mixture, concentration

# K domains, S entries of a schedule or states of a trajectory

MIXTURE = "mixture.parquet"
TRAJECTORY = "trajectory.parquet"
_ROWS_PER_GROUP = 2**18  # 5 MiB of steps and weights
_TABLE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DOMAIN = pa.dictionary(pa.int32(), pa.string())
_COLUMNS = {
    MIXTURE: {"step": pa.int64(), "domain": _DOMAIN, "weight": pa.float64()},
    TRAJECTORY: {"step": pa.int64(), "domain": _DOMAIN, "weight": pa.float64(), "score": pa.float64()},
}


@dataclass(frozen=True)
class LoadedMixture:
    """A mixture read back; weights and scores have the bits that were written."""

    folder: Path
    manifest: Mapping[str, Any]
    mixture: Mixture


def write_mixture(folder: Path, mixture: Mixture, *, facts: Mapping[str, Any], overwrite: bool = False) -> dict[str, Any]:
    """Write a mixture artifact and return its manifest; the folder appears whole, by rename.

    `facts` are the manifest's fields, as for `write_plan`; `stats` gets the weights after the last step of the schedule,
    their entropy in nats and as a share of log K, the schedule's size, warnings, and the mixture's own facts. Writing the
    same mixture again changes nothing. Raises ArtifactError if `folder` holds something else, which only `overwrite`
    replaces, and never files that no manifest lists.
    """
    own = {"kind": "plan", "facet": "mix", "method": facts["method"]}
    tables = {
        name: table.cast(with_metadata(table.schema, {"format": FORMAT, **own})) for name, table in _tables(mixture).items()
    }
    body = {"kind": "plan", "licence": "unknown", **facts, "facet": "mix", "stats": _stats(mixture, facts.get("stats", {}))}
    further = {name.removesuffix(".parquet"): name for name in tables if name != MIXTURE}
    card = dataset_card(body, tables[MIXTURE].schema, data_files=MIXTURE, further=further)
    return write_folder(folder, body, tables=tables, card=card, rows_per_group=_ROWS_PER_GROUP, overwrite=overwrite)


def load_mixture(folder: Path) -> LoadedMixture:
    """Read a mixture artifact.

    Raises ArtifactError if it is unfinished, no mixture, one of its tables was changed, or they cannot be a mixer's: weights
    that do not sum to 1 over the domains of its corpus, steps that do not ascend, a column of another type.
    """
    manifest = read_manifest(folder)
    if manifest.get("kind") != "plan":
        raise ArtifactError(f"{folder} is an artifact of kind {manifest.get('kind')!r}, wanted a mixture: give a scored one")
    if facet_of(manifest) != "mix":
        raise ArtifactError(
            f"{folder} is a selection (method {manifest.get('method')}), wanted a mixture; give the artifact of a mixer "
            "(`flextools methods` lists them)"
        )
    stored = [entry["path"] for entry in manifest["files"] if str(entry["path"]).endswith(".parquet")]
    tables = {name: _read(folder, manifest, name) for name in {MIXTURE: None, **dict.fromkeys(stored)}}
    facts = (manifest.get("stats") or {}).get("facts", {})
    try:
        mixture = _mixture(tables, facts)
    except (ValueError, ConfigError) as error:
        raise ArtifactError(f"{folder}: {error}; no mixer wrote this, do not use it") from None
    fault = domains_fault(mixture.names, {})
    if not fault and manifest["stats"]["weights"] != _last_weights(mixture):
        fault = "its last weights are not those of the manifest (stats.weights)"
    if fault:
        raise ArtifactError(f"{folder / MIXTURE}: {fault}; no mixer wrote this, do not use it")
    return LoadedMixture(folder, manifest, mixture)


def _mixture(tables: dict[str, pa.Table], facts: Mapping[str, Any]) -> Mixture:
    """The mixture of its tables, by file name. Raises ValueError or ConfigError for what cannot be one."""
    names, step_S, (weight_SK,) = _wide(MIXTURE, tables.pop(MIXTURE), "weight")
    trajectory: tuple[MixState, ...] = ()
    if TRAJECTORY in tables:
        own_names, state_S, (state_SK, score_SK) = _wide(TRAJECTORY, tables.pop(TRAJECTORY), "weight", "score")
        if own_names != names:
            raise ValueError(f"{TRAJECTORY} has other domains than {MIXTURE}")
        Mixture(names, state_S, state_SK)  # is one, too
        trajectory = tuple(MixState(*state) for state in zip(state_S.tolist(), state_SK, score_SK, strict=True))
    detail = {
        name.removesuffix(".parquet"): {column: _to_numpy(table.column(column)) for column in table.column_names}
        for name, table in tables.items()
    }
    return Mixture(names, step_S, weight_SK, trajectory, detail, facts)


def natural_share(
    manifest: Mapping[str, Any], names: Sequence[str]
) -> tuple[np.ndarray, Literal["tokens", "rows", "given"]] | None:
    """Share of each domain in the data, (K,) float64, and of what it is a share; None if the manifest does not say.

    Read from `stats.num_tokens` {domain: tokens}, else from `stats.natural` {domain: share}, which somebody gave, else from
    `corpus.domains` {domain: rows}.
    """
    stats = manifest.get("stats") or {}
    in_tokens = counts_of(stats.get("num_tokens"), names)
    given_K = counts_of(stats.get("natural"), names)
    if in_tokens is None and given_K is not None:
        return given_K / given_K.sum(), "given"
    count_K = in_tokens if in_tokens is not None else counts_of((manifest.get("corpus") or {}).get("domains"), names)
    if count_K is None:
        return None
    return count_K / count_K.sum(), "rows" if in_tokens is None else "tokens"


def counts_of(counts: Any, names: Sequence[str]) -> np.ndarray | None:
    """A manifest's {domain: count} as (K,) float64; None unless it is a mapping with all `names`, not all of them 0."""
    if not isinstance(counts, Mapping) or not all(name in counts for name in names):
        return None
    count_K = np.array([float(counts[name]) for name in names])
    return count_K if count_K.sum() > 0 else None


def _tables(mixture: Mixture) -> dict[str, pa.Table]:
    """Every file of the artifact, by name. Raises ValueError for domains or tables that a reader could not tell apart."""
    names = mixture.names
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"mixture: domains {names} are not distinct names")
    tables = {MIXTURE: _long(names, mixture.step_S, {"weight": mixture.weight_SK})}
    if mixture.trajectory:
        step_S = np.array([state.step for state in mixture.trajectory], dtype=np.int64)
        weight_SK = np.stack([state.weight_K for state in mixture.trajectory])
        score_SK = np.stack([state.score_K for state in mixture.trajectory])
        tables[TRAJECTORY] = _long(names, step_S, {"weight": weight_SK, "score": score_SK})
    for name, columns in mixture.tables.items():
        if not _TABLE_NAME.fullmatch(name) or f"{name}.parquet" in (MIXTURE, TRAJECTORY):
            raise ValueError(f"mixture: a table is named {name!r}, wanted [a-z0-9_], not 'mixture' or 'trajectory'")
        arrays = {column: np.asarray(values) for column, values in columns.items()}
        if len({array.shape for array in arrays.values()}) != 1 or any(array.ndim != 1 for array in arrays.values()):
            raise ValueError(f"mixture: columns of table {name!r} are not vectors of one length")
        tables[f"{name}.parquet"] = pa.table(arrays)
    return tables


def _long(names: Sequence[str], step_S: np.ndarray, values: Mapping[str, np.ndarray]) -> pa.Table:
    """A row for each step and domain, domains in their order within a step."""
    count = len(step_S)
    codes = pa.array(np.tile(np.arange(len(names), dtype=np.int32), count))
    columns = {"step": np.repeat(step_S.astype(np.int64), len(names))}
    columns["domain"] = pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string()))
    return pa.table({**columns, **{name: np.asarray(v_SK, np.float64).reshape(-1) for name, v_SK in values.items()}})


def _wide(name: str, table: pa.Table, *columns: str) -> tuple[tuple[str, ...], np.ndarray, list[np.ndarray]]:
    """Domain names, steps (S,) and each of `columns` (S, K) of what `_long` made.

    Raises ValueError for a table in which not every step has the same domains in the same order.
    """
    step = table.column("step").to_numpy()
    num_domains = int((step == step[0]).sum()) if len(step) else 0
    if num_domains == 0 or len(step) % num_domains:
        raise ValueError(f"{name} has {len(step):,} rows, wanted one for each step and domain")
    code = table.column("domain").combine_chunks()
    names = tuple(code.slice(0, num_domains).to_pylist())
    is_whole = (step.reshape(-1, num_domains) == step[::num_domains, None]).all()
    code_SK = code.indices.to_numpy().reshape(-1, num_domains)
    if not is_whole or (code_SK != code_SK[0]).any():
        raise ValueError(f"{name} does not have the same domains at every step")
    values = [np.asarray(table.column(column).to_numpy()).reshape(-1, num_domains) for column in columns]
    return names, step[::num_domains], values


def _read(folder: Path, manifest: Mapping[str, Any], name: str) -> pa.Table:
    check_file(folder, manifest, name)
    with open_parquet(folder / name) as file:
        check_types(file.schema_arrow, _COLUMNS.get(name, {}), folder / name)
        return read_columns(file, folder / name)


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    array = np.asarray(column.to_numpy())
    return array.astype(str) if array.dtype == object else array


def _last_weights(mixture: Mixture) -> dict[str, float]:
    return dict(zip(mixture.names, mixture.weight_SK[-1].tolist(), strict=True))


def _stats(mixture: Mixture, given: Mapping[str, Any]) -> dict[str, Any]:
    weight_K, log_K = mixture.weight_SK[-1], float(np.log(len(mixture.names)))
    found = [*given.get("warnings", []), concentration(mixture.names, weight_K).get("warning")]
    found += [mixture.facts.get("warning"), *mixture.facts.get("warnings", [])]
    return {
        **given,
        "weights": _last_weights(mixture),
        "entropy": mixture.entropy,
        "entropy_share": mixture.entropy / log_K if log_K else None,
        "schedule": {"entries": len(mixture.step_S), "last_step": int(mixture.step_S[-1])},
        "updates": max(0, len(mixture.trajectory) - 1),
        "warnings": [text for text in dict.fromkeys(found) if text],
        "facts": {**given.get("facts", {}), **{k: v for k, v in mixture.facts.items() if k != "warnings"}},
    }
