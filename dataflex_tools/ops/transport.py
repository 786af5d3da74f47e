"""Optimal transport of the target's mass to its nearest pool rows, spread out by a diversity term (TSDS); float64."""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.ops.stream import PIECE_BYTES

# N pool rows, M queries, K neighbours, U candidates, D columns, B candidates at a time, E events


@dataclass(frozen=True)
class Transport:
    """`probability_N` sums to 1. `spread`: the global s; `last_M`: rank of the last neighbour that a query fills by the
    rule, what is left goes to the next one. A query is saturated when that next one is the last of its list."""

    probability_N: np.ndarray
    spread: float
    last_M: np.ndarray
    num_saturated: int


def assign(
    distance_MK: np.ndarray, row_MK: np.ndarray, density_MK: np.ndarray, *, num_rows: int, alpha: float, scale: float
) -> Transport:
    """Mass that the pool rows receive when each query sends 1/M, nearest first, at most 1/(M s density) to a row.

    `distance_MK` ascending; `alpha` in [0, 1] weighs closeness against diversity, `scale` divides distances. The spread s
    grows until closeness outweighs diversity or the lists end. Raises ConfigError for lists of fewer than 2 rows.
    """
    num_queries, length = distance_MK.shape
    require(length >= 2, f"tsds needs at least 2 neighbours of each target sample, found {length}")
    distance_MK, weight_MK = distance_MK.astype(np.float64), 1 / density_MK.astype(np.float64)
    filled_MK = np.cumsum(weight_MK, axis=1)
    # event (j, k): s reaches filled[j, k], so query j starts to use neighbour k + 1
    rank_E = np.tile(np.arange(length - 1), num_queries)
    query_E = np.repeat(np.arange(num_queries), length - 1)
    spread_E = filled_MK[:, :-1].ravel()
    cost_E = (filled_MK[:, :-1] * np.diff(distance_MK, axis=1)).ravel()
    order_E = np.lexsort((query_E, rank_E, spread_E))
    is_enough_E = (alpha / scale) * np.cumsum(cost_E[order_E]) >= (1 - alpha) * num_queries
    stop = int(is_enough_E.argmax()) if is_enough_E.any() else len(order_E) - 1
    done_E = order_E[: stop if is_enough_E.any() else len(order_E)]
    last_M = np.zeros(num_queries, dtype=np.int64)
    np.maximum.at(last_M, query_E[done_E], rank_E[done_E])
    spread = float(spread_E[order_E[stop]])
    mass_MK = _mass(weight_MK / (num_queries * spread), last_M)
    probability_N = np.bincount(row_MK.ravel(), weights=mass_MK.ravel(), minlength=num_rows)
    return Transport(probability_N, spread, last_M, int((last_M == length - 2).sum()))


def _mass(wish_MK: np.ndarray, last_M: np.ndarray) -> np.ndarray:
    """What each neighbour receives, rows sum to 1/M: its wish or what is left, up to `last_M`; the rest to the next."""
    num_queries, length = wish_MK.shape
    is_ruled_MK = np.arange(length) <= last_M[:, None]
    # the official code lacks this clamp: before a query's first event its wish can exceed 1/M
    given_MK = np.minimum(np.cumsum(np.where(is_ruled_MK, wish_MK, 0), axis=1), 1 / num_queries)
    mass_MK = np.diff(given_MK, axis=1, prepend=0)
    rest_M = 1 / num_queries - given_MK[:, -1]
    rest_M[rest_M < 1e-12 / num_queries] = 0  # rounding, not mass: a row of probability 0 is never drawn
    mass_MK[np.arange(num_queries), last_M + 1] += rest_M
    return np.asarray(mass_MK)


def kernel_density(value_UD: np.ndarray, *, sigma: float, num_neighbours: int) -> np.ndarray:
    """Sum of max(0, 1 - distance^2 / sigma^2) of each candidate to its `num_neighbours` nearest, itself included, (U,).

    Exact, float64, at least 1; U^2 D multiplications, one block of rows at a time. All 1 if `sigma` is 0.
    """
    density_U = np.ones(len(value_UD))
    if sigma == 0:
        return density_U
    value64_UD = value_UD.astype(np.float64)
    square_U = np.einsum("ud,ud->u", value64_UD, value64_UD)
    step = max(1, PIECE_BYTES // (8 * max(1, len(value_UD))))
    for start in range(0, len(value_UD), step):
        block = slice(start, start + step)
        square_BU = square_U[block, None] + square_U - 2 * (value64_UD[block] @ value64_UD.T)
        density_U[block] = kernel_sum(square_BU, sigma=sigma, num_neighbours=num_neighbours)
    return density_U


def kernel_sum(square_BU: np.ndarray, *, sigma: float, num_neighbours: int) -> np.ndarray:
    """Kernel sum of rows of squared distances over the `num_neighbours` smallest of each, clamped to at least 1, (B,)."""
    kernel_BU = np.maximum(0, 1 - np.maximum(square_BU, 0) / sigma**2)
    if num_neighbours < kernel_BU.shape[1]:
        kernel_BU = -np.partition(-kernel_BU, num_neighbours - 1, axis=1)[:, :num_neighbours]
    return np.asarray(np.maximum(kernel_BU.sum(axis=1), 1))
