"""A plan on disk: a score for every sample of a corpus, with what it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.card import dataset_card
from dataflex_tools.artifact.columns import domains_fault, ids_of
from dataflex_tools.artifact.files import check_types, open_parquet, read_columns, with_metadata
from dataflex_tools.artifact.folder import check_can_be_made as check_can_be_made
from dataflex_tools.artifact.folder import check_out as check_out
from dataflex_tools.artifact.folder import write_folder
from dataflex_tools.artifact.ids import as_keys, copies_of
from dataflex_tools.artifact.manifest import FORMAT, check_file, facet_of, read_manifest
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.core.plan import Budget, Selection, best_copies, select_rows

# N samples of the corpus

SCORES = "scores.parquet"
_ROWS_PER_GROUP = 2**17  # about 8 MiB of a plan without detail columns
_COLUMNS = {
    "row": pa.int64(),
    "sample_id": pa.binary(16),
    "domain": pa.dictionary(pa.int32(), pa.string()),
    "num_tokens": pa.int32(),
    "score": pa.float64(),
}


@dataclass(frozen=True)
class PlanRows:
    """What a plan says of each corpus row besides its score; `domain_N`: codes into `domain_names`."""

    ids_N16: np.ndarray
    domain_N: np.ndarray
    domain_names: Sequence[str]
    num_tokens_N: np.ndarray


def write_plan(
    folder: Path, selection: Selection, *, rows: PlanRows, facts: Mapping[str, Any], overwrite: bool = False
) -> dict[str, Any]:
    """Write a plan artifact and return its manifest; the folder appears whole, by rename.

    `facts` are the manifest's fields: method, settings, corpus {fingerprint, rows, domains, sources}, model {name, sha256,
    dtype} and tokenizer {sha256, template} (None for a method that reads neither), parents [{path, digest}] of the
    signals and models it was made from, stats, config (the resolved configuration that gives this plan again).
    Writing the same plan again changes nothing. Raises ArtifactError if `folder` holds something else; `overwrite`
    replaces an artifact, but never a folder with files that no manifest lists.
    """
    table = _table(selection, rows, {"kind": "plan", "method": facts["method"]})
    body = {"kind": "plan", "licence": "unknown", **facts}
    card = dataset_card(body, table.schema, data_files=SCORES)
    return write_folder(folder, body, tables={SCORES: table}, card=card, rows_per_group=_ROWS_PER_GROUP, overwrite=overwrite)


@dataclass(frozen=True)
class LoadedPlan:
    """A plan read back; row i of every array is row i of the corpus. `table` has all columns, details included."""

    folder: Path
    manifest: Mapping[str, Any]
    table: pa.Table
    score_N: np.ndarray
    num_tokens_N: np.ndarray
    ids_N16: np.ndarray
    domain_N: np.ndarray
    domain_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.score_N)

    @cached_property
    def copy_of_N(self) -> np.ndarray:
        """Of each row the first of the same content, (N,) int64."""
        return copies_of(self.ids_N16)

    @property
    def counts_N(self) -> np.ndarray:
        """Whether a row stands for its content in a selection: the best-scored of its copies, (N,) bool."""
        return np.asarray(best_copies(self.score_N, self.copy_of_N) == np.arange(len(self)))

    @property
    def num_copies(self) -> int:
        """Rows whose content stands in the pool before them."""
        return int((self.copy_of_N != np.arange(len(self))).sum())

    def pick(self, budget: Budget, num_tokens_N: np.ndarray | None = None) -> np.ndarray:
        """The rows a budget buys, best first, (k,) int64, each content once; `num_tokens_N`: as counted now."""
        tokens_N = self.num_tokens_N if num_tokens_N is None else num_tokens_N
        return select_rows(self.score_N, tokens_N, budget, content_N=self.copy_of_N)


def load_plan(folder: Path) -> LoadedPlan:
    """Read a plan artifact.

    Raises ArtifactError if it is unfinished, of another kind, its scores were changed, or they cannot be a method's: rows
    that are not those of its corpus in their order, NaN, or a column of another type.
    """
    manifest = read_manifest(folder)
    if manifest.get("kind") != "plan":
        raise ArtifactError(f"{folder} is an artifact of kind {manifest.get('kind')!r}, wanted 'plan': give a scored one")
    if facet_of(manifest) != "select":
        raise ArtifactError(
            f"{folder} is a mixture, wanted a selection; give the artifact of a method that scores samples, or follow the "
            f"mixture with `flextools train --artifacts {folder}`"
        )
    check_file(folder, manifest, SCORES)
    with open_parquet(folder / SCORES) as file:
        check_types(file.schema_arrow, _COLUMNS, folder / SCORES)
        table = read_columns(file, folder / SCORES)
    domain = table.column("domain").combine_chunks()
    plan = LoadedPlan(
        folder=folder,
        manifest=manifest,
        table=table,
        score_N=table.column("score").to_numpy(),
        num_tokens_N=table.column("num_tokens").to_numpy(),
        ids_N16=ids_of(table.column("sample_id")),
        domain_N=domain.indices.to_numpy().astype(np.int32),
        domain_names=tuple(domain.dictionary.to_pylist()),
    )
    if fault := _fault(plan):
        raise ArtifactError(f"{folder / SCORES}: {fault}; no method wrote this, do not use it")
    return plan


def _fault(plan: LoadedPlan) -> str:
    """What no plan that a method made can have, "" if there is nothing."""
    corpus, total = plan.manifest["corpus"], len(plan)
    if total != corpus["rows"]:
        return f"{total:,} rows, its corpus has {corpus['rows']:,}"
    if (plan.table.column("row").to_numpy() != np.arange(total)).any():
        return "its rows are not in the order of the corpus"
    if ids_digest(plan.ids_N16) != corpus["fingerprint"]:
        return "its sample ids are not those of its corpus"
    if np.isnan(plan.score_N).any() or np.isposinf(plan.score_N).any():
        return "a score is NaN or positive infinity"
    if (plan.num_tokens_N < 0).any():
        return "a number of tokens is negative"
    num_tokens = int(plan.num_tokens_N.sum(dtype=np.int64))
    if corpus.get("tokens", num_tokens) != num_tokens:
        return f"{num_tokens:,} tokens, its corpus has {corpus['tokens']:,}"
    return domains_fault(plan.domain_names, corpus, np.bincount(plan.domain_N, minlength=len(plan.domain_names)))


def check_corpus(plan: LoadedPlan, fingerprint: str, ids_N16: np.ndarray) -> None:
    """Raise ArtifactError, saying what differs, unless the plan was made for the corpus with this fingerprint."""
    made_for = plan.manifest["corpus"]["fingerprint"]
    if made_for == fingerprint:
        return
    key_N, key_M = as_keys(plan.ids_N16), as_keys(ids_N16)
    lacking, new = len(np.setdiff1d(key_N, key_M)), len(np.setdiff1d(key_M, key_N))
    if lacking or new:
        detail = f"{lacking:,} of its samples are not in the data and {new:,} samples of the data are not in it"
    else:
        detail = "the same samples in another order or number"
    raise ArtifactError(
        f"{plan.folder} was made for a corpus of {len(plan):,} rows ({made_for[:16]}), the data has {len(ids_N16):,} "
        f"rows ({fingerprint[:16]}): {detail}; use the same --data, or run `flextools score` for this data"
    )


def check_model(manifest: Mapping[str, Any], sha256: str, name: str) -> None:
    """Raise ArtifactError unless the plan was made with these weights; one made without a model fits any."""
    made_with = manifest.get("model")
    if made_with is not None and made_with["sha256"] != sha256:
        raise ArtifactError(
            f"the artifact was made with model {made_with['name']} (weights {made_with['sha256'][:16]}), found {name} "
            f"(weights {sha256[:16]}); use --model {made_with['name']}, or run `flextools score` with {name}"
        )


def check_tokenizer(manifest: Mapping[str, Any], sha256: str, template: str) -> None:
    """Raise ArtifactError unless the plan was made with this tokenizer and template."""
    made_with = manifest.get("tokenizer")
    if made_with is None:
        return
    pairs = {"tokenizer": (made_with["sha256"][:16], sha256[:16]), "template": (made_with["template"], template)}
    if differing := [f"{name} {old}, found {new}" for name, (old, new) in pairs.items() if old != new]:
        raise ArtifactError(
            f"the artifact was made with {' and '.join(differing)}; use the same (--model, render.template), or run "
            "`flextools score` with these"
        )


def _table(selection: Selection, rows: PlanRows, own: Mapping[str, Any]) -> pa.Table:
    columns = {"score": selection.score_N, **selection.detail}
    lengths = {"sample_id": len(as_keys(rows.ids_N16)), "domain": len(rows.domain_N), "num_tokens": len(rows.num_tokens_N)}
    lengths |= {name: len(column) for name, column in columns.items()}
    total = len(selection.score_N)
    if wrong := {name: length for name, length in lengths.items() if length != total}:
        raise ValueError(f"{total} scores, but {wrong}")
    if taken := [name for name in selection.detail if name in _COLUMNS]:
        raise ValueError(f"detail columns {taken} have reserved names")
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), total, [None, pa.py_buffer(rows.ids_N16.tobytes())])
    names = pa.array(rows.domain_names, pa.string())
    domain = pa.DictionaryArray.from_arrays(pa.array(rows.domain_N.astype(np.int32)), names)
    table = pa.table({
        "row": np.arange(total, dtype=np.int64), "sample_id": ids, "domain": domain,
        "num_tokens": rows.num_tokens_N.astype(np.int32), "score": selection.score_N.astype(np.float64), **selection.detail,
    })  # fmt: skip
    return table.cast(with_metadata(table.schema, {"format": FORMAT, **own}))
