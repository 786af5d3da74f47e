"""A signal on disk: measured samples in immutable parts, joined to any corpus by sample id.

The folder is addressed by its spec alone (model, tokenizer, settings), so it grows: another corpus measures only the
samples that are not there yet. A part appears by rename, whole; parts that a killed run left out are planned again with
the same numbers and rows, so the folder ends byte-identical to one written in one go.

A part is checked before its values are used: against the SHA-256 that the manifest states, or, until a manifest lists it,
against the digest of its values that it carries itself.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.card import CARD, dataset_card
from dataflex_tools.artifact.columns import ids_of, is_number, required, to_arrow, values_digest
from dataflex_tools.artifact.files import (
    check_types,
    open_parquet,
    own_metadata,
    read_columns,
    remove_leftovers,
    with_metadata,
    write_bytes,
    write_table,
)
from dataflex_tools.artifact.ids import first_occurrences, positions_of
from dataflex_tools.artifact.manifest import (
    FORMAT,
    MANIFEST,
    file_entry,
    read_manifest,
    write_manifest,
)
from dataflex_tools.artifact.schema import short
from dataflex_tools.artifact.stored_columns import StoredLists, stored_numbers
from dataflex_tools.artifact.stored_rows import Part, Places, StoredRows
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest, ids_digest
from dataflex_tools.core.hashes import FileDigests

# N samples of a corpus, M of them missing, B rows of a part, D columns of the value

_PART = re.compile(r"part-(\d{5,7})\.parquet")
_GROUP_BYTES = 64 * 2**20
_MOST_ROWS = 2**40
_ANEW = "delete this file and run `flextools score` again"
_FIXED = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("sample_id", pa.binary(16), nullable=False)])


def signal_folder(root: Path, spec: Mapping[str, Any]) -> Path:
    """Where the signal with this spec lives: root/signals/<kind>-<first 16 hex digits of the spec's digest>."""
    return root / "signals" / f"{spec['kind']}-{digest(spec)[:16]}"


def vector_columns(dim: int, storage: Literal["float16", "float32"]) -> pa.Schema:
    """The columns of a signal with one vector per sample: num_tokens, norm (before scaling), value (unit rows)."""
    item = {"float16": pa.float16(), "float32": pa.float32()}[storage]
    return pa.schema([("num_tokens", pa.int32()), ("norm", pa.float32()), ("value", pa.list_(item, dim))])


def list_column(name: str, storage: Literal["float16", "float32"]) -> pa.Field:
    """A column with a list of numbers per sample, of any length."""
    return pa.field(name, pa.list_({"float16": pa.float16(), "float32": pa.float32()}[storage]))


class SignalStore:
    """The parts of one signal. Every rank opens it and plans before any rank writes (a barrier after `plan_parts`)."""

    def __init__(
        self, folder: Path, spec: Mapping[str, Any], columns: pa.Schema, digests: FileDigests | None = None
    ) -> None:
        """`spec`: everything the signal depends on, with its `kind`; `columns`: those beyond row and sample_id; `digests`:
        what is known of files that were read before.

        Raises ArtifactError if the folder holds parts of another spec or parts that cannot be read.
        """
        self.folder, self.spec, self.spec_digest = folder, dict(spec), digest(spec)
        self._digests = digests or FileDigests()
        self.schema = pa.schema([*_FIXED, *(required(field) for field in columns)])
        self._parts: dict[int, Part] = {}
        self._planned: dict[int, tuple[int, int]] = {}
        self._written: set[int] = set()
        self.refresh()

    def __len__(self) -> int:
        return sum(part.num_rows for part in self._parts.values())

    def refresh(self) -> None:
        """Look at the folder again, after other ranks wrote parts."""
        matches = {path: _PART.fullmatch(path.name) for path in self.folder.glob("part-*.parquet")}
        paths = {int(match[1]): path for path, match in matches.items() if match}
        known = self._parts
        self._parts = {n: known.get(n) or self._read_part(n, paths[n]) for n in sorted(paths)}
        row = 0
        for part in self._parts.values():
            if part.first_row < row:
                raise ArtifactError(f"{part.path} holds rows of the part before it; {_ANEW}")
            row = part.first_row + part.num_rows

    def check(self) -> None:
        """Raise ArtifactError, with its name, for a part that is not as it was written.

        Every reader does so for the parts it reads; here for all of them, before anything expensive. A file is read once
        for each of its time stamps.
        """
        self.refresh()
        entries = self._entries()
        for part in self._parts.values():
            self._check_part(part, entries)

    def missing(self, ids_N16: np.ndarray) -> np.ndarray:
        """Rows of `ids_N16` still to be measured, (M,) int64 ascending; of duplicates only the first.

        Looks at the folder again: pool and target may share one signal through two open stores.
        """
        self.refresh()
        first_M = first_occurrences(ids_N16)
        return first_M[positions_of(ids_N16[first_M], self._ids()) < 0]

    def plan_parts(self, missing_ids_M16: np.ndarray, part_rows: int) -> list[tuple[int, slice]]:
        """(part number, slice into `missing_ids_M16`) for each part to write; gaps that a killed run left come first.

        Depends on the parts on disk at the last `missing` or `refresh`, so it is the same on every rank.
        """
        if part_rows < 1:
            raise ValueError(f"part_rows is {part_rows}, wanted at least 1")
        plan: list[tuple[int, slice]] = []
        start, total = 0, len(missing_ids_M16)
        for number, first_row, room in self._free_slots(part_rows):
            if start == total:
                break
            stop = min(start + room, total)
            self._planned[number] = (first_row, stop - start)
            plan.append((number, slice(start, stop)))
            start = stop
        return plan

    def write_part(self, number: int, ids_B16: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Write one planned part in one step; `columns` has an array for each declared column: (B,) numbers, (B, D) vectors,
        lists as (B,) objects that are arrays.

        Raises ArtifactError if the part is there already: parts are immutable.
        """
        if number not in self._planned or self._planned[number][1] != len(ids_B16):
            raise ValueError(f"part {number} with {len(ids_B16)} rows was not planned; planned: {self._planned}")
        path = self.folder / _part_name(number)
        if path.exists():
            raise ArtifactError(f"{path} exists already: another process is writing this signal; let it finish first")
        first_row, count = self._planned[number]
        arrays = {"row": np.arange(first_row, first_row + count), "sample_id": ids_B16, **columns}
        if sorted(arrays) != sorted(self.schema.names):
            raise ValueError(f"part {number} has columns {sorted(columns)}, declared: {self.schema.names[2:]}")
        table = pa.table([to_arrow(arrays[f.name], f, count) for f in self.schema], schema=self.schema)
        own = {"format": FORMAT, "kind": self.spec["kind"], "spec_digest": self.spec_digest, "first_row": first_row}
        own |= {"ids_digest": ids_digest(ids_B16), "values_digest": values_digest([table], self.schema)}
        table = table.cast(with_metadata(self.schema, own))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_table(path, table, rows_per_group=max(1, _GROUP_BYTES // max(1, table.nbytes // max(1, count))))
        self._parts[number] = Part(number, path, first_row, ids_B16.copy(), own["ids_digest"], own["values_digest"])
        self._written.add(number)

    def finish(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Write card and manifest and return the manifest; by the main rank, once all ranks have written their parts.

        `fields` go into the manifest (model, tokenizer, producer settings). A manifest that already lists exactly these
        parts is left as it is, so that re-using a signal does not change it; what it says of a part stays as it is in any
        case. Raises ArtifactError for a part that is not as it was written.
        """
        self.check()
        if self.is_finished:
            return read_manifest(self.folder)
        entries = self._entries()
        names = [part.path.name for part in self._parts.values()]
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        body = {
            **fields, "kind": "signal", "signal": self.spec["kind"], "spec": self.spec,
            "spec_digest": self.spec_digest, "stats": {"rows": len(self), "parts": len(names)},
        }  # fmt: skip
        write_bytes(self.folder / CARD, dataset_card(body, self.schema, data_files="part-*.parquet").encode())
        files = [
            entries[name] if self._fits(self.folder / name, entries) else file_entry(self.folder, name, self._digests)
            for name in [*names, CARD]
        ]
        self._written.clear()
        self._planned.clear()
        return write_manifest(self.folder, {**body, "files": files})

    def rows(self, ids_N16: np.ndarray, absent_ok: np.ndarray | None = None) -> StoredRows:
        """The stored vectors of a corpus's samples, streamed; duplicates share one stored row.

        `absent_ok` (N,) is True where a sample may be unmeasured (it has no label); those are left out of the blocks.
        Raises ArtifactError with the number of other samples that were not measured.
        """
        kind = self._type_of("value", pa.types.is_fixed_size_list, "vectors")
        return StoredRows(self._places(ids_N16, absent_ok), kind.list_size)

    def column(self, ids_N16: np.ndarray, name: str, absent_ok: np.ndarray | None = None) -> np.ndarray:
        """A column of numbers for a corpus's samples, (N,) float64, NaN where one is unmeasured, which `absent_ok` allows.

        Raises ArtifactError with the number of other samples that were not measured.
        """
        self._type_of(name, is_number, "numbers")
        return stored_numbers(self._places(ids_N16, absent_ok), name)

    def lists(self, ids_N16: np.ndarray, name: str, absent_ok: np.ndarray | None = None) -> StoredLists:
        """A column of lists for a corpus's samples, streamed as `rows` is."""
        self._type_of(name, pa.types.is_list, "lists")
        return StoredLists(self._places(ids_N16, absent_ok), name)

    def _type_of(self, name: str, fits: Callable[[pa.DataType], bool], wanted: str) -> pa.DataType:
        found = {field.name: field.type for field in self.schema}
        if name not in found or not fits(found[name]):
            has = ", ".join(f"{key}: {kind}" for key, kind in found.items())
            raise ValueError(f"{self.spec['kind']} has no column {name!r} of {wanted}; it has {has}")
        return found[name]

    def _places(self, ids_N16: np.ndarray, absent_ok: np.ndarray | None) -> Places:
        self.refresh()
        stored_N = positions_of(ids_N16, self._ids())
        absent_N = (stored_N < 0) if absent_ok is None else (stored_N < 0) & ~absent_ok
        if absent_N.any():
            raise ArtifactError(
                f"{self.folder} lacks {int(absent_N.sum()):,} of {len(ids_N16):,} samples (first: row "
                f"{int(np.argmax(absent_N))}); run `flextools score` again"
            )
        entries = self._entries()
        return Places(tuple(self._parts.values()), stored_N, lambda part: self._check_part(part, entries))

    @property
    def is_finished(self) -> bool:
        """Whether the manifest lists exactly the parts that are there, and states what they are now.

        Looks at the folder again, as `missing` does.
        """
        self.refresh()
        entries, parts = self._entries(), self._parts.values()
        is_listed = bool(entries) and list(entries) == [part.path.name for part in parts]
        return is_listed and all(self._fits(p.path, entries) for p in parts if p.number in self._planned)

    def _entries(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each part, by name; empty without a manifest."""
        if not (self.folder / MANIFEST).exists():
            return {}
        manifest = read_manifest(self.folder)
        if manifest["kind"] != "signal" or manifest["spec_digest"] != self.spec_digest:
            raise ArtifactError(f"{self.folder / MANIFEST} is not of this signal; delete it and run `flextools score` again")
        return {entry["path"]: entry for entry in manifest["files"] if entry["path"] != CARD}

    def _fits(self, path: Path, entries: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a part is listed, and has the bytes that were listed."""
        entry = entries.get(path.name)
        if entry is None or path.stat().st_size != entry["bytes"]:
            return False
        return self._digests.is_as_written(path, entry["sha256"])

    def _check_part(self, part: Part, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise ArtifactError unless the part is as the manifest's `entries` say, or, unlisted, as it says itself.

        What this start wrote, on whichever rank, may have taken the place of a listed part that was deleted.
        """
        path, anew = part.path, f"{_ANEW}, which measures its {part.num_rows:,} samples anew"
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run `flextools score` again")
        if self._fits(path, entries) or part.number in self._written:
            return
        if path.name in entries and part.number not in self._planned:
            entry = entries[path.name]
            found = f"SHA-256 {self._digests.sha256(path)[:16]}, {path.stat().st_size:,} bytes"
            stated = f"{entry['sha256'][:16]}, {entry['bytes']:,} bytes"
            raise ArtifactError(f"{path} was changed: {found}, the manifest says {stated}; {anew}")
        if part.values_digest is None:
            raise ArtifactError(f"{path} is in no manifest and does not say what its values are; {anew}")
        if self._digests.of(path, "values", self._values_digest) != part.values_digest:
            raise ArtifactError(f"{path} was changed: its values are not those it states; {anew}")

    def _values_digest(self, path: Path) -> str:
        with open_parquet(path) as file:
            groups = (read_columns(file, path, group=group) for group in range(file.num_row_groups))
            return values_digest(groups, self.schema)

    def _ids(self) -> np.ndarray:
        return np.concatenate([np.zeros((0, 16), np.uint8), *(part.ids_B16 for part in self._parts.values())])

    def _read_part(self, number: int, path: Path) -> Part:
        with open_parquet(path) as file:
            own = own_metadata(file, path)
            if own.get("format") != FORMAT or own.get("spec_digest") != self.spec_digest:
                raise ArtifactError(
                    f"{path} has format {short(own.get('format'))} and spec {str(own.get('spec_digest'))[:16]}, wanted "
                    f"format {FORMAT} and spec {self.spec_digest[:16]}; move it away or choose another --out"
                )
            check_types(file.schema_arrow, {field.name: field.type for field in self.schema}, path)
            own_rows = read_columns(file, path, ["row", "sample_id"])
        ids_B16, first_row = ids_of(own_rows.column("sample_id")), own.get("first_row")
        if not isinstance(first_row, int) or not number <= first_row < _MOST_ROWS:
            raise ArtifactError(f"{path} does not say where its rows stand; {_ANEW}")
        if (own_rows.column("row").to_numpy() != first_row + np.arange(len(ids_B16))).any():
            raise ArtifactError(f"{path}: its rows are not in their order; {_ANEW}")
        if ids_digest(ids_B16) != own.get("ids_digest"):
            raise ArtifactError(f"{path} was changed: its ids are not those it states; {_ANEW}")
        return Part(number, path, first_row, ids_B16, own["ids_digest"], own.get("values_digest"))

    def _free_slots(self, part_rows: int) -> Iterator[tuple[int, int, int]]:
        """(number, first row, room) of each part that may be written: gaps between finished parts, then the end."""
        number = row = 0
        for part in self._parts.values():
            gaps = part.number - number
            size = max(part_rows, -(-(part.first_row - row) // gaps)) if gaps else 0
            for free in range(number, part.number):
                if room := min(size, part.first_row - row):
                    yield free, row, room
                row += room
            number, row = part.number + 1, part.first_row + part.num_rows
        while True:
            yield number, row, part_rows
            number, row = number + 1, row + part_rows


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"
