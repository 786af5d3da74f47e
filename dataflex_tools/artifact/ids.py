"""Joining by sample id: which stored row belongs to which corpus row."""

import numpy as np

# N wanted ids, K known ids; an id is 16 bytes


def as_keys(ids_N16: np.ndarray) -> np.ndarray:
    """Ids as (N,) byte strings that sort and compare. Raises ValueError unless `ids_N16` is (N, 16) uint8."""
    if ids_N16.dtype != np.uint8 or ids_N16.ndim != 2 or ids_N16.shape[1] != 16:
        raise ValueError(f"sample ids must be (N, 16) uint8, got {ids_N16.shape} {ids_N16.dtype}")
    # numpy pads S16 with zero bytes when it compares, which is exact since every id has 16 bytes
    return np.ascontiguousarray(ids_N16).view("S16").reshape(-1)


def first_occurrences(ids_N16: np.ndarray) -> np.ndarray:
    """Rows that hold an id for the first time, ascending, int64."""
    _, first = np.unique(as_keys(ids_N16), return_index=True)
    return np.sort(first).astype(np.int64)


def copies_of(ids_N16: np.ndarray) -> np.ndarray:
    """The first row that holds each row's id, (N,) int64: equal rows of it are copies of one content."""
    _, first_K, code_N = np.unique(as_keys(ids_N16), return_index=True, return_inverse=True)
    return np.asarray(first_K[code_N], dtype=np.int64)


def positions_of(ids_N16: np.ndarray, known_K16: np.ndarray) -> np.ndarray:
    """Where each id stands in `known_K16` (its first place), -1 where it does not, (N,) int64."""
    key_N, key_K = as_keys(ids_N16), as_keys(known_K16)
    if len(key_K) == 0:
        return np.full(len(key_N), -1, dtype=np.int64)
    order_K = np.argsort(key_K, kind="stable")
    sorted_K = key_K[order_K]
    place_N = np.minimum(np.searchsorted(sorted_K, key_N), len(key_K) - 1)
    return np.where(sorted_K[place_N] == key_N, order_K[place_N], -1).astype(np.int64)
