"""One source to one Arrow file of canonical conversations, addressed by the source's bytes and how it is read."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.core.errors import DataError, did_you_mean
from dataflex_tools.core.fingerprint import canonical_json, digest
from dataflex_tools.core.hashes import digests_in
from dataflex_tools.core.lock import hold
from dataflex_tools.core.temporary import temporary_for
from dataflex_tools.data.ipc import is_whole, not_whole, publish, read_ipc, write_ipc
from dataflex_tools.data.records import as_json, detect_form, renamed, sample_id, to_conversation
from dataflex_tools.data.sources import Source, SourceSpec

logger = logging.getLogger("flextools")

_FORMAT = 2
_ROWS = 4096  # rows of a record batch, fewer if their texts are long: books would fill the memory
_CHARACTERS = 2**26
SCHEMA = pa.schema(
    [
        ("id", pa.binary(16)),
        ("number", pa.int64()),
        ("conversation", pa.large_string()),
        ("domain", pa.string()),
        ("subtask", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """What was found in a source. `num_duplicates` counts rows whose content an earlier row of it has; with `skip_bad`
    rows that cannot be used are left out, here and later."""

    path: str
    domain: str
    form: str
    num_rows: int
    num_bad: int
    num_duplicates: int
    sha256: str
    skip_bad: bool = False


def ingest(source: Source, path: str, cache: Path) -> tuple[pa.Table, SourceReport]:
    """The memory-mapped rows of a source and the report on them; read once, then taken from `cache`.

    `path` is how the user named the source. Memory does not grow with the source beyond 16 bytes a row.
    """
    spec, sha256 = source.spec, source.sha256()
    file = cache / "corpus" / f"{digest(_address(spec, sha256) | {'reader': source.reader})}.arrow"
    facts_file = file.with_suffix(".json")
    digests = digests_in(cache)
    if not_whole([file, facts_file], digests):
        with hold(file, f"reading {path}"):
            if not (is_whole(file, digests) and is_whole(facts_file, digests)):
                reading = _Reading(source, path)
                write_ipc(file, SCHEMA, reading.batches())
                _write_facts(facts_file, reading)
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    report = SourceReport(path=path, domain=spec.domain or source.name, sha256=sha256, skip_bad=spec.skip_bad, **facts)
    return read_ipc(file), report


def _address(spec: SourceSpec, sha256: str) -> dict[str, Any]:
    kept = ("form", "subset", "split", "domain_column", "subtask_column", "skip_bad")
    settings = {name: getattr(spec, name) for name in kept}
    if spec.unused:
        settings["leave_out"] = sorted(spec.unused)
    return settings | {
        "format": _FORMAT, "sha256": sha256, "columns": dict(spec.columns), "tags": dict(spec.tags),
    }  # fmt: skip


def _write_facts(path: Path, reading: "_Reading") -> None:
    ids = np.frombuffer(b"".join(reading.ids), dtype="S16")
    num_duplicates = len(ids) - len(np.unique(ids))
    facts = {"form": reading.form, "num_rows": len(ids), "num_bad": reading.num_bad, "num_duplicates": num_duplicates}
    hidden = temporary_for(path)
    hidden.write_text(canonical_json(facts), encoding="utf-8")
    publish(hidden, path)


@dataclass
class _Reading:
    """One pass over a source; its counts are complete when `batches` has ended."""

    source: Source
    path: str
    form: str = ""
    num_bad: int = 0
    first_bad: str = ""
    ids: list[bytes] = field(default_factory=list)
    _first_number: int = 0
    _seen: set[str] = field(default_factory=set)

    def batches(self) -> Iterator[pa.RecordBatch]:
        rows: list[tuple[Any, ...]] = []
        size = 0
        for number, record in self.source.records(self._bad):
            row = self._row(number, record)
            if row is not None:
                rows.append(row)
                size += len(row[2])
            if len(rows) == _ROWS or size > _CHARACTERS:
                yield self._batch(rows)
                rows, size = [], 0
        if rows:
            yield self._batch(rows)
        self._check()

    def _batch(self, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
        columns = list(zip(*rows, strict=True))
        self.ids.append(b"".join(columns[0]))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)

    def _row(self, number: int, record: dict[str, Any]) -> tuple[Any, ...] | None:
        spec = self.source.spec
        self._seen.update(record)
        unused = spec.unused
        columns = (spec.domain_column, spec.subtask_column)
        used = record
        if unused:
            used = {name: value for name, value in record.items() if name not in unused}
        try:
            self._agree_on_form(number, used)
            conversation = to_conversation(used, self.form, columns=spec.columns, tags=spec.tags)
            groups = [_group(record, column) for column in columns]
        except DataError as error:
            if isinstance(error, _MixedFormsError):
                raise
            if not spec.skip_bad:
                hint = "repair it, or leave such rows out with --skip-bad"
                raise DataError(f"{self.source.place(number)}: {error}; {hint}") from None
            self._bad(number, str(error))
            return None
        self._seen.update(column for column in columns if column is not None and _value(record, column) is not None)
        return sample_id(conversation), number, as_json(conversation), *groups

    def _agree_on_form(self, number: int, record: dict[str, Any]) -> None:
        spec = self.source.spec
        if not self.form:
            self.form = detect_form(record, spec.columns) if spec.form == "auto" else spec.form
            self._first_number = number
        elif spec.form == "auto" and detect_form(record, spec.columns) != self.form:
            raise _MixedFormsError(
                f"{self.path} mixes record forms: row {self._first_number} is {self.form}, row {number} is "
                f"{detect_form(record, spec.columns)} ({', '.join(renamed(record, spec.columns))}); "
                "split the file by form and give each with its own --data"
            )

    def _bad(self, number: int, message: str) -> None:
        self.num_bad += 1
        self.first_bad = self.first_bad or f"row {number}: {message}"

    def _check(self) -> None:
        spec = self.source.spec
        wanted = [*spec.columns.values(), *filter(None, (spec.domain_column, spec.subtask_column))]
        for name in wanted:
            if self._seen and name not in self._seen:
                raise DataError(f"{self.path}: no row has the column {name!r}; {did_you_mean(name, self._seen)}")
        if not self.ids:
            why = f"; all {self.num_bad:,} rows are bad, {self.first_bad}" if self.num_bad else "; give one with records"
            raise DataError(f"{self.path} holds no record that can be used{why}")
        if self.num_bad:
            logger.warning("%s: %s bad rows left out, first: %s", self.path, f"{self.num_bad:,}", self.first_bad)


class _MixedFormsError(DataError):
    """Not a bad row that may be skipped: the file as a whole is ambiguous."""


def _group(record: Mapping[str, Any], column: str | None) -> str | None:
    value = _value(record, column) if column is not None else None
    if value is None or value == "":
        return None
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"column {column!r} holds text that cannot be stored: {error}") from None
    return text


def _value(record: Mapping[str, Any], column: str) -> Any:
    """What a column holds; `meta.source` is the field `source` of the column `meta`. None if it is not there."""
    if column in record:
        return record[column]
    first, dot, rest = column.partition(".")
    inner = record.get(first)
    return _value(inner, rest) if dot and isinstance(inner, Mapping) else None
