"""Content addresses: the same content gives the same SHA-256 on any machine."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN. Raises ValueError for NaN and TypeError for non-JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def ids_digest(ids_N16: np.ndarray) -> str:
    """SHA-256 of sample ids in their order; `ids_N16`: (N, 16) uint8. It is a corpus's fingerprint."""
    if ids_N16.dtype != np.uint8 or ids_N16.ndim != 2 or ids_N16.shape[1] != 16:
        raise ValueError(f"ids_digest needs (N, 16) uint8, got {ids_N16.shape} {ids_N16.dtype}")
    return hashlib.sha256(np.ascontiguousarray(ids_N16).tobytes()).hexdigest()
