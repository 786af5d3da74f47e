"""Artifacts that were changed by somebody who knows how digests are made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex_tools.artifact.manifest import MANIFEST, manifest_digest
from dataflex_tools.core.fingerprint import file_sha256


def sign(folder: Path, **changed: Any) -> None:
    """Give a folder's manifest other fields, and the digests of what the folder holds now."""
    content = {**json.loads((folder / MANIFEST).read_text()), **changed}
    for place, entry in enumerate(content["files"]):
        if (path := folder / entry["path"]).is_file():
            content["files"][place] = {**entry, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    content["digest"] = manifest_digest(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def change_table(folder: Path, name: str, change: Callable[[pa.Table], pa.Table], **fields: Any) -> None:
    """Write one of an artifact's tables anew, changed, and state its digest."""
    table = pq.read_table(folder / name)
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), folder / name)
    sign(folder, **fields)


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    """A change that puts other values, or an Arrow array, in the place of a column."""

    def change(table: pa.Table) -> pa.Table:
        array = values if isinstance(values, pa.Array) else pa.array(values, table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, array)

    return change
