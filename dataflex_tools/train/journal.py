"""A file of fixed-size records that survives a kill: appended once per step, cut back to a checkpoint on resume."""

import os
from pathlib import Path

import numpy as np


class Journal:
    """Records of one numpy structured dtype with a `step` field, in the order they were appended.

    Steps never decrease along the file, so a resumed run drops what came after its checkpoint by cutting the tail.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype

    def append(self, records: np.ndarray) -> None:
        """Add records; once this returns they outlive the process, if not the machine."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            handle.write(np.ascontiguousarray(records, dtype=self.dtype).tobytes())

    def sync(self) -> None:
        """Flush to the disk, so that the records outlive the machine as well."""
        if not self.path.exists():
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def cut(self, last_step: int) -> None:
        """Drop the records of steps after `last_step`, and a record a kill left half-written."""
        if not self.path.exists():
            return
        kept = int(np.searchsorted(self.read()["step"], last_step, side="right"))
        os.truncate(self.path, kept * self.dtype.itemsize)

    def read(self) -> np.ndarray:
        """All whole records, mapped from the file; empty if there is none."""
        count = self.path.stat().st_size // self.dtype.itemsize if self.path.exists() else 0
        return np.memmap(self.path, self.dtype, "r", shape=(count,)) if count else np.empty(0, self.dtype)
