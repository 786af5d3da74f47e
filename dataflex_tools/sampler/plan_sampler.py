"""The rows of a training in order: a keyed shuffle per epoch that is computed instead of stored.

Position p of the endless stream lies in epoch p // k; any stretch of it costs its own length, wherever it starts, so
batch t is a function of (rows, seed, t) alone: not of rank count, worker count or restarts.
"""

import hashlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from dataflex_tools.core import rng
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.sampler.content import PlanContent

# k selected rows, L length of a stretch of positions

_BLOCK = 4096  # positions computed at once when iterating: 32 KiB of rows


class Stream(Protocol):
    """An endless stream of rows that can be read at any position: what a training follows."""

    @property
    def num_rows(self) -> int:
        """Rows that can come up: positions of an epoch."""
        ...

    @property
    def largest_row(self) -> int:
        """The largest row that can come up."""
        ...

    @property
    def chosen_rows(self) -> np.ndarray:
        """All rows that can come up, ascending, each once."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits): equal digests give equal rows for ever."""
        ...

    def rows_at(self, start: int, stop: int) -> np.ndarray:
        """Rows at positions start .. stop-1, (stop - start,) int64."""
        ...


class PlanSampler(Sampler[int]):  # type: ignore[misc]  # torch is not followed
    """Yields selected rows, each once per epoch, in an order that differs per epoch.

    Usable wherever torch takes a sampler: `DataLoader(dataset, sampler=PlanSampler(row_k, seed=0))`. Iterating goes
    from position `start` to the end of the epoch that holds it; set `start` to resume anywhere in the stream.
    """

    def __init__(self, row_k: np.ndarray, *, seed: int = 0, start: int = 0, content: PlanContent | None = None) -> None:
        """`row_k`: (k,) selected rows; their order matters to the shuffle, duplicates are kept. `content`: of the plan they
        are rows of, for a trainer to compare its data set with."""
        self.row_k = np.ascontiguousarray(row_k, dtype=np.int64)
        if self.row_k.ndim != 1 or not len(self.row_k):
            raise ConfigError(f"a plan's sampler needs (k,) rows, at least one; got shape {self.row_k.shape}")
        if start < 0:
            raise ConfigError(f"a sampler's start is {start}, wanted a position of 0 or more")
        self.seed = seed
        self.start = start
        self.content = content

    @property
    def num_rows(self) -> int:
        """Rows in one epoch, k."""
        return len(self.row_k)

    @property
    def chosen_rows(self) -> np.ndarray:
        """The selected rows, ascending, each once."""
        return np.unique(self.row_k)

    @property
    def largest_row(self) -> int:
        """The largest selected row."""
        return int(self.row_k.max())

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of rows and seed: equal digests give equal batches for ever."""
        state = hashlib.sha256(f"plan-sampler/1/{self.seed}/".encode())
        state.update(self.row_k.astype("<i8").tobytes())
        return state.hexdigest()

    def rows_at(self, start: int, stop: int) -> np.ndarray:
        """Rows at positions start .. stop-1 of the stream, (L,) int64; costs the same wherever the stretch lies."""
        if not 0 <= start <= stop:
            raise ValueError(f"rows_at: [{start}, {stop}) is not a stretch of positions")
        size, pieces = self.num_rows, [np.empty(0, dtype=np.int64)]
        for epoch in range(start // size, -(-stop // size)):
            first, last = max(start - epoch * size, 0), min(stop - epoch * size, size)
            key = rng.key_of(self.seed, "order", epoch)
            pieces.append(self.row_k[rng.permuted(np.arange(first, last), size, key)])
        return np.concatenate(pieces)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at the start of `epoch`, counted from 0."""
        self.start = epoch * self.num_rows

    def __len__(self) -> int:
        return self.num_rows - self.start % self.num_rows

    def __iter__(self) -> Iterator[int]:
        stop = self.start + len(self)
        for first in range(self.start, stop, _BLOCK):
            yield from self.rows_at(first, min(first + _BLOCK, stop)).tolist()


class PlanBatches(Sampler[list[int]]):  # type: ignore[misc]  # torch is not followed
    """Batches of `batch_size` rows: batch i holds positions i * batch_size .. (i + 1) * batch_size - 1.

    Epochs run into each other inside a batch, so every batch is full. Iterating goes from batch `start` to
    `num_batches` - 1.
    """

    drop_last = False

    def __init__(self, sampler: Stream, *, batch_size: int, num_batches: int, start: int = 0) -> None:
        self.sampler, self.batch_size, self.num_batches, self.start = sampler, batch_size, num_batches, start

    def __len__(self) -> int:
        return max(self.num_batches - self.start, 0)

    def __iter__(self) -> Iterator[list[int]]:
        per_block = max(1, _BLOCK // self.batch_size)
        for first in range(self.start, self.num_batches, per_block):
            stop = min(first + per_block, self.num_batches)
            row_L = self.sampler.rows_at(first * self.batch_size, stop * self.batch_size)
            yield from row_L.reshape(-1, self.batch_size).tolist()
