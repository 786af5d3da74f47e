"""An artifact's folder: it appears whole, by rename, and never takes the place of what it does not know."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflex_tools.artifact.card import CARD
from dataflex_tools.artifact.files import remove_leftovers, sync, write_bytes, write_table
from dataflex_tools.artifact.manifest import (
    MANIFEST,
    file_entry,
    listed_paths,
    read_manifest,
    read_unchecked,
    verify_artifact,
    write_manifest,
)
from dataflex_tools.artifact.schema import short
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.temporary import temporary_for


def write_folder(
    folder: Path, body: Mapping[str, Any], *, tables: Mapping[str, pa.Table], card: str, rows_per_group: int, overwrite: bool
) -> dict[str, Any]:
    """Write tables (by file name), card and manifest as one artifact; returns the manifest, `body` with files and digest.

    Writing equal content again changes nothing. Raises ArtifactError if `folder` holds something else; `overwrite`
    replaces an artifact, but never a folder with files that no manifest lists.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, folder.name)
    temporary = temporary_for(folder)
    try:
        temporary.mkdir()
        for name, table in tables.items():
            write_table(temporary / name, table, rows_per_group=rows_per_group)
        write_bytes(temporary / CARD, card.encode())
        files = [file_entry(temporary, name) for name in (*tables, CARD)]
        manifest = write_manifest(temporary, {**body, "files": files})
        return _put_in_place(temporary, folder, manifest, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
        raise ArtifactError(
            f"{folder} holds an artifact of kind {short(kind)}, which no plan replaces; choose another --out"
        )
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
        what = " ".join(
            short(current[key], quoted=False) for key in ("kind", "method", "signal") if current.get(key) is not None
        )
        raise ArtifactError(
            f"{folder} holds another artifact, or one that was changed ({what}, created "
            f"{short(current.get('created'), quoted=False)}); choose another --out, or give --overwrite to replace it"
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
    listed = {MANIFEST, *listed_paths(current)} if current else set()
    present = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
    if foreign := [name for name in present if name not in listed]:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise ArtifactError(f"{folder} holds files that no artifact lists ({shown}); choose another --out")
