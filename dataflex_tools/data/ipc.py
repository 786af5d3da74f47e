"""Cache files that appear whole or not at all and are checked before use; Arrow IPC that is read without a copy.

Beside each file lies its SHA-256 as `sha256sum` writes it (`NAME.sha256`). A file that does not match is no error: what a
cache holds can be made anew, and is.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.fingerprint import file_sha256
from dataflex_tools.core.hashes import FileDigests
from dataflex_tools.core.temporary import temporary_for

logger = logging.getLogger("flextools")


def publish(hidden: Path, path: Path) -> None:
    """Give a finished file its name, its digest first: no file is ever there without one."""
    seal = _seal_of(path)
    hidden_seal = temporary_for(seal)
    try:
        hidden_seal.write_text(_seal(path, file_sha256(hidden)), encoding="utf-8")
        os.replace(hidden_seal, seal)
        os.replace(hidden, path)
    finally:
        hidden_seal.unlink(missing_ok=True)


def is_whole(path: Path, digests: FileDigests) -> bool:
    """Whether a cache file is there and as it was written."""
    try:
        stated = _seal_of(path).read_text(encoding="utf-8", errors="replace")
        return stated == _seal(path, digests.sha256(path))
    except FileNotFoundError:
        return False


def not_whole(paths: Sequence[Path], digests: FileDigests) -> list[int]:
    """Places of the files that have to be made; says of how many that they were there and are not as written."""
    wanted = [index for index, path in enumerate(paths) if not is_whole(path, digests)]
    if changed := [paths[index] for index in wanted if paths[index].exists()]:
        logger.warning(
            "%d cache files are not as they were written, or of an earlier version, and are made anew (first: %s)",
            len(changed), changed[0],
        )  # fmt: skip
    return wanted


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _seal(path: Path, sha256: str) -> str:
    return f"{sha256}  {path.name}\n"  # with the name: a file that took another's place is found


def write_ipc(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write `batches` to a hidden temporary beside `path`, then rename it; nothing is left behind on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = temporary_for(path)
    try:
        with hidden.open("wb") as handle:
            with pa.ipc.new_file(handle, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            handle.flush()
            os.fsync(handle.fileno())
        publish(hidden, path)
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
