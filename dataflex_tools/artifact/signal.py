"""A signal on disk: measured samples in immutable parts, joined to any corpus by sample id.

The folder is addressed by its spec alone (model, tokenizer, settings), so it grows: another corpus measures only the
samples that are not there yet. A part appears by rename, whole; parts that a killed run left out are planned again with
the same numbers and rows, so the folder ends byte-identical to one written in one go.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex_tools.artifact.card import CARD, dataset_card
from dataflex_tools.artifact.columns import is_number, required, to_arrow
from dataflex_tools.artifact.files import (
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
    manifest_digest,
    read_manifest,
    write_manifest,
)
from dataflex_tools.artifact.stored_columns import StoredLists, stored_numbers
from dataflex_tools.artifact.stored_rows import Part, Places, StoredRows
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest, ids_digest

# N samples of a corpus, M of them missing, B rows of a part, D columns of the value

_PART = re.compile(r"part-(\d{5,})\.parquet")
_GROUP_BYTES = 64 * 2**20
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

    def __init__(self, folder: Path, spec: Mapping[str, Any], columns: pa.Schema) -> None:
        """`spec`: everything the signal depends on, with its `kind`; `columns`: those beyond row and sample_id.

        Raises ArtifactError if the folder holds parts of another spec or parts that cannot be read.
        """
        self.folder, self.spec, self.spec_digest = folder, dict(spec), digest(spec)
        self.schema = pa.schema([*_FIXED, *(required(field) for field in columns)])
        self._parts: dict[int, Part] = {}
        self._planned: dict[int, tuple[int, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return sum(part.num_rows for part in self._parts.values())

    def refresh(self) -> None:
        """Look at the folder again, after other ranks wrote parts."""
        matches = {path: _PART.fullmatch(path.name) for path in self.folder.glob("part-*.parquet")}
        paths = {int(match[1]): path for path, match in matches.items() if match}
        known = self._parts
        self._parts = {n: known.get(n) or self._read_part(n, paths[n]) for n in sorted(paths)}

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
        path = self.folder / f"part-{number:05d}.parquet"
        if path.exists():
            raise ArtifactError(f"{path} exists already: another process is writing this signal; let it finish first")
        first_row, count = self._planned[number]
        arrays = {"row": np.arange(first_row, first_row + count), "sample_id": ids_B16, **columns}
        if sorted(arrays) != sorted(self.schema.names):
            raise ValueError(f"part {number} has columns {sorted(columns)}, declared: {self.schema.names[2:]}")
        own = {"format": FORMAT, "kind": self.spec["kind"], "spec_digest": self.spec_digest}
        schema = with_metadata(self.schema, {**own, "ids_digest": ids_digest(ids_B16), "first_row": first_row})
        table = pa.table([to_arrow(arrays[f.name], f, count) for f in schema], schema=schema)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_table(path, table, rows_per_group=max(1, _GROUP_BYTES // max(1, table.nbytes // max(1, count))))
        self._parts[number] = Part(number, path, first_row, ids_B16.copy(), ids_digest(ids_B16))

    def finish(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Write card and manifest and return the manifest; by the main rank, once all ranks have written their parts.

        `fields` go into the manifest (model, tokenizer, producer settings). A manifest that already lists exactly these
        parts is left as it is, so that re-using a signal does not change it.
        """
        self.refresh()
        names = [part.path.name for part in self._parts.values()]
        if (current := self._current_manifest(names)) is not None:
            return current
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        body = {
            **fields, "kind": "signal", "signal": self.spec["kind"], "spec": self.spec,
            "spec_digest": self.spec_digest, "stats": {"rows": len(self), "parts": len(names)},
        }  # fmt: skip
        write_bytes(self.folder / CARD, dataset_card(body, self.schema, data_files="part-*.parquet").encode())
        return write_manifest(self.folder, {**body, "files": [file_entry(self.folder, p) for p in [*names, CARD]]})

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
        return Places(tuple(self._parts.values()), stored_N)

    def _current_manifest(self, names: list[str]) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        written, manifest = path.stat().st_mtime_ns, read_manifest(self.folder)
        listed = [entry["path"] for entry in manifest["files"] if entry["path"] != CARD]
        is_newer = any(part.path.stat().st_mtime_ns > written for part in self._parts.values())
        is_whole = listed == names and manifest["digest"] == manifest_digest(manifest)
        return manifest if is_whole and not is_newer else None

    def _ids(self) -> np.ndarray:
        return np.concatenate([np.zeros((0, 16), np.uint8), *(part.ids_B16 for part in self._parts.values())])

    def _read_part(self, number: int, path: Path) -> Part:
        with open_parquet(path) as file:
            own = own_metadata(file, path)
            if own.get("format") != FORMAT or own.get("spec_digest") != self.spec_digest:
                raise ArtifactError(
                    f"{path} has format {own.get('format')} and spec {str(own.get('spec_digest'))[:16]}, wanted format "
                    f"{FORMAT} and spec {self.spec_digest[:16]}; move it away or choose another --out"
                )
            part = Part(number, path, int(own["first_row"]), _read_ids(file, path), own["ids_digest"])
        if ids_digest(part.ids_B16) != part.ids_digest:
            raise ArtifactError(f"{path} was changed after it was written; delete it and run `flextools score` again")
        return part

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


def _read_ids(file: pq.ParquetFile, path: Path) -> np.ndarray:
    chunks = read_columns(file, path, ["sample_id"]).column("sample_id").to_pylist()
    return np.frombuffer(b"".join(chunks), dtype=np.uint8).reshape(-1, 16)
