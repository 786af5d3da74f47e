"""Tables of runs that somebody made: the shares of each run's mixture and what was measured after it, joined and checked.

CSV (comma, semicolon or tab; compressed by its ending) or Parquet, one row for each run.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean, near_path, one_line

logger = logging.getLogger("flextools")

# S runs, K domains, M metrics

_INDEX_NAMES = ("index", "run", "run_id", "id", "name")
_SUM_TOLERANCE = 0.02  # shares rounded to three digits: up to 0.004 for 17 domains in published tables
_SHOWN = 5


@dataclass(frozen=True)
class RunTables:
    """Runs as arrays: `weight_SK` rows sum to 1, `metric_SM` may have NaN; `ids`: of the runs, as text.

    `notes`: what was taken for granted, for people.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    weight_SK: np.ndarray
    metrics: tuple[str, ...]
    metric_SM: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    path: Path
    index: str | None
    ids: tuple[str, ...]
    columns: dict[str, pa.ChunkedArray]


def read_run_tables(ratios: Path, metrics: Path, *, index: str | None = None) -> RunTables:
    """The runs of two tables, joined by `index`, by a first column that names the runs in both, else by their order.

    Raises DataError, with file, run and column, for what cannot be read or fitted; ConfigError for an unknown `index`.
    """
    first, second = (_read(path, index) for path in (ratios, metrics))
    order, notes = _joined(first, second)
    names = tuple(first.columns)
    weight_SK = np.stack([_numbers(first, name) for name in names], axis=1)
    _check_shares(first, weight_SK)
    _check_varied(first, weight_SK)
    weight_SK, note = _scaled(first, weight_SK)
    notes += [note] if note else []
    numeric = [name for name in second.columns if _is_number(second.columns[name].type)]
    if not numeric:
        raise DataError(f"{metrics} has no column of numbers, wanted a metric for each run; give another --metrics")
    metric_SM = np.stack([_numbers(second, name)[order] for name in numeric], axis=1)
    ids = first.ids or tuple(str(row) for row in range(len(weight_SK)))
    if twins := len(weight_SK) - len(np.unique(weight_SK, axis=0)):
        notes.append(f"{twins} runs repeat the mixture of another one: they are held out together")
    return RunTables(ids, names, weight_SK, tuple(numeric), metric_SM, tuple(notes))


def read_table(path: Path) -> pa.Table:
    """A CSV or Parquet file. Raises DataError if it is missing, empty, or not readable as what its ending says."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        hint = near_path(path) or "give a CSV or Parquet file with a row for each run"
        raise DataError(f"{path} {what}; {hint}")
    try:
        table = pq.read_table(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); give CSV in UTF-8, or Parquet") from None
    if twice := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
        raise DataError(f"{path} has the column {twice[0]!r} twice; rename or remove one")
    if not table.num_rows:
        raise DataError(f"{path} has no rows, wanted one for each run")
    return table


def _read_csv(path: Path) -> pa.Table:
    with pa.input_stream(str(path), compression="detect") as stream:
        head = stream.read(2**16).decode("utf-8-sig", errors="replace").partition("\n")[0]
    delimiter = max(",;\t", key=head.count)  # a comma where there is none of them
    return pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter))


def _read(path: Path, index: str | None) -> _Table:
    table = read_table(path)
    found = _index_of(path, table, index)
    ids = () if found is None else _ids(path, table.column(found), found)
    left = [name for name in table.column_names if name != found and not _is_unnamed(name)]
    if not left:
        raise DataError(f"{path} has no columns besides {found!r}, wanted one for each domain or metric")
    return _Table(path, found, ids, {name: table.column(name) for name in left})


def _index_of(path: Path, table: pa.Table, index: str | None) -> str | None:
    """The column that names the runs: the one asked for, else the first if it is called so or holds text."""
    if index is not None:
        if index not in table.column_names:
            raise ConfigError(f"{path} has no column {index!r} (--index); {did_you_mean(index, table.column_names)}")
        return index
    columns: list[str] = table.column_names
    named = [name for name in columns if not _is_unnamed(name)]
    if named and (named[0].lower() in _INDEX_NAMES or pa.types.is_string(table.column(named[0]).type)):
        return named[0]
    return next((name for name in columns if _is_unnamed(name)), None)


def _is_unnamed(name: str) -> bool:
    """Whether a column holds the row numbers that pandas writes."""
    return name in ("", "__index_level_0__") or name.startswith("Unnamed:")


def _ids(path: Path, column: pa.ChunkedArray, name: str) -> tuple[str, ...]:
    values = column.to_pylist()
    ids = tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    if None in values:
        raise DataError(f"{path}: {name!r} is empty in row {values.index(None) + 1}; every run needs a name there")
    if twice := next((one for one in ids if ids.count(one) > 1), None) if len(set(ids)) < len(ids) else None:
        raise DataError(f"{path}: {name!r} names the run {twice} twice; keep one row of it, or number the runs")
    return ids


def _joined(first: _Table, second: _Table) -> tuple[np.ndarray, list[str]]:
    """The row of the second table for each row of the first."""
    if first.index is None or second.index is None:
        counts = [len(next(iter(table.columns.values()))) for table in (first, second)]
        if counts[0] != counts[1]:
            raise DataError(
                f"{first.path} has {counts[0]} rows and {second.path} {counts[1]}, and no column names the runs in both; "
                "give both a column of run names (--index NAME), or as many rows in the same order"
            )
        return np.arange(counts[0]), ["the tables are joined by the order of their rows: no column names the runs in both"]
    for one, other in ((first, second), (second, first)):
        if lacking := [run for run in one.ids if run not in set(other.ids)]:
            shown = ", ".join(lacking[:_SHOWN]) + (f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else "")
            raise DataError(
                f"{len(lacking)} of the {len(one.ids)} runs of {one.path} ({one.index} {shown}) are not in {other.path} "
                f"({other.index}); remove them there, or name the column that both have with --index"
            )
    place = {run: row for row, run in enumerate(second.ids)}
    note = f"the tables are joined by {first.index!r}" + ("" if first.index == second.index else f" and {second.index!r}")
    return np.array([place[run] for run in first.ids]), [note]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))


def _numbers(table: _Table, name: str) -> np.ndarray:
    """(S,) float64, NaN where a cell is empty."""
    column = table.columns[name]
    if not _is_number(column.type):
        example = next((value for value in column.to_pylist() if not _reads_as_number(value)), column[0].as_py())
        raise DataError(
            f"{table.path}: column {name!r} holds {example!r}, wanted numbers; correct or remove it, or name the runs by it "
            f"with --index {name!r}"
        )
    return np.array([np.nan if value is None else float(value) for value in column.to_pylist()])


def _reads_as_number(value: Any) -> bool:
    try:
        float("nan" if value is None else value)
    except (TypeError, ValueError):
        return False
    return True


def _run_of(table: _Table, row: int) -> str:
    return f"row {row + 1}" if table.index is None else f"run {table.ids[row]}"


def _check_shares(table: _Table, weight_SK: np.ndarray) -> None:
    names = list(table.columns)
    for row, k in np.argwhere(~np.isfinite(weight_SK)):
        raise DataError(f"{table.path}: the share of {names[k]!r} in {_run_of(table, row)} is missing; write 0 for none")
    for row, k in np.argwhere(weight_SK < 0):
        raise DataError(
            f"{table.path}: the share of {names[k]!r} in {_run_of(table, row)} is {weight_SK[row, k]:g}, wanted 0 or more"
        )


def _scaled(table: _Table, weight_SK: np.ndarray) -> tuple[np.ndarray, str]:
    """Rows that sum to 1, and what was done to them; raises DataError for what are no shares."""
    sum_S = weight_SK.sum(axis=1)
    total = 100.0 if np.median(sum_S) > 10 else 1.0
    off_S = np.abs(sum_S / total - 1)
    if (off_S > _SUM_TOLERANCE).any():
        row = int(off_S.argmax())
        raise DataError(
            f"{table.path}: the shares of {_run_of(table, row)} sum to {sum_S[row]:.4g}, wanted 1 (or 100 in all rows, for "
            "percentages); correct the row, name a column that is no domain with --index, or remove it"
        )
    scaled_SK = weight_SK / sum_S[:, None]
    if total == 1 and off_S.max() < 1e-9:
        return scaled_SK, ""
    kind = "percentages" if total == 100 else "shares"
    return scaled_SK, f"{kind} sum to {sum_S.min():.4g} to {sum_S.max():.4g} and are scaled to sum to 1"


def _check_varied(table: _Table, weight_SK: np.ndarray) -> None:
    names = list(table.columns)
    for k in np.flatnonzero(np.ptp(weight_SK, axis=0) == 0):
        share = weight_SK[0, k]
        raise DataError(
            f"{table.path}: the share of {names[k]!r} is {share:g} in all {len(weight_SK)} runs, so that nothing tells its "
            f"effect; {'remove the column' if share == 0 else 'remove the column and give the shares of the rest'}"
        )


def named_numbers(path: Path, names: Sequence[str]) -> dict[str, float]:
    """A number for each domain: a table of one row with a column for each, or of two columns, names and numbers."""
    table = read_table(path)
    if table.num_columns == 2 and pa.types.is_string(table.column(0).type) and _is_number(table.column(1).type):
        return dict(zip(table.column(0).to_pylist(), map(float, table.column(1).to_pylist()), strict=True))
    if table.num_rows == 1 and set(names) <= set(table.column_names):
        return {name: float(table.column(name)[0].as_py()) for name in names}
    raise DataError(
        f"{path} has {table.num_rows} rows and {table.num_columns} columns, wanted a column for each domain and one row, or "
        "two columns, domain and share"
    )
