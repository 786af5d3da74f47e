"""Measures a signal for the samples that have not been measured, part by part, each part written once and for good."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.progress import Progress
from dataflex_tools.data.tokenized import Tokens
from dataflex_tools.score.batches import pad_batch, token_batches

# N rows of the corpus, M rows of a part, B samples of a batch, D projected dims

logger = logging.getLogger("flextools")

Columns = dict[str, np.ndarray]


class Signal(Protocol):
    """A measurement of single samples; what it says of one sample depends on that sample alone, up to rounding."""

    kind: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """All settings the numbers depend on, JSON-able: a part of the signal's address."""
        ...

    @property
    def columns(self) -> pa.Schema:
        """The stored columns; `num_tokens` is filled in by the engine."""
        ...

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch at most."""
        ...

    @property
    def part_rows(self) -> int:
        """Samples of a part: what a killed run loses at most, per rank."""
        ...

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """One array per stored column but num_tokens, for a right-padded batch: (B,) numbers, (B, D) vectors, or lists as
        (B,) objects that are arrays.

        `batch` is what `pad_batch` makes, with the corpus `rows` (B,) int64 and their `num_tokens` (B,) int64.
        """
        ...


class Backoff:
    """Halves batches that do not fit in memory, and those to come of that size."""

    def __init__(self) -> None:
        self._limit: int | None = None

    def run(
        self, call: Callable[[np.ndarray], Columns], rows_B: np.ndarray, num_tokens_B: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Columns]]:
        """(positions in rows_B, call(rows_B[positions])) over all positions; raises what `call` raises otherwise."""
        todo = [np.arange(len(rows_B))]
        while todo:
            positions = todo.pop()
            size = len(positions) * int(num_tokens_B[positions].max())
            result = None
            if self._limit is None or size <= self._limit or len(positions) == 1:
                try:
                    result = call(rows_B[positions])
                except RuntimeError as error:
                    if len(positions) == 1 or not should_reduce_batch_size(error):
                        raise
                    self._limit = size // 2
                    logger.warning("out of memory at %d samples, %d padded tokens: halving", len(positions), size)
            if result is not None:
                yield positions, result
                continue
            clear_device_cache(garbage_collection=True)
            half = len(positions) // 2
            todo += [positions[half:], positions[:half]]


def measure(signal: Signal, tokens: Tokens, store: SignalStore, *, title: str, rows: np.ndarray | None = None) -> int:
    """Measure what `store` lacks of `rows` (all labelled ones if not given); the number of samples measured by all ranks.

    Duplicates are measured once. Rank r of R takes every R-th part. The store is refreshed but not finished.
    Raises DataError naming the row whose measurement is not finite.
    """
    labelled = tokens.rows_with_labels() if rows is None else rows
    missing = labelled[store.missing(tokens.ids_N16[labelled])]
    parts = store.plan_parts(tokens.ids_N16[missing], signal.part_rows)
    dist.barrier()  # all ranks have planned before any part appears
    mine = parts[dist.rank() :: dist.world_size()]
    backoff = Backoff()
    with Progress(title, sum(len(missing[where]) for _, where in mine)) as progress:
        for number, where in mine:
            rows = missing[where]
            store.write_part(number, tokens.ids_N16[rows], _measure_part(signal, tokens, rows, backoff, progress))
    dist.barrier()
    store.refresh()
    return len(missing)


def _measure_part(signal: Signal, tokens: Tokens, rows_M: np.ndarray, backoff: Backoff, progress: Progress) -> Columns:
    """All columns of one part, in the order of `rows_M`; batches are a function of these rows and the budget alone."""
    num_tokens_M = np.asarray(tokens.num_tokens_N)[rows_M]
    columns: Columns = {"num_tokens": num_tokens_M.astype(np.int32)}

    def call(rows_B: np.ndarray) -> Columns:
        num_tokens_B = np.asarray(tokens.num_tokens_N)[rows_B].astype(np.int64)
        facts = {"rows": torch.from_numpy(rows_B), "num_tokens": torch.from_numpy(num_tokens_B)}
        return signal.measure_batch({**pad_batch(tokens, rows_B), **facts})

    for batch in token_batches(num_tokens_M, signal.token_budget):
        for positions, result in backoff.run(call, rows_M[batch], num_tokens_M[batch]):
            where = batch[positions]
            for name, array in result.items():
                if array.ndim == 1:
                    _check_finite(signal.kind, name, array, rows_M[where])
                columns.setdefault(name, np.empty((len(rows_M), *array.shape[1:]), array.dtype))[where] = array
            progress.advance(len(where), int(num_tokens_M[where].sum()))
    return columns


def _check_finite(kind: str, name: str, value_B: np.ndarray, rows_B: np.ndarray) -> None:
    if value_B.dtype == object:  # of each list its first number that is not finite
        value_B = np.array([next(iter(list_[~np.isfinite(list_)]), 0.0) for list_ in value_B])
    bad = np.flatnonzero(~np.isfinite(value_B))
    if len(bad):
        raise DataError(
            f"the {kind} of row {int(rows_B[bad[0]])} has {name} {value_B[bad[0]]} ({len(bad)} of {len(rows_B)} rows "
            "of its batch): the loss or its gradient is not finite; check the sample, the weights and model.dtype"
        )
