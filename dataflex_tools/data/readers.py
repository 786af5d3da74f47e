"""File formats as streams of raw records; a reader holds a block of the file in memory, never the whole of it."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex_tools.core.errors import DataError

Record = tuple[int, dict[str, Any]]
Bad = Callable[[int, str], None]  # told of a bad row: its number and what is wrong; raises unless bad rows are skipped

_BLOCK = 1 << 20  # characters read at once from a JSON array
_ROWS = 1024  # rows decoded at once from a columnar file


def looks_like(path: Path) -> str:
    """What the first bytes of a file say it is, with the ending it should have, for messages."""
    with path.open("rb") as handle:
        head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if (known := [text for mark, text in _MARKS.items() if head.startswith(mark)]) and known:
        return f"it looks like {known[0]}"
    try:
        head[:80].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < 80:
            return "it is no text"
    return f"it begins with {_shown(head)}"


_MARKS = {
    b"PAR1": "Parquet: rename it to end in .parquet", b"ARROW1": "Arrow IPC: rename it to end in .arrow",
    b"{": "JSON, one object per line: rename it to end in .jsonl", b"[": "a JSON array: rename it to end in .json",
    b"\x1f\x8b": "gzip: unpack it", b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`",
    b"<!DOCTYPE": "a web page: fetch the file itself", b"<html": "a web page: fetch the file itself",
}  # fmt: skip


def read_jsonl(path: Path, bad: Bad) -> Iterator[Record]:
    """(line number from 1, record) of a file with one JSON object per line; blank lines are passed over."""
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            if not line:
                continue
            if number == 1 and not line.startswith(b"{") and line.startswith(tuple(_MARKS)):
                raise DataError(f"{path} does not hold one JSON object per line; {looks_like(path)}")
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                bad(number, f"is not JSON ({_cause(error)}): {_shown(line)}")
                continue
            if not isinstance(value, dict):
                bad(number, f"holds {type(value).__name__}, wanted a JSON object: {_shown(line)}")
                continue
            yield number, value


def read_json(path: Path, bad: Bad) -> Iterator[Record]:
    """(number from 1, record) of a JSON array of objects, or of one object per line."""
    with path.open("rb") as handle:
        head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        handle.seek(0)
        line = handle.readline().removeprefix(b"\xef\xbb\xbf").strip()
    if head.startswith(b"["):
        yield from _read_array(path, bad)
    elif head.startswith(b"{") and (line.endswith(b"}") or not line.startswith(b"{")):
        yield from read_jsonl(path, bad)
    else:
        raise DataError(f"{path} is neither a JSON array of records nor one JSON object per line; {looks_like(path)}")


def _read_array(path: Path, bad: Bad) -> Iterator[Record]:
    decoder, number = json.JSONDecoder(), 0
    try:
        with path.open(encoding="utf-8-sig") as handle:
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


def read_csv(path: Path, bad: Bad) -> Iterator[Record]:
    """(row number from 1, the header not counted, record) of a comma- or (.tsv) tab-separated file; values are text."""
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than many documents
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            if handle.read(1) in ("{", "["):
                raise DataError(f"{path} cannot be read as CSV: {looks_like(path)}")
            handle.seek(0)
            reader = csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            for number, row in enumerate(reader, start=1):
                width = len(reader.fieldnames or ())
                if None in row or None in row.values():
                    found = sum(value is not None for key, value in row.items() if key is not None)
                    found += len(row.get(None, ()))
                    bad(number, f"has {found} fields, the header has {width}")
                    continue
                yield number, dict(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8 ({_cause(error)}); {looks_like(path)}") from None


def read_parquet(path: Path, bad: Bad) -> Iterator[Record]:
    """(row number from 1, record) of a Parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            yield from _rows(file.iter_batches(batch_size=_ROWS))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as Parquet ({_first(error)}); {looks_like(path)}") from None


def read_arrow(path: Path, bad: Bad) -> Iterator[Record]:
    """(row number from 1, record) of an Arrow IPC file or stream."""
    try:
        with pa.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            if is_file:
                reader = pa.ipc.open_file(mapped)
                yield from _rows(reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                yield from _rows(pa.ipc.open_stream(mapped))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as Arrow IPC ({_first(error)}); {looks_like(path)}") from None


def read_text(path: Path, bad: Bad) -> Iterator[Record]:
    """(1, {"text": all of it}) of a file of plain text; records under the wrong ending are an error, not a text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 ({_cause(error)}): convert it; {looks_like(path)}") from None
    if text.startswith("version https://git-lfs") or _is_object(text.lstrip().partition("\n")[0]):
        raise DataError(f"{path} does not hold plain text; {looks_like(path)}")
    yield 1, {"text": text}


def _is_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for record in batch.slice(start, _ROWS).to_pylist():
                number += 1
                yield number, record


def _cause(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _first(error: Exception) -> str:
    return _cause(error).split(". ")[0]


def _shown(line: bytes) -> str:
    return repr(line[:80].decode("utf-8", "replace"))


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
