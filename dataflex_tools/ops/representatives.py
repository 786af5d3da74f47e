"""A few members that stand for each cluster, and the direction in which their vectors point on average."""

from collections.abc import Iterator

import numpy as np

from dataflex_tools.core.signals import Rows
from dataflex_tools.ops.clusters import Clusters
from dataflex_tools.ops.stream import PIECE_BYTES, pieces

# N pool rows, K clusters, R representatives, D columns

PICKS = ("random", "nearest", "farthest", "mixed")


def representatives(clusters: Clusters, count: int, *, pick: str, rng: np.random.Generator) -> np.ndarray:
    """`count` rows of each cluster, or all if it has fewer, cluster by cluster, (R,) int64.

    `pick`: `random`, `nearest` to the centre by cosine, `farthest`, or `mixed`: the nearest half (rounded up), the rest
    farthest. Equal cosines go to the lowest row.
    """
    chosen = [np.empty(0, dtype=np.int64)]
    for row_B in clusters.members():
        if len(row_B) <= count:
            chosen.append(row_B)
        elif pick == "random":
            chosen.append(np.sort(rng.choice(row_B, count, replace=False)))
        else:
            nearest_B = row_B[np.argsort(-clusters.cosine_N[row_B], kind="stable")]
            farthest_B = row_B[np.argsort(clusters.cosine_N[row_B], kind="stable")]
            num_near = {"nearest": count, "farthest": 0, "mixed": (count + 1) // 2}[pick]
            far_B = farthest_B[~np.isin(farthest_B, nearest_B[:num_near])]
            chosen.append(np.concatenate([nearest_B[:num_near], far_B[: count - num_near]]))
    return np.concatenate(chosen)


def cluster_directions(
    rows: Rows, cluster_N: np.ndarray, row_R: np.ndarray, num_clusters: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """(clusters, their unit mean of the unit rows `row_R`) in several passes, so that only some clusters are in memory.

    Rows of `row_R` that were not measured are left out; a cluster without any, or whose rows cancel out, is zero.
    """
    at_once = max(1, 4 * PIECE_BYTES // (8 * max(1, rows.dim)))
    for start in range(0, num_clusters, at_once):
        part = slice(start, min(start + at_once, num_clusters))
        is_wanted_N = np.zeros(len(rows), dtype=bool)
        is_wanted_N[row_R[(cluster_N[row_R] >= part.start) & (cluster_N[row_R] < part.stop)]] = True
        sum_KD = np.zeros((part.stop - part.start, rows.dim))
        for row_B, value_BD in pieces(rows, is_wanted_N):
            np.add.at(sum_KD, cluster_N[row_B] - part.start, value_BD.astype(np.float64))
        length_K = np.linalg.norm(sum_KD, axis=1)
        # four unit vectors that cancel out leave about 1e-16 of rounding, or 1e-7 if they were float32
        yield part, np.where(length_K > 1e-6, 1, 0)[:, None] * sum_KD / np.maximum(length_K, 1e-12)[:, None]
