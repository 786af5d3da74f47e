"""File formats as streams of raw records; a reader holds a block of the file in memory, never the whole of it."""

import csv
import io
import json
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, TextIO

from dataflex_tools.core.errors import DataError
from dataflex_tools.data.columnar import Bad, Record, read_arrow, read_parquet
from dataflex_tools.data.files import foreign, head_of, is_utf16, kind_of, looks_like, opened, shown

_BLOCK = 1 << 20  # characters read at once from a JSON array
_BOM = b"\xef\xbb\xbf"


def read_file(
    path: Path,
    bad: Bad,
    asked: Container[str] | None = None,
    *,
    lines: bool = False,
) -> Iterator[Record]:
    """(line or row number from 1, record) of a file, by its ending.

    `asked`: the columns that are used (None: all); others of a columnar file hold None.
    `lines`: a text file has one record per line.
    """
    kind = kind_of(path)
    if kind in _TABLES:
        return _TABLES[kind](path, bad, asked)
    return read_text_lines(path, bad) if lines else READERS[kind](path, bad)


def read_jsonl(path: Path, bad: Bad) -> Iterator[Record]:
    """(line number from 1, record) of a file with one JSON object per line; blank lines are passed over."""
    is_known = False  # whether it is known to be no other format
    with opened(path) as handle:
        for number, raw in enumerate(handle, start=1):
            line = raw.removeprefix(_BOM).strip() if number == 1 else raw.strip()
            if not line:
                continue
            value, fault = _parsed(line)
            if fault and not is_known and (found := foreign(path, head_of(path))):
                raise DataError(f"{path} does not hold one JSON object per line; {found}")
            is_known = True
            if fault:
                bad(number, f"{fault}: {shown(line)}")
            else:
                yield number, value


def _parsed(line: bytes) -> tuple[Any, str]:
    """(the object on a line, "") or (None, what is wrong with it)."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON ({_cause(error)})"
    if not isinstance(value, dict):
        return None, f"holds {type(value).__name__}, wanted a JSON object"
    return value, ""


def read_json(path: Path, bad: Bad) -> Iterator[Record]:
    """(number from 1, record) of a JSON array of objects, or of one object per line."""
    head = head_of(path)
    if head.startswith(b"[") and not is_utf16(head):
        yield from _read_array(path, bad)
    elif head.startswith(b"{") and not foreign(path, head):
        yield from read_jsonl(path, bad)
    else:
        raise DataError(f"{path} is neither a JSON array of records nor one JSON object per line; {looks_like(path)}")


def _read_array(path: Path, bad: Bad) -> Iterator[Record]:
    decoder, number = json.JSONDecoder(), 0
    try:
        with opened(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as handle:
            text, position = _filled(handle.read(_BLOCK).lstrip()[1:], 0, handle)
            while text[position : position + 1] != "]":
                number += 1
                value, position, text = _decoded(decoder, text, position, handle, f"{path} record {number}")
                if isinstance(value, dict):
                    yield number, value
                else:
                    bad(number, f"holds {type(value).__name__}, wanted a JSON object: {str(value)[:80]!r}")
                text, position = _filled(text, position, handle)
                if text[position : position + 1] == ",":
                    text, position = _filled(text, position + 1, handle)
                elif text[position : position + 1] != "]":
                    found = repr(text[position : position + 40]) if text else "the end of the file"
                    raise DataError(f"{path} has {found} after record {number}, wanted ',' or ']'; fetch it again")
            text, position = _filled(text, position + 1, handle)
            if text:
                raise DataError(f"{path} goes on after the JSON array: {text[position : position + 40]!r}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text after record {number}: {_cause(error)}") from None


def _filled(text: str, position: int, handle: TextIO) -> tuple[str, int]:
    """`text` with `position` moved over white space, read on where it ran out; ("", 0) at the end of the file."""
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position < len(text):
            return text, position
        text, position = handle.read(_BLOCK), 0
        if not text:
            return "", 0


def _decoded(decoder: json.JSONDecoder, text: str, position: int, handle: TextIO, place: str) -> tuple[Any, int, str]:
    """(value, position after it, text) of the JSON value at `position`, reading on while the value is cut off."""
    if position > _BLOCK // 2:
        text, position = text[position:], 0
    while True:
        try:
            value, end = decoder.raw_decode(text, position)
            if end < len(text) or isinstance(value, dict | list | str):
                return value, end, text
            cause = "Unterminated number"
        except (ValueError, RecursionError) as error:
            cause = _cause(error)
            fault = error.pos if isinstance(error, json.JSONDecodeError) else 0
            # 16 characters cover a literal or escape that the end of the block cuts; a string may be cut anywhere
            if "Unterminated string" not in cause and fault < len(text) - 16:
                shown = text[max(position, fault - 40) : fault + 40]
                raise DataError(f"{place} is not JSON ({cause}): {shown!r}") from None
        more = handle.read(max(_BLOCK, len(text)))
        if not more:
            raise DataError(f"{place} is cut off by the end of the file ({cause}); fetch it again")
        text += more


def read_csv(path: Path, bad: Bad, asked: Container[str] | None = None) -> Iterator[Record]:
    """(row number from 1, the header not counted, record) of a comma- or (.tsv) tab-separated file.

    Values are text. Two columns of one name are an error if it is `asked` for (None: all are).
    """
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than many documents
    head = head_of(path)
    if head.startswith(b"{") or foreign(path, head):
        raise DataError(f"{path} cannot be read as CSV: {looks_like(path)}")
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    try:
        with (
            opened(path) as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as handle,
        ):
            reader = csv.DictReader(handle, delimiter=delimiter, strict=True)
            names = list(reader.fieldnames or ())
            for name in names:
                if (count := names.count(name)) > 1 and (asked is None or name in asked):
                    twice = f"has {count} columns called {name!r}"
                    raise DataError(f"{path} {twice}; rename all but one")
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    found = sum(value is not None for key, value in row.items() if key is not None)
                    found += len(row.get(None, ()))
                    bad(number, f"has {found} fields, the header has {len(names)}")
                    continue
                yield number, dict(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8 ({_cause(error)}); {looks_like(path)}") from None


def read_text(path: Path, bad: Bad) -> Iterator[Record]:
    """(1, {"text": all of it}) of a file of plain text; records under the wrong ending are an error, not a text."""
    with opened(path) as handle:
        raw = handle.read().removeprefix(_BOM)
    _check_plain(path, raw.lstrip().partition(b"\n")[0])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 ({_cause(error)}): convert it; {looks_like(path)}") from None
    yield 1, {"text": text}


def read_text_lines(path: Path, bad: Bad) -> Iterator[Record]:
    """(line number from 1, {"text": the line}) of plain text; blank lines are passed over."""
    with opened(path) as handle:
        for number, raw in enumerate(handle, start=1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
                _check_plain(path, raw)
            try:
                text = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                bad(number, f"is not text in UTF-8 ({_cause(error)}): {shown(raw)}")
                continue
            if text.strip():
                yield number, {"text": text}


def _check_plain(path: Path, first: bytes) -> None:
    """Raise DataError for a file whose first line is a JSON object, a pointer, and for UTF-16."""
    is_other = first.startswith(b"version https://git-lfs") or is_utf16(head_of(path))
    if is_other or not _parsed(first.strip())[1]:
        raise DataError(f"{path} does not hold plain text; {looks_like(path)}")


def _cause(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_TABLES: dict[str, Callable[[Path, Bad, Container[str] | None], Iterator[Record]]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
READERS: dict[str, Callable[[Path, Bad], Iterator[Record]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".txt": read_text,
}
