"""Arrow IPC files that appear whole or not at all, and are read without being copied into memory."""

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from dataflex_tools.core.errors import DataError


def write_ipc(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write `batches` to a hidden temporary beside `path`, then rename it; nothing is left behind on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with hidden.open("wb") as handle:
            with pa.ipc.new_file(handle, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def read_ipc(path: Path) -> pa.Table:
    """The table in a file written by `write_ipc`, memory-mapped. Raises DataError if the file is damaged."""
    try:
        # the mapping outlives the handle: thousands of files do not use up the process's file descriptors
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
            return reader.read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f"cache file {path} is damaged ({error}); delete it and run again") from None
