"""Numbers and lists of a corpus read back from the parts of a signal, one row group at a time."""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from dataflex_tools.artifact.stored_rows import Places, flat_values, one_ahead

# N samples of a corpus, W wanted of a row group of G, B rows of a block, S elements of their lists together

_BLOCK_BYTES = 8 * 2**20  # float32 elements handed out at a time, but at least one row


def stored_numbers(places: Places, name: str) -> np.ndarray:
    """A column of numbers in the order of the corpus, (N,) float64, NaN where a sample was not measured."""
    number_N = np.full(len(places), np.nan)
    for group in one_ahead(places.groups([name])):
        number_N[group.row_W] = group.table.column(name).to_numpy()[group.local_W]
        group.check(bool(np.isfinite(number_N[group.row_W]).all()), f"{name} that is not finite")
    return number_N


class StoredLists:
    """A column of lists, streamed; memory does not depend on the number of samples."""

    def __init__(self, places: Places, name: str) -> None:
        self._places, self._name = places, name

    def __len__(self) -> int:
        return len(self._places)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(row_B int64, start_B1 int64, value_S float32), in storage order; unmeasured rows left out.

        The list of `row_B[i]` is `value_S[start_B1[i] : start_B1[i + 1]]`. Raises ArtifactError if a part was removed or
        replaced since the store was opened.
        """
        for group in one_ahead(self._places.groups([self._name])):
            column = group.table.column(self._name)
            start_G1 = _starts(pc.list_value_length(column).to_numpy())
            value_G = flat_values(column)
            length_W = np.diff(start_G1)[group.local_W]
            # rows whose elements end in the same stretch of a block's size go out together
            block_W = np.cumsum(length_W) * 4 // _BLOCK_BYTES
            for chosen in np.split(np.arange(len(block_W)), np.flatnonzero(np.diff(block_W)) + 1):
                start_B1 = _starts(length_W[chosen])
                shift_B = start_G1[group.local_W[chosen]] - start_B1[:-1]
                element_S = np.arange(start_B1[-1]) + np.repeat(shift_B, length_W[chosen])
                value_S = value_G[element_S].astype(np.float32)
                group.check(bool(np.isfinite(value_S).all()), f"{self._name} that is not finite")
                yield group.row_W[chosen], start_B1, value_S


def _starts(length_B: np.ndarray) -> np.ndarray:
    """Where each list starts and, last, where all end, (B + 1,) int64."""
    return np.concatenate([[0], np.cumsum(length_B)]).astype(np.int64)
