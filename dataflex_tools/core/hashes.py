"""Digests of files, each taken once as long as the file's size and time stamps stay as they are.

A time stamp is coarse: two writes within one tick of the clock look like one. A digest is therefore remembered only for a
file that was last changed a while before it was read.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from dataflex_tools.core.fingerprint import file_sha256

JOURNAL = "digests.jsonl"
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system in use (FAT) ticks every 2 s
_JOURNAL_BYTES = 2**20  # smaller files are read faster than a line is looked for


class FileDigests:
    """Digests by file; what is expensive is also kept in `journal`, where later processes find it.

    A journal that cannot be read or written costs time and nothing else.
    """

    def __init__(self, journal: Path | None = None) -> None:
        self._journal, self._is_read = journal, journal is None
        self._known: dict[str, str] = {}

    def sha256(self, path: Path) -> str:
        """SHA-256 (64 hex digits) of a file's bytes."""
        return self.of(path, "sha256", file_sha256)

    def is_as_written(self, path: Path, sha256: str) -> bool:
        """Whether a file's bytes have this SHA-256; a remembered digest alone never says no."""
        return self.sha256(path) == sha256 or file_sha256(path) == sha256

    def of(self, path: Path, kind: str, take: Callable[[Path], str]) -> str:
        """`take(path)`, or what it was when the file was the same; `kind` tells functions apart."""
        key, is_settled, size = _stamp(path, kind)
        if not self._is_read:
            self._read()
        if (known := self._known.get(key)) is not None:
            return known
        value = take(path)
        if is_settled and _stamp(path, kind)[0] == key:
            self._known[key] = value
            if size >= _JOURNAL_BYTES:
                self._append(key, value)
        return value

    def _read(self) -> None:
        assert self._journal is not None
        self._is_read = True
        try:
            lines = self._journal.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):  # half a line that a kill left
                continue
            if isinstance(key, str) and isinstance(value, str):
                self._known[key] = value

    def _append(self, key: str, value: str) -> None:
        if self._journal is None:
            return
        try:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("ab", buffering=0) as handle:
                # one write, begun by an end of line: it cannot be glued to half a line, nor mix with another process's
                handle.write(f"\n{json.dumps([key, value])}\n".encode())
        except OSError:  # a folder that is read only, or a full disk
            self._journal = None


def digests_in(cache: Path) -> FileDigests:
    """The digests remembered in a cache folder, shared by all of this process that use it."""
    return _digests_at(cache.absolute() / JOURNAL)


@functools.cache
def _digests_at(journal: Path) -> FileDigests:
    return FileDigests(journal)


def _stamp(path: Path, kind: str) -> tuple[str, bool, int]:
    """(what stands for the file's state, whether it has not been changed for a while, its bytes)."""
    state = os.stat(path)
    # the time of the last change of the inode cannot be set back as that of the content can
    is_settled = time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED_NS
    key = f"{kind} {path.name} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
    return key, is_settled, state.st_size
