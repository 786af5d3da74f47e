"""The manifest: what a folder holds, from what it was made, and the SHA-256 of every file in it.

It is written last, so a folder without one is unfinished. Its own digest covers every field but `digest`, `created` and
`producer`: the same content has the same digest on any day and machine.
"""

import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataflex_tools.artifact.files import open_parquet, require_finite, write_bytes
from dataflex_tools.artifact.schema import check_fields, field_fault, is_inside, read_json, short
from dataflex_tools.core.errors import ArtifactError, near_path
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.hashes import FileDigests

FORMAT = 1
MANIFEST = "manifest.json"
_NOT_IN_DIGEST = ("digest", "created", "producer")


def write_manifest(folder: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """Write `body` with format, created, producer and digest added, in one step; returns what was written.

    `body` holds JSON values, at least `kind` and `files` (see `file_entry`). Raises ArtifactError for NaN or infinity, and
    for text that is no Unicode, as a file name can be.
    """
    for key in ("kind", "files"):
        if key not in body:
            raise ValueError(f"a manifest needs {key!r}, got {sorted(body)}")
    require_finite(folder / MANIFEST, body)
    text = json.dumps({**body, "format": FORMAT}, allow_nan=False, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = text[max(0, error.start - 20) : error.end + 20]
        raise ArtifactError(f"{folder}: {place!r} is not Unicode text; give the file another name") from None
    content = json.loads(text)
    content |= {"created": _now(), "producer": _producer(), "digest": manifest_digest(content)}
    write_bytes(folder / MANIFEST, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return dict(content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises ArtifactError if there is none, if it is not JSON, if its format is not one that this version reads, if it was
    changed after it was written, or if a field that is read has another type than it should.
    """
    content = read_unchecked(folder)
    if content.get("digest") != (actual := manifest_digest(content)):
        stated = str(content.get("digest"))[:16]
        raise ArtifactError(
            f"{folder / MANIFEST} was changed: it states digest {stated}, its content has {actual[:16]}; restore it, or "
            f"{_make_again(folder, content.get('kind'))}"
        )
    check_fields(folder / MANIFEST, content)
    return content


def read_unchecked(folder: Path) -> dict[str, Any]:
    """The manifest as it stands, changed or not; raises as `read_manifest` does otherwise."""
    path = folder / MANIFEST
    if not path.exists():
        raise ArtifactError(_why_no_manifest(folder))
    content = _parsed(path)
    found = content.get("format")
    if type(found) is not int or not 1 <= found <= FORMAT:
        advice = "update flextools" if type(found) is int and found > FORMAT else "it was not written by flextools"
        raise ArtifactError(f"{path} has format {short(found)}, this version reads formats 1 to {FORMAT}: {advice}")
    return content


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its `digest`, `created` and `producer`."""
    return digest({key: value for key, value in manifest.items() if key not in _NOT_IN_DIGEST})


def facet_of(manifest: Mapping[str, Any]) -> Literal["select", "mix"]:
    """What a plan decides: which samples ("select", also of plans without the field), or domain proportions ("mix").

    Raises ArtifactError for a facet that this version does not know.
    """
    facet = manifest.get("facet", "select")
    if facet == "select" or facet == "mix":
        return facet  # type: ignore[no-any-return]
    raise ArtifactError(f"a plan has the facet {short(facet)}, this version reads 'select' and 'mix': update flextools")


def file_entry(folder: Path, path: str, digests: FileDigests | None = None) -> dict[str, Any]:
    """What a manifest says of one file: {path, rows, bytes, sha256, schema}; `path` is relative to `folder`.

    `rows` and `schema` ({column: type}) are None for files other than Parquet.
    """
    full, rows, schema = folder / path, None, None
    if path.endswith(".parquet"):
        with open_parquet(full) as file:
            rows, schema = file.metadata.num_rows, _types_of(file.schema_arrow)
    sha256 = (digests or FileDigests()).sha256(full)
    return {"path": path, "rows": rows, "bytes": full.stat().st_size, "sha256": sha256, "schema": schema}


def verify_artifact(folder: Path) -> list[str]:
    """Every way in which a folder differs from its manifest, one line each; empty if it is as it was written.

    Raises ArtifactError if there is no manifest, or one that this version cannot read.
    """
    manifest = read_unchecked(folder)
    faults = [f"{MANIFEST} is a symbolic link"] if (folder / MANIFEST).is_symlink() else []
    if manifest.get("digest") != (actual := manifest_digest(manifest)):
        faults.append(
            f"{MANIFEST} was changed: it states digest {short(manifest.get('digest'), 80)}, its content has {actual}"
        )
    elif fault := field_fault(manifest):
        faults.append(f"{MANIFEST}: {fault}")
    files = manifest.get("files")
    if not isinstance(files, list):
        return [*faults, f"{MANIFEST} has no list of files"]
    listed, digests = {MANIFEST}, FileDigests()
    for entry in files:
        if not _is_entry(entry):
            faults.append(f"{MANIFEST} has a malformed file entry: {json.dumps(entry)[:200]}")
            continue
        listed.add(entry["path"])
        faults += _file_faults(folder, entry, digests)
    if manifest.get("kind") != "run":  # a run's folder also holds checkpoints and evaluations made later
        faults += [f"{path} is not in the manifest" for path in _files_in(folder) if path not in listed]
    return faults


def check_file(folder: Path, manifest: Mapping[str, Any], path: str, digests: FileDigests | None = None) -> None:
    """Raise ArtifactError unless the manifest lists this file and its bytes are as they were written."""
    entries = [entry for entry in manifest.get("files", []) if _is_entry(entry) and entry["path"] == path]
    faults = (
        [f"{path} is not in the manifest"] if not entries else _file_faults(folder, entries[0], digests or FileDigests())
    )
    if faults:
        raise ArtifactError(f"{folder}: {faults[0]}; {_make_again(folder, manifest.get('kind'))}")


def listed_paths(manifest: Mapping[str, Any]) -> list[str]:
    """The files a manifest lists, also of one that was changed."""
    files = manifest.get("files")
    return [entry["path"] for entry in files if _is_entry(entry)] if isinstance(files, list) else []


def check_files(folder: Path, manifest: Mapping[str, Any], digests: FileDigests | None = None) -> None:
    """Raise ArtifactError for the first file of the manifest that is not as it was written."""
    for entry in manifest["files"]:
        check_file(folder, {**manifest, "files": [entry]}, entry["path"], digests)


def _file_faults(folder: Path, entry: Mapping[str, Any], digests: FileDigests) -> list[str]:
    path = entry["path"]
    if not is_inside(path):
        return [f"{path} leads outside the artifact"]
    full = folder / path
    links = [part for part in (full, *full.parents) if part != folder and folder in part.parents and part.is_symlink()]
    if links:
        return [f"{path} is a symbolic link"]
    if not full.is_file():
        return [f"{path} is missing"]
    size = full.stat().st_size
    if size != entry["bytes"]:
        return [f"{path} was changed: {size:,} bytes, the manifest says {entry['bytes']:,}"]
    if not digests.is_as_written(full, entry["sha256"]):
        return [f"{path} was changed: SHA-256 {digests.sha256(full)}, the manifest says {entry['sha256']}"]
    return []


def _is_entry(entry: Any) -> bool:
    wanted = {"path": str, "bytes": int, "sha256": str}
    return isinstance(entry, dict) and all(type(entry.get(key)) is kind for key, kind in wanted.items())


def _files_in(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders.sort()
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*names, *links]):
            yield (here / name).relative_to(folder).as_posix()


def _types_of(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _why_no_manifest(folder: Path) -> str:
    if not folder.exists():
        return f"artifact {folder} does not exist; {near_path(folder) or 'give a folder that flextools wrote'}"
    if not folder.is_dir():
        return f"artifact {folder} is a file, wanted a folder with {MANIFEST}"
    if (folder / "run.json").exists():
        return f"{folder} has no {MANIFEST}: the training has not finished; run `flextools train` again"
    if not any(folder.iterdir()) or any(folder.glob("*.parquet")) or any(folder.glob("checkpoint-*")):
        return f"{folder} has no {MANIFEST}: the score stage has not finished; run `flextools score` again"
    return f"{folder} has no {MANIFEST}: it is no artifact; give a folder that `flextools score` or `train` wrote"


def _make_again(folder: Path, kind: Any) -> str:
    """What to do about an artifact that is not as it was written."""
    if kind == "model":
        return f"delete {folder} and run `flextools score` again"
    if kind == "run":
        return "train again into another --out"
    return "run `flextools score` again with --overwrite" if kind == "plan" else "delete it and run `flextools score` again"


def _parsed(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds {type(content).__name__}, wanted a mapping; run `flextools score` again")
    return content


def _now() -> str:
    # the reproducible-builds variable lets a rebuilt artifact keep its date
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(seconds), UTC) if seconds else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _producer() -> dict[str, str]:
    try:
        version = metadata.version("flextools")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {"name": "flextools", "version": version, "platform": sysconfig.get_platform(), "pyarrow": pa.__version__}
