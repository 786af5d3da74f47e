"""A corpus: rows from one or more sources, with an id and a group each, memory-mapped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.data.ingest import SourceReport, ingest
from dataflex_tools.data.records import preview
from dataflex_tools.data.sources import SourceSpec, open_source

# N rows of the corpus, S rows stored, B rows asked for

_NAME_CHARS = 4096

__all__ = ["Corpus", "SourceReport", "open_corpus", "overlap"]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rows in corpus order. `group_N`: (N,) int32 codes into `group_names`; `ids_N16`: (N, 16) uint8 content hashes.

    Two corpora with the same `fingerprint` hold the same samples in the same order.
    """

    ids_N16: np.ndarray
    group_N: np.ndarray
    group_names: tuple[str, ...]
    reports: tuple[SourceReport, ...]
    _table: pa.Table
    _stored_N: np.ndarray

    def __len__(self) -> int:
        return len(self._stored_N)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the ids in corpus order."""
        return ids_digest(self.ids_N16)

    def conversation(self, row: int) -> dict[str, Any]:
        """The canonical conversation of a row; see `records`."""
        value: dict[str, Any] = json.loads(self._table["conversation"][int(self._stored_N[row])].as_py())
        return value

    def text(self, row: int) -> str:
        """A row as text for people."""
        return preview(self.conversation(row))

    def place(self, row: int) -> str:
        """Where a row stands in its source, for messages: `pool.jsonl row 17`."""
        stored = int(self._stored_N[row])
        return f"{self._report(row).path} row {self._table['number'][stored].as_py()}"

    def may_skip(self, row: int) -> bool:
        """Whether a row that cannot be used is to be left out instead of stopping the work."""
        return any(report.skip_bad for report in self.reports) and self._report(row).skip_bad

    def _report(self, row: int) -> SourceReport:
        ends = np.cumsum([report.num_rows for report in self.reports])
        return self.reports[int(np.searchsorted(ends, int(self._stored_N[row]), side="right"))]

    def sources_info(self) -> list[dict[str, Any]]:
        """For manifests: path, domain, form, rows (as read) and sha256 of each source."""
        return [
            {"path": r.path, "domain": r.domain, "form": r.form, "rows": r.num_rows, "sha256": r.sha256}
            for r in self.reports
        ]

    def without(self, row_B: np.ndarray) -> "Corpus":
        """The corpus with the given rows left out; nothing is copied, group codes and names stay."""
        kept_N = np.ones(len(self), dtype=bool)
        kept_N[np.asarray(row_B, dtype=np.int64)] = False
        return Corpus(
            self.ids_N16[kept_N], self.group_N[kept_N], self.group_names, self.reports, self._table,
            self._stored_N[kept_N],
        )  # fmt: skip


def open_corpus(specs: Sequence[SourceSpec], cache: Path, *, group: Literal["domain", "subtask"]) -> Corpus:
    """The rows of all sources, in the order given; each source is read once and then taken from `cache`.

    A row's group is the value of the spec's `domain_column` (or `subtask_column`, by `group`), else the spec's domain,
    else the name of the file, folder or dataset. Raises DataError or ConfigError for a source that cannot be used.
    """
    if not specs:
        raise ConfigError("no source given; wanted at least one file, folder or dataset")
    sources = [open_source(spec) for spec in specs]  # wrong paths are found before anything is read
    tables, reports = [], []
    for spec, source in zip(specs, sources, strict=True):
        table, report = ingest(source, spec.path, cache)
        tables.append(table)
        reports.append(report)
    names_S = [_group_names(table[group], report.domain) for table, report in zip(tables, reports, strict=True)]
    group_N, group_names = _codes(names_S)
    if (longest := max(map(len, group_names), default=0)) > _NAME_CHARS:
        raise DataError(
            f"a {group} of the data has a name of {longest:,} characters, at most {_NAME_CHARS:,} are taken; give a "
            f"{group}_column of names, not of text"
        )
    table = pa.concat_tables(tables)
    ids_N16 = np.concatenate([_ids(chunk) for chunk in table["id"].chunks])
    return Corpus(ids_N16, group_N, group_names, tuple(reports), table, np.arange(len(ids_N16)))


def overlap(pool: Corpus, target: Corpus) -> np.ndarray:
    """Rows of `pool` whose content is also in `target`, ascending, (B,) int64."""
    return np.flatnonzero(np.isin(_as_scalars(pool.ids_N16), _as_scalars(target.ids_N16))).astype(np.int64)


def _as_scalars(ids_N16: np.ndarray) -> np.ndarray:
    # numpy sorts S16; the trailing zero bytes it ignores cannot make two ids of equal width equal
    return np.ascontiguousarray(ids_N16).view("S16")[:, 0]


def _ids(chunk: pa.Array) -> np.ndarray:
    values = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    return values[chunk.offset * 16 : (chunk.offset + len(chunk)) * 16].reshape(-1, 16)


def _group_names(column: pa.ChunkedArray, default: str) -> pa.DictionaryArray:
    import pyarrow.compute as pc

    return pc.fill_null(column, default).combine_chunks().dictionary_encode()


def _codes(parts: Sequence[pa.DictionaryArray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """One code per row, names in order of first appearance."""
    code_of: dict[str, int] = {}
    codes = []
    for part in parts:
        map_K = np.array([code_of.setdefault(name, len(code_of)) for name in part.dictionary.to_pylist()], np.int32)
        codes.append(map_K[part.indices.to_numpy()])
    return np.concatenate(codes), tuple(code_of)
