"""Parquet and Arrow files as streams of records: the columns asked for, whatever lies in others."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex_tools.core.errors import DataError, one_line
from dataflex_tools.data.files import looks_like

Record = tuple[int, dict[str, Any]]
# told of a bad row: its number and what is wrong; raises unless bad rows are skipped
Bad = Callable[[int, str], None]

_ROWS = 1024  # rows decoded at once
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# what pyarrow raises for a damaged file; for a value that has no Python form also the two below
_DAMAGED = (pa.ArrowException, OSError, ValueError)
NO_VALUE = (pa.ArrowException, ValueError, OverflowError, KeyError)


def read_parquet(path: Path, bad: Bad, asked: Container[str] | None = None) -> Iterator[Record]:
    """(row number from 1, record) of a Parquet file.

    `asked`: the columns to read, all if None; the others hold None.
    """
    with refusing(f"{path} cannot be read as Parquet", path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = _wanted(path, names, asked)
        batches = file.iter_batches(batch_size=_ROWS, columns=wanted)
        yield from _records(batches, names, wanted, bad)


def read_arrow(path: Path, bad: Bad, asked: Container[str] | None = None) -> Iterator[Record]:
    """(row number from 1, record) of an Arrow IPC file or stream; `asked` as in `read_parquet`."""
    with refusing(f"{path} cannot be read as Arrow IPC", path):
        check_stream_ends(path)
        with pa.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            opening = pa.ipc.open_file if is_file else pa.ipc.open_stream
            names = opening(mapped).schema.names
            wanted = _wanted(path, names, asked)
            options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in wanted])
            mapped.seek(0)
            reader = opening(mapped, options=options)
            batches = reader
            if is_file:
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            yield from _records(map(_validated, batches), names, wanted, bad)


def check_stream_ends(path: Path) -> None:
    """Raise DataError for an Arrow stream without its end, which would read as a shorter one."""
    with path.open("rb") as handle:
        if handle.read(4) != _END_OF_STREAM[:4]:
            return  # an Arrow file, which has a footer, or a stream of before 2019
        handle.seek(-min(8, path.stat().st_size), 2)
        if handle.read() != _END_OF_STREAM:
            found = "is an Arrow stream without its end"
            raise DataError(f"{path} {found}: it is cut off; fetch it again")


@contextmanager
def refusing(what: str, path: Path | None) -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into a DataError that begins with `what`."""
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's doing: a permission, a full disk
        hint = "make it anew" if path is None else looks_like(path)
        raise DataError(f"{what} ({one_line(error)}); {hint}") from None


def _wanted(path: Path, names: Sequence[str], asked: Container[str] | None) -> list[str]:
    """The columns to read, in the file's order. Raises DataError if two of them have one name."""
    wanted = [name for name in names if asked is None or name in asked]
    for name in wanted:
        if (count := wanted.count(name)) > 1:
            raise DataError(f"{path} has {count} columns called {name!r}; rename all but one")
    return wanted


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, once its offsets are known to lie in its buffers: files are mapped as they are."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):  # that is a bad row, not a damaged file
                raise
    return batch


def _records(
    batches: Iterable[pa.RecordBatch],
    names: Sequence[str],
    wanted: Sequence[str],
    bad: Bad,
) -> Iterator[Record]:
    empty: dict[str, Any] = dict.fromkeys(names)
    first = 0
    for batch in batches:
        indices = [batch.schema.get_field_index(name) for name in wanted]
        for start in range(0, batch.num_rows, _ROWS):
            part = batch.slice(start, _ROWS)
            columns = [part.column(index) for index in indices]
            for offset, values in _values(columns, wanted, part.num_rows, first, bad):
                yield first + offset + 1, empty | dict(zip(wanted, values, strict=True))
            first += part.num_rows


def _values(
    columns: Sequence[pa.Array],
    wanted: Sequence[str],
    num_rows: int,
    first: int,
    bad: Bad,
) -> Iterator[tuple[int, Sequence[Any]]]:
    """(offset, values) of each row; a row with a value that Python cannot hold goes to `bad`."""
    try:
        lists = [column.to_pylist() for column in columns]
    except NO_VALUE:
        lists = []
    if lists or not columns:
        rows: Iterable[Sequence[Any]] = zip(*lists, strict=True) if lists else [()] * num_rows
        yield from enumerate(rows)
        return
    for offset in range(num_rows):
        values, fault = _row(columns, wanted, offset)
        if fault:
            bad(first + offset + 1, fault)
        else:
            yield offset, values


def _row(columns: Sequence[pa.Array], wanted: Sequence[str], offset: int) -> tuple[list[Any], str]:
    values: list[Any] = []
    for name, column in zip(wanted, columns, strict=True):
        try:
            values.append(column[offset].as_py())
        except NO_VALUE as error:
            return values, f"has a value in column {name!r} that cannot be read ({one_line(error)})"
    return values, ""
