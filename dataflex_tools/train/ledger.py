"""The ledger: every sample a training consumed, on every rank, as it was collated, not as it was planned."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex_tools.artifact.files import sync
from dataflex_tools.core.temporary import temporary_for
from dataflex_tools.train.journal import Journal

# N corpus rows, B samples of a micro-batch, L ledger lines

_LINE = np.dtype([("step", "<i8"), ("row", "<i8"), ("micro", "<i4"), ("rank", "<i4"), ("weight", "<f8")])
_LINES_AT_ONCE = 2**16
_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("row", pa.int64()),
        ("sample_id", pa.binary(16)),
        ("domain", pa.dictionary(pa.int32(), pa.string())),
        ("weight", pa.float64()),
    ]
)


class Ledger:
    """Collects consumed samples step by step in `folder`, one journal per rank, and merges them into one Parquet file.

    Steps count from 1. A step that is not committed, or lies after the checkpoint a run resumes from, leaves no trace.
    """

    def __init__(self, folder: Path, *, rank: int = 0) -> None:
        self._folder, self._rank = folder, rank
        self._journal = Journal(folder / f"ledger-{rank:05d}.bin", _LINE)
        self._open: list[np.ndarray] = []

    def cut(self, last_step: int) -> None:
        """Forget steps after `last_step` on all ranks; call it on one rank, before any of them writes."""
        for path in self._paths():
            Journal(path, _LINE).cut(last_step)

    def record(self, row_B: np.ndarray, weight_B: np.ndarray | None = None) -> None:
        """Note one micro-batch of the running step; weights are 1 unless given."""
        line_B = np.zeros(len(row_B), dtype=_LINE)
        line_B["row"], line_B["micro"], line_B["rank"] = row_B, len(self._open), self._rank
        line_B["weight"] = 1.0 if weight_B is None else weight_B
        self._open.append(line_B)

    def commit(self, step: int) -> None:
        """Write the noted micro-batches as those of `step`."""
        if not self._open:
            return
        lines = np.concatenate(self._open)
        lines["step"] = step
        self._open = []
        self._journal.append(lines)

    def discard(self) -> None:
        """Forget the micro-batches of a step that was not finished."""
        self._open = []

    def sync(self) -> None:
        """Flush this rank's journal to the disk."""
        self._journal.sync()

    def lines(self) -> Iterator[np.ndarray]:
        """All committed lines in blocks, by step, then micro-batch, then rank: the order of the plan."""
        journals = [Journal(path, _LINE).read() for path in self._paths()]
        last = max((int(lines["step"][-1]) for lines in journals if len(lines)), default=0)
        total = sum(len(lines) for lines in journals)
        per_block = max(1, _LINES_AT_ONCE * last // max(total, 1))
        for first in range(1, last + 1, per_block):
            block = np.concatenate([_steps(lines, first, first + per_block) for lines in journals])
            yield block[np.lexsort((block["rank"], block["micro"], block["step"]))]

    def write(self, path: Path, *, ids_N16: np.ndarray, group_N: np.ndarray, group_names: Sequence[str]) -> None:
        """Write (step, row, sample_id, domain, weight) as Parquet in one step; memory does not grow with the run."""
        temporary, names = temporary_for(path), pa.array(list(group_names), pa.string())
        try:
            with pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer:
                for block in self.lines():
                    writer.write_table(_table(block, ids_N16, group_N, names))
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("ledger-*.bin"))


def _steps(lines: np.ndarray, first: int, stop: int) -> np.ndarray:
    begin, end = np.searchsorted(lines["step"], [first, stop], side="left")
    return np.asarray(lines[begin:end])


def _table(block_L: np.ndarray, ids_N16: np.ndarray, group_N: np.ndarray, names: pa.Array) -> pa.Table:
    row_L = np.ascontiguousarray(block_L["row"])
    ids_buffer = pa.py_buffer(ids_N16[row_L].tobytes())
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(row_L), [None, ids_buffer])
    domain = pa.DictionaryArray.from_arrays(pa.array(group_N[row_L].astype(np.int32)), names)
    step, weight = pa.array(np.ascontiguousarray(block_L["step"])), pa.array(np.ascontiguousarray(block_L["weight"]))
    return pa.table([step, pa.array(row_L), ids, domain, weight], schema=_SCHEMA)
