"""Samples of a corpus found in the parts of a signal, and their vectors read back, one row group at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.files import open_parquet, own_metadata, read_columns
from dataflex_tools.core.errors import ArtifactError

# N samples of a corpus, K of them measured, W wanted of a row group of G, B rows of a block, D columns of the value

_LONGEST = 2.0  # of a vector that was scaled to 1, rounded to any storage
_BLOCK_BYTES = 8 * 2**20  # float32 values handed out at a time; stays in the cache, twice as fast as 32 MiB (measured)


class Part(NamedTuple):
    """One finished part: its ids in storage order and the position of its first row within the signal.

    `values_digest`: what it says of its values itself; parts of earlier versions do not.
    """

    number: int
    path: Path
    first_row: int
    ids_B16: np.ndarray
    ids_digest: str
    values_digest: str | None = None

    @property
    def num_rows(self) -> int:
        """Number of measured samples in this part."""
        return len(self.ids_B16)


class Group(NamedTuple):
    """One row group: corpus rows wanted of it, where each stands in it (duplicates share a place), its columns, its file."""

    row_W: np.ndarray
    local_W: np.ndarray
    table: pa.Table
    path: Path

    def check(self, is_right: bool, what: str) -> None:
        """Raise ArtifactError for values that no measurement wrote."""
        if not is_right:
            raise ArtifactError(
                f"{self.path} has a {what}, which flextools never writes; delete this file and run `flextools score` again"
            )


class Places:
    """Where the samples of a corpus stand in the parts of a signal."""

    def __init__(self, parts: Sequence[Part], stored_N: np.ndarray, check: Callable[[Part], None]) -> None:
        """`stored_N`: place of each corpus row among the rows of `parts` put end to end, -1 for none; `check` raises for a
        part that must not be used."""
        self._parts, self._num_samples, self._check = parts, len(stored_N), check
        row_K = np.flatnonzero(stored_N >= 0)
        order_K = np.argsort(stored_N[row_K], kind="stable")
        self._row_K, self._stored_K = row_K[order_K], stored_N[row_K][order_K]

    def __len__(self) -> int:
        return self._num_samples

    def groups(self, columns: Sequence[str]) -> Iterator[Group]:
        """Each row group that holds a wanted row, in storage order.

        Raises ArtifactError if a part was removed or replaced since the store was opened, or is not as it was written.
        """
        start = 0
        for part in self._parts:
            stop = start + part.num_rows
            if self._range(start, stop):
                self._check(part)
                with open_parquet(part.path) as file:
                    if own_metadata(file, part.path).get("ids_digest") != part.ids_digest:
                        raise ArtifactError(f"{part.path} was replaced while it was read; run `flextools score` again")
                    first = start
                    for group in range(file.num_row_groups):
                        last = first + file.metadata.row_group(group).num_rows
                        if wanted := self._range(first, last):
                            table = read_columns(file, part.path, columns, group=group)
                            chosen = slice(wanted.start, wanted.stop)
                            yield Group(self._row_K[chosen], self._stored_K[chosen] - first, table, part.path)
                        first = last
            start = stop

    def _range(self, start: int, stop: int) -> range:
        low, high = np.searchsorted(self._stored_K, [start, stop])
        return range(int(low), int(high))


class StoredRows:
    """Implements `core.signals.Rows` over the parts of a signal; memory does not depend on N x D."""

    def __init__(self, places: Places, dim: int) -> None:
        self._places, self._dim = places, dim

    def __len__(self) -> int:
        return len(self._places)

    @property
    def dim(self) -> int:
        """Number of columns D."""
        return self._dim

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(row_B int64, value_BD float32 of unit rows, norm_B float32), in storage order; unmeasured rows left out.

        A thread decodes the next row group while one is used. Raises ArtifactError if a part was removed or replaced since
        the store was opened.
        """
        rows_per_block = max(1, _BLOCK_BYTES // (4 * max(1, self._dim)))
        for group in one_ahead(self._places.groups(["norm", "value"])):
            raw_GD = flat_values(group.table.column("value")).reshape(-1, self._dim)
            norm_G = group.table.column("norm").to_numpy().astype(np.float32)
            group.check(bool(np.isfinite(norm_G).all()), "norm that is not finite")
            for low in range(0, len(group.row_W), rows_per_block):
                local_B = group.local_W[low : low + rows_per_block]
                value_BD, length_B = _unit(raw_GD[local_B])
                # infinity and NaN of float16 were widened to 65536 and more
                group.check(bool((length_B < _LONGEST).all()), "value that is not a vector of length 1")
                yield group.row_W[low : low + rows_per_block], value_BD, norm_G[local_B]


def one_ahead(groups: Iterator[Group]) -> Iterator[Group]:
    """The same items; a thread makes the next one while the caller uses the last."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, groups, None)
        while (item := following.result()) is not None:
            following = reader.submit(next, groups, None)
            yield item


def flat_values(column: pa.ChunkedArray) -> np.ndarray:
    """The elements of a column of lists, one list after the other."""
    chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _unit(raw_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows scaled to length 1, their lengths before)."""
    # stored rows are unit up to the rounding of float16; a cosine should not inherit that
    value_BD = _widened(raw_BD) if raw_BD.dtype == np.float16 else raw_BD.astype(np.float32)
    length_B = np.sqrt(np.einsum("bd,bd->b", value_BD, value_BD))
    value_BD /= np.where(length_B > 0, length_B, 1)[:, None]
    return value_BD, length_B


def _widened(half_BD: np.ndarray) -> np.ndarray:
    """Finite float16 as float32, the same numbers as `astype`, which takes three times as long (measured, numpy 2.4)."""
    # sign to bit 31, exponent and mantissa to bits 27..13; the power of two mends the exponent's bias, subnormals included
    bits_BD = half_BD.view(np.int16).astype(np.int32)
    bits_BD <<= 13
    bits_BD &= np.int32(0x0FFFE000 - 2**31)
    value_BD = bits_BD.view(np.float32)
    value_BD *= np.float32(2.0**112)
    return value_BD
