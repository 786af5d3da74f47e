"""Rows of a signal as consumers want them: only those allowed, in pieces of a useful size, or a few of them in memory."""

from collections.abc import Iterator

import numpy as np

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.signals import Rows

# N samples, M target samples, D columns, B rows of a piece, U rows taken

PIECE_BYTES = 64 * 2**20  # vectors handed out at a time


def pieces(rows: Rows, allowed_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row_B int64, value_BD unit rows) of the measured rows that are allowed; blocks joined up to about PIECE_BYTES.

    A matrix product or a merge of neighbour lists costs less for few large pieces than for many small blocks.
    """
    held: list[tuple[np.ndarray, np.ndarray]] = []
    size = 0
    for row_B, value_BD, _ in rows.blocks():
        is_kept = allowed_N[row_B]
        if not is_kept.any():
            continue
        block = (row_B, value_BD) if is_kept.all() else (row_B[is_kept], value_BD[is_kept])
        if held and size + block[1].nbytes > PIECE_BYTES:
            yield _joined(held)
            held, size = [], 0
        held.append(block)
        size += block[1].nbytes
    if held:
        yield _joined(held)


def _joined(held: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(held) == 1:
        return held[0]
    return np.concatenate([row_B for row_B, _ in held]), np.concatenate([value_BD for _, value_BD in held])


def measured(rows: Rows, allowed_N: np.ndarray) -> np.ndarray:
    """Which of the allowed rows were measured, (N,) bool."""
    found_N = np.zeros(len(rows), dtype=bool)
    for row_B, _, _ in rows.blocks():
        found_N[row_B] = True
    return np.asarray(found_N & allowed_N)


def take(rows: Rows, row_U: np.ndarray) -> np.ndarray:
    """Unit rows of `row_U` (each once), (U, D) in that order. Raises DataError if one was not measured."""
    place_N = np.full(len(rows), -1, dtype=np.int64)
    place_N[row_U] = np.arange(len(row_U))
    out_UD: np.ndarray | None = None
    num_found = 0
    for row_B, value_BD, _ in rows.blocks():
        place_B = place_N[row_B]
        is_wanted = place_B >= 0
        if out_UD is None:
            out_UD = np.empty((len(row_U), rows.dim), dtype=value_BD.dtype)
        out_UD[place_B[is_wanted]] = value_BD[is_wanted]
        num_found += int(is_wanted.sum())
    if num_found != len(row_U):
        raise DataError(f"{len(row_U) - num_found:,} of {len(row_U):,} wanted rows were not measured")
    return np.empty((0, rows.dim), dtype=np.float32) if out_UD is None else out_UD


def queries(target: Rows) -> np.ndarray:
    """Unit rows of the measured target samples in corpus order, (M, D). Raises DataError if there is none."""
    blocks = [(row_B, value_BD) for row_B, value_BD, _ in target.blocks() if len(row_B)]
    if not blocks:
        raise DataError(f"none of the {len(target)} target samples was measured")
    row_M, value_MD = _joined(blocks)
    return np.asarray(value_MD[np.argsort(row_M, kind="stable")])
