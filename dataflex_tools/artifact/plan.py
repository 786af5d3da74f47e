"""A plan on disk: a score for every sample of a corpus, with what it was made from."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.card import CARD, dataset_card
from dataflex_tools.artifact.files import (
    open_parquet,
    read_columns,
    remove_leftovers,
    sync,
    temporary_for,
    with_metadata,
    write_bytes,
    write_table,
)
from dataflex_tools.artifact.ids import as_keys
from dataflex_tools.artifact.manifest import (
    FORMAT,
    MANIFEST,
    check_file,
    file_entry,
    read_manifest,
    read_unchecked,
    verify_artifact,
    write_manifest,
)
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.plan import Selection

# N samples of the corpus

SCORES = "scores.parquet"
_ROWS_PER_GROUP = 2**17  # about 8 MiB of a plan without detail columns
_RESERVED = ("row", "sample_id", "domain", "num_tokens", "score")


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, folder.name)
    temporary = temporary_for(folder)
    try:
        temporary.mkdir()
        write_table(temporary / SCORES, table, rows_per_group=_ROWS_PER_GROUP)
        write_bytes(temporary / CARD, dataset_card(body, table.schema, data_files=SCORES).encode())
        files = [file_entry(temporary, name) for name in (SCORES, CARD)]
        manifest = write_manifest(temporary, {**body, "files": files})
        return _put_in_place(temporary, folder, manifest, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def load_plan(folder: Path) -> LoadedPlan:
    """Read a plan artifact. Raises ArtifactError if it is unfinished, of another kind, or its scores were changed."""
    manifest = read_manifest(folder)
    if manifest.get("kind") != "plan":
        raise ArtifactError(f"{folder} is an artifact of kind {manifest.get('kind')!r}, wanted 'plan': give a scored one")
    check_file(folder, manifest, SCORES)
    with open_parquet(folder / SCORES) as file:
        table = read_columns(file, folder / SCORES)
    domain = table.column("domain").combine_chunks()
    ids = b"".join(table.column("sample_id").to_pylist())
    return LoadedPlan(
        folder=folder,
        manifest=manifest,
        table=table,
        score_N=table.column("score").to_numpy(),
        num_tokens_N=table.column("num_tokens").to_numpy(),
        ids_N16=np.frombuffer(ids, dtype=np.uint8).reshape(-1, 16),
        domain_N=domain.indices.to_numpy().astype(np.int32),
        domain_names=tuple(domain.dictionary.to_pylist()),
    )


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
    if taken := [name for name in selection.detail if name in _RESERVED]:
        raise ValueError(f"detail columns {taken} have reserved names")
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), total, [None, pa.py_buffer(rows.ids_N16.tobytes())])
    names = pa.array(rows.domain_names, pa.string())
    domain = pa.DictionaryArray.from_arrays(pa.array(rows.domain_N.astype(np.int32)), names)
    table = pa.table({
        "row": np.arange(total, dtype=np.int64), "sample_id": ids, "domain": domain,
        "num_tokens": rows.num_tokens_N.astype(np.int32), "score": selection.score_N.astype(np.float64), **selection.detail,
    })  # fmt: skip
    return table.cast(with_metadata(table.schema, {"format": FORMAT, **own}))


def check_out(folder: Path, *, overwrite: bool = False) -> None:
    """Raise ArtifactError if a plan could not be written to `folder` for what it holds, whatever the plan's content.

    That is: a file, a folder that cannot be made, files that no manifest lists, or an artifact that is no plan.
    """
    check_can_be_made(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).exists():
        shown = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        raise ArtifactError(f"{folder} holds something that is no artifact ({shown}); choose another --out")
    current = read_unchecked(folder) if overwrite else read_manifest(folder)
    if (kind := current.get("kind")) != "plan":
        raise ArtifactError(f"{folder} holds an artifact of kind {kind!r}, which no plan replaces; choose another --out")
    if overwrite:
        _refuse_foreign_files(folder, current)


def check_can_be_made(folder: Path) -> None:
    """Raise ArtifactError unless `folder` is a folder, or can become one."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ArtifactError(f"{folder} is not a folder; choose another --out")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ArtifactError(f"{folder} cannot be made: {above} is a file; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ArtifactError(f"{folder} cannot be made: {above} is not writable; choose another --out")


def _put_in_place(temporary: Path, folder: Path, manifest: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    sync(temporary)
    check_can_be_made(folder)
    if not folder.exists() or not any(folder.iterdir()):
        os.rename(temporary, folder)
    else:
        current = read_unchecked(folder) if (folder / MANIFEST).exists() else None
        if current is not None and current.get("digest") == manifest["digest"] and not verify_artifact(folder):
            return current
        _refuse_or_replace(temporary, folder, current, overwrite)
    sync(folder.parent)
    return manifest


def _refuse_or_replace(temporary: Path, folder: Path, current: Mapping[str, Any] | None, overwrite: bool) -> None:
    _refuse_foreign_files(folder, current)
    if not overwrite and current is not None:
        what = current.get("method") or current.get("signal") or ""
        raise ArtifactError(
            f"{folder} holds another artifact, or one that was changed ({current['kind']} {what}, created "
            f"{current.get('created')}); choose another --out, or give --overwrite to replace it"
        )
    old = temporary.with_suffix(".old")
    os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)


def _refuse_foreign_files(folder: Path, current: Mapping[str, Any] | None) -> None:
    listed = {MANIFEST, *(entry["path"] for entry in current["files"])} if current else set()
    present = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
    if foreign := [name for name in present if name not in listed]:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise ArtifactError(f"{folder} holds files that no artifact lists ({shown}); choose another --out")
