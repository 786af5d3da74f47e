"""How far two plans agree: overlap of what they pick, rank correlation of what they score, lengths of what they take."""

from dataclasses import dataclass

import numpy as np

# N rows, A and B rows of two picks, E edges


@dataclass(frozen=True)
class Overlap:
    """Rows that two picks share: their number, over the rows of either (`jaccard`), over the smaller pick (`share`)."""

    num_shared: int
    jaccard: float
    share: float


def overlap(row_A: np.ndarray, row_B: np.ndarray) -> Overlap:
    """Overlap of two picks without repeats. Raises ValueError if one is empty."""
    if min(len(row_A), len(row_B)) == 0:
        raise ValueError("overlap: a pick is empty")
    shared = len(np.intersect1d(row_A, row_B, assume_unique=True))
    return Overlap(shared, shared / (len(row_A) + len(row_B) - shared), shared / min(len(row_A), len(row_B)))


def average_ranks(value_N: np.ndarray) -> np.ndarray:
    """1 for the lowest value to N for the highest, (N,) float64; equal values share the mean of their ranks."""
    _, group_N, count_G = np.unique(value_N, return_inverse=True, return_counts=True)
    last_G = np.cumsum(count_G)
    return np.asarray((last_G - (count_G - 1) / 2)[group_N])


def spearman(first_N: np.ndarray, second_N: np.ndarray) -> float | None:
    """Spearman's rank correlation in [-1, 1], ties averaged; None where it is undefined (under 2 rows, or no spread)."""
    if len(first_N) != len(second_N):
        raise ValueError(f"spearman: {len(first_N)} and {len(second_N)} values")
    mean = (len(first_N) + 1) / 2
    first_N, second_N = average_ranks(first_N) - mean, average_ranks(second_N) - mean
    spread = float(np.sqrt((first_N @ first_N) * (second_N @ second_N)))
    if len(first_N) < 2 or spread == 0:
        return None
    return float(np.clip(first_N @ second_N / spread, -1, 1))


def doubling_edges(smallest: int, largest: int) -> np.ndarray:
    """Edges of bins that double, (E,) int64: the first is at most `smallest`, the last above `largest`; 0 is a bin."""
    powers = 1 << np.arange(max(1, int(largest)).bit_length() + 1, dtype=np.int64)
    edges = np.concatenate([[0], powers])
    first = int(np.searchsorted(edges, smallest, side="right")) - 1
    last = int(np.searchsorted(edges, largest, side="right"))
    return np.asarray(edges[first : last + 1])


def histogram(value_N: np.ndarray, edges_E: np.ndarray) -> np.ndarray:
    """Values in [edge, next edge) for each bin, (E - 1,) int64. Raises ValueError for a value outside all bins."""
    bin_N = np.searchsorted(edges_E, value_N, side="right") - 1
    if len(bin_N) and (bin_N.min() < 0 or bin_N.max() >= len(edges_E) - 1):
        raise ValueError(f"histogram: a value is outside [{edges_E[0]}, {edges_E[-1]})")
    return np.bincount(bin_N, minlength=len(edges_E) - 1).astype(np.int64)
