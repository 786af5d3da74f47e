"""What a file is, by its name and by its first bytes, and its content as a stream, unpacked."""

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from dataflex_tools.core.errors import DataError, one_line
from dataflex_tools.data.records import COLUMNS

COLUMNAR = (".parquet", ".arrow", ".feather")
TEXTUAL = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
KINDS = (*TEXTUAL, *COLUMNAR)
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_HEAD = 1 << 16  # bytes that are looked at to say what a file is
_BOM = b"\xef\xbb\xbf"


def _zstd(path: Path) -> Any:
    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
COMPRESSED = tuple(_OPENERS)
# gzip, bz2 and pyarrow raise OSError without an errno for a damaged stream
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


def kind_of(path: Path) -> str:
    """The ending that says how a file is read, in lower case, without its compression, or ""."""
    ending = path.suffix.lower()
    if ending not in COMPRESSED:
        return ending if ending in KINDS else ""
    inner = Path(path.stem).suffix.lower()
    return inner if inner in TEXTUAL else ""


def bare_name(path: Path) -> str:
    """A file's name without the endings that say how it is read: `web` for `web.jsonl.gz`."""
    is_compressed = path.suffix.lower() in COMPRESSED and kind_of(path) != ""
    return Path(path.stem).stem if is_compressed else path.stem


def unreadable(path: Path) -> str:
    """Why a file whose `kind_of` is "" cannot be read, and what to do, for messages."""
    ending = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    if ending in _ARCHIVES or inner == ".tar":
        return f"{path} is an archive; unpack it and name what it holds"
    if ending in COMPRESSED and inner in COLUMNAR:
        why = "they compress their columns themselves"
        return f"{path}: {inner[1:]} files are read unpacked ({why})"
    if ending in COMPRESSED:
        example = f"{path.stem}.jsonl{ending}"
        return f"{path} does not say what is compressed; rename it, for example to {example}"
    found = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
    known = f"{', '.join(KINDS)} (text also compressed: {', '.join(COMPRESSED)})"
    return f"{path} {found}; files that can be read end in {known}; {looks_like(path)}"


def is_near_kind(path: Path) -> bool:
    """Whether a file's ending is that of data, or nearly so: `.jsnl`, `.JSONL.GZ`."""
    ending = path.suffix.lower()
    known = (*KINDS, *COMPRESSED, *_ARCHIVES)
    if ending in known:
        return True
    return ending[1:].isalnum() and bool(get_close_matches(ending, known, n=1, cutoff=0.8))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file as a stream, unpacked by its ending.

    Raises DataError for a damaged or cut packing.
    """
    try:
        with _stream(path) as handle:
            yield handle
    except _DAMAGED as error:
        if _is_the_machines(error) or path.suffix.lower() not in COMPRESSED:
            raise
        cause = one_line(error)
        raise DataError(f"{path} cannot be unpacked ({cause}); {looks_like(path)}") from None


def _stream(path: Path) -> Any:
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)


def _is_the_machines(error: BaseException) -> bool:
    """Whether an error is the machine's doing: a permission, a full disk."""
    return isinstance(error, OSError) and error.errno is not None


def head_of(path: Path) -> bytes:
    """The first 64 KiB of a file's content, without byte order mark and leading white space."""
    try:
        with _stream(path) as handle:
            head: bytes = handle.read(_HEAD)
    except _DAMAGED as error:
        if _is_the_machines(error):
            raise
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
    return head.removeprefix(_BOM).lstrip()


def looks_like(path: Path) -> str:
    """What the first bytes of a file say it is and what to do about it, for messages."""
    head = head_of(path)
    if found := foreign(path, head):
        return found
    if head.startswith(b"{"):
        return _renamed(path, ".jsonl", "JSON, one object per line")
    try:
        head[:80].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < 80:
            return "it is no text"
    return f"it begins with {shown(head)}" if head else "it is empty"


def foreign(path: Path, head: bytes) -> str:
    """What `head`, of a file that should hold objects or text, says it is instead, or ""."""
    if _is_binary(head) or kind_of(path) in COLUMNAR:
        for mark, ending, what in _FORMATS:
            if head.startswith(mark):
                return _renamed(path, ending, what)
    for mark, advice in _OTHERS:
        if head[: len(mark)].lower() == mark.lower() and (_is_binary(head) or mark in _OF_TEXT):
            return f"it looks like {advice}"
    if is_utf16(head):
        return f"it looks like {_UTF16}"
    if head.startswith(b"["):
        return _renamed(path, ".json", "a JSON array")
    return _over_lines(head)


def is_utf16(head: bytes) -> bool:
    """Whether `head` is text in UTF-16 or UTF-32: it says so, or every other byte is zero."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return True
    half = len(head[:64]) // 2
    zeros = max(head[0:64:2].count(0), head[1:64:2].count(0))
    return half > 4 and zeros > 0.8 * half


def _is_binary(head: bytes) -> bool:
    try:
        return "\0" in head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end < len(head) - 3  # the end of the head may cut a character


_UTF16 = "text in UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
_WEB_PAGE = "a web page: fetch the file itself"
# first bytes, the ending such a file should have, what it is
_FORMATS = (
    (b"PAR1", ".parquet", "Parquet"),
    (b"ARROW1", ".arrow", "Arrow IPC"),
    (b"\xff\xff\xff\xff", ".arrow", "an Arrow IPC stream"),
    (b"\x1f\x8b", ".gz", "gzip"),
    (b"BZh", ".bz2", "bzip2"),
    (b"\xfd7zXZ\x00", ".xz", "xz"),
    (b"\x28\xb5\x2f\xfd", ".zst", "Zstandard"),
)
_OF_TEXT = (b"version https://git-lfs", b"<!DOCTYPE", b"<html")
# first bytes in any case, what it is and what to do
_OTHERS = (
    (b"PARE", "Parquet with an encrypted footer: decrypt it"),
    (b"FEA1", "Feather of version 1: write it again as version 2"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet): unpack it, or save it as CSV"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"<!DOCTYPE", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
)


def _renamed(path: Path, ending: str, what: str) -> str:
    """The hint for a format whose files end in `ending`: rename it, or fetch it anew."""
    if ending in COMPRESSED:
        if path.suffix.lower() == ending:
            return f"it is {what}, damaged or cut off: fetch it again"
        return f"it looks like {what}: rename it to end in {path.suffix}{ending}"
    is_packed = path.suffix.lower() in COMPRESSED
    kind = kind_of(path)
    if not is_packed and (kind == ending or {kind, ending} == {".arrow", ".feather"}):
        return f"it begins as {what} and is damaged or cut off: fetch it again"
    return f"it looks like {what}: rename it to end in {ending}"


def _over_lines(head: bytes) -> str:
    """The hint for JSON objects written over several lines, "" if `head` holds none."""
    first = head.partition(b"\n")[0].rstrip()
    if not head.startswith(b"{") or len(first) == len(head.rstrip()) or not _is_open(first):
        return ""
    text = head.decode("utf-8", "replace")
    try:
        json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return ""
    except ValueError as error:
        if len(head) < _HEAD // 2 or not _ends_early(error, text):
            return ""
    found = _WRAPPER.match(text)
    chosen = f".{found[1]}[]" if found and found[1] not in _OURS else "."
    command = f"jq -c '{chosen}' FILE > NEW.jsonl"
    return f"it holds JSON written over several lines: write one object per line ({command})"


# an object whose first list is one of objects: records under a name
_WRAPPER = re.compile(r'\{\s*(?:"\w+":\s*(?:"[^"]*"|[\w.+-]+),\s*)*"(\w+)":\s*\[\s*\{')
_OURS = {name for required, optional in COLUMNS.values() for name in (*required, *optional)}


def _is_open(line: bytes) -> bool:
    """Whether a line is the beginning of a JSON value that more lines could end."""
    text = line.decode("utf-8", "replace")
    try:
        json.loads(text)
    except RecursionError:
        return False
    except ValueError as error:
        return isinstance(error, json.JSONDecodeError) and error.pos >= len(text)
    return False


def _ends_early(error: ValueError, text: str) -> bool:
    """Whether the text ends where the fault is: a value cut by the end of what was read."""
    if "Unterminated string" in str(error):
        return True
    return isinstance(error, json.JSONDecodeError) and error.pos >= len(text) - 16


def shown(line: bytes) -> str:
    """The beginning of a line, for messages."""
    return repr(line[:80].decode("utf-8", "replace"))
