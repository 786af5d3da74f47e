"""Files that are complete or absent (hidden temporary, fsync, rename), and Parquet with equal bytes for equal rows."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import canonical_json
from dataflex_tools.core.temporary import temporary_for

METADATA_KEY = b"flextools"
# a file is opened only if what it unpacks to is in proportion: (measured) plans unpack to 3 times their size, signals to 1
_DECODED_BYTES, _DECODED_RATIO = 128 * 2**20, 32
_FOOTER_BYTES = 16 * 2**20
_TEXT_BYTES = 32 * 2**20  # of a column of names in one row group
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "BYTE_ARRAY": 4}
# Arrow's own errors, Thrift's and the system's, and ValueError for bytes that are no text
_UNREADABLE = (pa.lib.ArrowException, OSError, ValueError)
_TEMPORARY = re.compile(r"\..+\.(tmp|old)")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporaries that killed processes left in `folder`: all, or those for the file or folder `name`.

    Only under the lock of what is written (`core.lock`): those of a process that lives look the same.
    """
    of_name = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]+\.(tmp|old)") if name is not None else _TEMPORARY
    for path in folder.iterdir():
        if not of_name.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def list_visible(folder: Path) -> list[str]:
    """Names in a folder, sorted, without the temporaries of killed processes."""
    return sorted(path.name for path in folder.iterdir() if not _TEMPORARY.fullmatch(path.name))


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename after it never exposes missing bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step."""
    temporary = temporary_for(path)
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def require_finite(path: Path, value: Any) -> None:
    """Raise ArtifactError with the place of the first NaN or infinity in a JSON value: `path`, which
    a later start must be able to read, would not be JSON.
    """
    for place, number in _numbers(value):
        if not math.isfinite(number):
            raise ArtifactError(
                f"{path} is not written: {place} is {number}, wanted a finite number; look at the data, "
                "the learning rate and the settings it comes from"
            )


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """(place, number) of each float in a JSON value; a place is `groups.code.loss` or `weights[2]`."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{place}[{index}]")


def write_json(path: Path, value: Any, *, indent: int | None = None, end: str = "") -> None:
    """Replace `path` by `value` as JSON in one step. Raises what `require_finite` raises, with nothing written."""
    require_finite(path, value)
    write_bytes(path, (json.dumps(value, indent=indent, allow_nan=False) + end).encode())


def write_table(path: Path, table: pa.Table, *, rows_per_group: int) -> None:
    """Write Parquet in one step; equal tables give equal bytes for one pyarrow version."""
    lists = [f.name for f in table.schema if pa.types.is_fixed_size_list(f.type) or pa.types.is_list(f.type)]
    flat = [field.name for field in table.schema if field.name not in lists]
    temporary = temporary_for(path)
    try:
        pq.write_table(
            table,
            temporary,
            row_group_size=rows_per_group,
            # vectors of floats do not compress: 8 % smaller under zstd, 1.6 times slower to read (measured)
            compression=dict.fromkeys(flat, "zstd") | {f"{name}.list.element": "none" for name in lists},
            use_dictionary=[f.name for f in table.schema if pa.types.is_dictionary(f.type)],
            write_statistics=flat,
            write_page_checksum=True,
        )
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def with_metadata(schema: pa.Schema, own: Mapping[str, Any]) -> pa.Schema:
    """`schema` with the `huggingface` key (column features) and the `flextools` key (`own` as JSON)."""
    features = {"info": {"features": {field.name: _feature(field.type) for field in schema}}}
    return schema.with_metadata({b"huggingface": json.dumps(features).encode(), METADATA_KEY: canonical_json(own).encode()})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    # the words of the `datasets` library; it has no dictionary type and reads those columns as strings
    names = {"halffloat": "float16", "float": "float32", "double": "float64", "fixed_size_binary[16]": str(kind)}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, open.

    Raises ArtifactError if it is missing, not readable as Parquet, or would take far more memory than its size accounts for.
    """
    try:
        _check_footer(path)
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; run `flextools score` again") from None
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    try:
        _check_sizes(file.metadata, path.stat().st_size)
        _ = file.schema_arrow
    except _UNREADABLE as error:
        file.close()
        raise _unreadable(path, error) from None
    return file


def _check_footer(path: Path) -> None:
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - 8))
        length = int.from_bytes(handle.read(4), "little")
    if _FOOTER_BYTES < length < size:
        raise ValueError(f"a footer of {length:,} bytes, at most {_FOOTER_BYTES:,} are read")


def _check_sizes(footer: pq.FileMetaData, size: int) -> None:
    """Raise ValueError if the columns would be out of proportion: our rows do not repeat, and our texts are names."""
    most, total = _DECODED_BYTES + _DECODED_RATIO * size, 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for index in range(group.num_columns):
            column = group.column(index)
            width = _WIDTHS.get(column.physical_type, 16)
            total += max(column.num_values * width, column.total_uncompressed_size)
            if column.physical_type == "BYTE_ARRAY" and column.total_uncompressed_size > _TEXT_BYTES:
                raise ValueError(f"{column.total_uncompressed_size:,} bytes of text in one column of names")
    if max(total, footer.num_rows) > most:
        raise ValueError(f"{footer.num_rows:,} rows would take {total:,} bytes, {most:,} at most in a file of {size:,}")


def read_columns(
    file: pq.ParquetFile, path: Path, columns: Sequence[str] | None = None, *, group: int | None = None
) -> pa.Table:
    """Columns (all by default) of one row group or of the whole file; `path` names it in errors.

    Raises ArtifactError if a page does not match its checksum, or a value is null: no file of ours has one.
    """
    try:
        table = file.read(columns=columns) if group is None else file.read_row_group(group, columns=columns)
        table.validate(full=True)
        if has_null := [name for name in table.column_names if _num_null(table.column(name))]:
            raise ValueError(f"column {has_null[0]!r} has values that are null")
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    return table


def _num_null(column: pa.ChunkedArray) -> int:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return int(column.null_count + sum(chunk.values.null_count for chunk in column.chunks))
    if pa.types.is_dictionary(kind):
        return int(column.null_count + sum(chunk.dictionary.null_count for chunk in column.chunks))
    return int(column.null_count)


def check_types(table: pa.Schema, wanted: Mapping[str, pa.DataType], path: Path) -> None:
    """Raise ArtifactError unless each wanted column is there, once, with its type; nullability and field names are free."""
    for name, kind in wanted.items():
        found = [field.type for field in table if field.name == name]
        if len(found) != 1 or not _is_same(found[0], kind):
            has = ", ".join(map(str, found)) or "no such column"
            raise ArtifactError(
                f"{path}: column {name!r} is {has}, wanted {kind}; it was not written by flextools, or changed: move it away"
            )


def _is_same(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(wanted):
        is_list = pa.types.is_fixed_size_list(found) and found.list_size == wanted.list_size
        return is_list and bool(found.value_type == wanted.value_type)
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(found) and found.value_type == wanted.value_type)
    if pa.types.is_dictionary(wanted):
        return bool(pa.types.is_dictionary(found) and found.value_type == wanted.value_type)
    return bool(found == wanted)


def own_metadata(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    """The JSON under the `flextools` key. Raises ArtifactError if the file was not written by flextools."""
    raw = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    try:
        value = json.loads(raw) if raw else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} has no flextools metadata: it was written by something else; move it away")
    return value


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    why = " ".join(str(error).split())[:200]
    return ArtifactError(f"{path} cannot be read as Parquet ({why}); delete this file and run `flextools score` again")
