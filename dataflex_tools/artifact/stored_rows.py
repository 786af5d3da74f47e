"""Vectors of a corpus read back from the parts of a signal, one row group at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from dataflex_tools.artifact.files import open_parquet, own_metadata, read_columns
from dataflex_tools.core.errors import ArtifactError

# N samples of a corpus, B rows of a block, D columns of the value

_BLOCK_BYTES = 32 * 2**20  # float32 values handed out at a time


class Part(NamedTuple):
    """One finished part: its ids in storage order and the position of its first row within the signal."""

    number: int
    path: Path
    first_row: int
    ids_B16: np.ndarray
    ids_digest: str

    @property
    def num_rows(self) -> int:
        """Number of measured samples in this part."""
        return len(self.ids_B16)


class StoredRows:
    """Implements `core.signals.Rows` over the parts of a signal; memory does not depend on N x D."""

    def __init__(self, parts: Sequence[Part], stored_N: np.ndarray, dim: int) -> None:
        """`stored_N`: place of each corpus row among the rows of `parts` put end to end, -1 for none."""
        self._parts, self._dim, self._num_samples = parts, dim, len(stored_N)
        row_K = np.flatnonzero(stored_N >= 0)
        order_K = np.argsort(stored_N[row_K], kind="stable")
        self._row_K, self._stored_K = row_K[order_K], stored_N[row_K][order_K]

    def __len__(self) -> int:
        return self._num_samples

    @property
    def dim(self) -> int:
        """Number of columns D."""
        return self._dim

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(row_B int64, value_BD float32 of unit rows, norm_B float32), in storage order; unmeasured rows left out.

        Raises ArtifactError if a part was removed or replaced since the store was opened.
        """
        start = 0
        for part in self._parts:
            stop = start + part.num_rows
            if self._range(start, stop):
                with open_parquet(part.path) as file:
                    if own_metadata(file, part.path).get("ids_digest") != part.ids_digest:
                        raise ArtifactError(f"{part.path} was replaced while it was read; run `flextools score` again")
                    yield from self._blocks_of(file, part.path, start)
            start = stop

    def _blocks_of(
        self, file: pq.ParquetFile, path: Path, start: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        rows_per_block = max(1, _BLOCK_BYTES // (4 * max(1, self._dim)))
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            wanted = self._range(start, stop)
            if wanted:
                table = read_columns(file, path, ["norm", "value"], group=group)
                raw_GD = table.column("value").combine_chunks().flatten().to_numpy().reshape(-1, self._dim)
                norm_G = table.column("norm").to_numpy().astype(np.float32)
                for low in range(wanted.start, wanted.stop, rows_per_block):
                    chosen = slice(low, min(low + rows_per_block, wanted.stop))
                    local_B = self._stored_K[chosen] - start
                    yield self._row_K[chosen], _unit(raw_GD[local_B]), norm_G[local_B]
            start = stop

    def _range(self, start: int, stop: int) -> range:
        low, high = np.searchsorted(self._stored_K, [start, stop])
        return range(int(low), int(high))


def _unit(raw_BD: np.ndarray) -> np.ndarray:
    # stored rows are unit up to the rounding of float16; a cosine should not inherit that
    value_BD = raw_BD.astype(np.float32)
    length_B = np.sqrt(np.einsum("bd,bd->b", value_BD, value_BD))
    value_BD /= np.where(length_B > 0, length_B, 1)[:, None]
    return value_BD
