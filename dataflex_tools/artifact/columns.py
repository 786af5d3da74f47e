"""Columns as Arrow stores them: one number, one vector or one list per sample, ids, and names of domains."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.printable import printable

# B samples of a part, D columns of the value


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds one number per sample."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def required(field: pa.Field) -> pa.Field:
    """The field, and the elements of its lists, without nulls."""
    # no nulls: a vector column is read five times faster without the validity of each element (measured)
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        kind = pa.list_(pa.field("element", kind.value_type, nullable=False), kind.list_size)
    elif pa.types.is_list(kind):
        kind = pa.list_(pa.field("element", kind.value_type, nullable=False))
    return pa.field(field.name, kind, nullable=False)


def to_arrow(array: np.ndarray, field: pa.Field, count: int) -> pa.Array:
    """The stored column of `field` for `count` samples: (B,) numbers, (B, 16) ids, (B, D) vectors, (B,) lists.

    Raises ValueError for another shape, and for numbers that are not finite.
    """
    kind = field.type
    shape = (count, 16) if field.name == "sample_id" else (count,)
    shape = (count, kind.list_size) if pa.types.is_fixed_size_list(kind) else shape
    if array.shape != shape:
        raise ValueError(f"column {field.name!r} has shape {array.shape}, wanted {shape}")
    flat = np.concatenate([*array, np.zeros(0)]) if pa.types.is_list(kind) else array
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise ValueError(f"column {field.name!r} holds NaN or infinity")
    if field.name == "sample_id":
        return pa.FixedSizeBinaryArray.from_buffers(kind, count, [None, pa.py_buffer(array.tobytes())])
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)):
        return pa.array(array.astype(kind.to_pandas_dtype()))
    values = pa.array(np.ascontiguousarray(flat, dtype=kind.value_type.to_pandas_dtype()).reshape(-1))
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    starts = np.cumsum([0, *map(len, array)])
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values, type=kind)


def ids_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of sample ids as (N, 16) uint8."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * 16 : (chunk.offset + len(chunk)) * 16]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.zeros(0, np.uint8), *chunks]).reshape(-1, 16)


class ValuesDigest:
    """SHA-256 of a table's values, whatever the row groups and encodings of the file that holds them."""

    def __init__(self, schema: pa.Schema) -> None:
        self._types = {field.name: _plain_name(field.type) for field in schema}
        self._hashes = {field.name: hashlib.sha256() for field in schema}

    def update(self, table: pa.Table) -> None:
        """Take in the next rows."""
        for name, sha256 in self._hashes.items():
            for chunk in table.column(name).chunks:
                if pa.types.is_list(chunk.type):
                    sha256.update(np.diff(chunk.offsets.to_numpy()).astype("<i8").data)
                is_list = pa.types.is_list(chunk.type) or pa.types.is_fixed_size_list(chunk.type)
                values = chunk.flatten() if is_list else chunk
                is_ids = pa.types.is_fixed_size_binary(values.type)
                array = ids_of(pa.chunked_array([values])) if is_ids else values.to_numpy()
                sha256.update(np.ascontiguousarray(array).data)

    def hexdigest(self) -> str:
        """64 hex digits."""
        return digest([[name, self._types[name], sha256.hexdigest()] for name, sha256 in self._hashes.items()])


def values_digest(tables: Iterable[pa.Table], schema: pa.Schema) -> str:
    """`ValuesDigest` of tables put end to end."""
    found = ValuesDigest(schema)
    for table in tables:
        found.update(table)
    return found.hexdigest()


def _plain_name(kind: pa.DataType) -> str:
    """A type without the names and nullability of what is inside, which differ between what is written and read."""
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type}[{kind.list_size}]"
    return f"{kind.value_type}[]" if pa.types.is_list(kind) else str(kind)


_NAME_CHARS = 4096  # of a domain's name; more is a text


def domains_fault(names: Sequence[str], corpus: Mapping[str, Any], count_K: np.ndarray | None = None) -> str:
    """What is wrong with the domains of an artifact made for `corpus`, a manifest's entry; "" if nothing is.

    `count_K`: rows of each, if they are known.
    """
    if len(set(names)) != len(names):
        return "a domain stands twice"
    if (longest := max(map(len, names), default=0)) > _NAME_CHARS:
        return f"the name of a domain has {longest:,} characters, {_NAME_CHARS:,} are read"
    known = corpus.get("domains")
    if count_K is not None and isinstance(known, Mapping):
        for name, count in zip(names, count_K.tolist(), strict=True):
            if count != known.get(name, 0):
                return f"{count:,} rows of domain {printable(name)}, its corpus has {known.get(name, 0):,}"
    return ""
