"""k-means of the rows of a signal: Lloyd or mini-batches by scikit-learn, or faiss by name; assignment is streamed."""

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.signals import Rows
from dataflex_tools.ops.neighbours import import_faiss
from dataflex_tools.ops.stream import PIECE_BYTES, measured, pieces, take

# N pool rows, U rows trained on, K clusters, D columns, B rows of a piece

ALGORITHMS = ("auto", "lloyd", "minibatch", "faiss")
_LLOYD_UP_TO = 100_000  # rows; all are held in memory, twice
_FAISS_ROWS_PER_CLUSTER = 256  # what faiss itself samples down to


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """`algorithm`: `lloyd` (all rows in memory), `minibatch` (streamed), `faiss` (a sample of 256 rows a cluster, on a GPU
    where faiss has one), or `auto`: lloyd up to 100,000 rows, else minibatch. `num_iterations`: at most so many passes."""

    algorithm: str = "auto"
    num_iterations: int = 20

    def __post_init__(self) -> None:
        require(
            self.algorithm in ALGORITHMS,
            f"clusters.algorithm is {self.algorithm!r}, wanted one of {', '.join(ALGORITHMS)}",
        )
        require(self.num_iterations >= 1, f"clusters.num_iterations is {self.num_iterations}, wanted at least 1")


@dataclass(frozen=True)
class Clusters:
    """`cluster_N`: int64, -1 for rows that were not clustered; `cosine_N`: with the own cluster's centre, -1 for those."""

    cluster_N: np.ndarray
    cosine_N: np.ndarray
    num_clusters: int
    facts: dict[str, Any]

    def members(self) -> list[np.ndarray]:
        """Rows of each cluster, ascending."""
        order = np.argsort(self.cluster_N, kind="stable")
        edges = np.searchsorted(self.cluster_N[order], np.arange(self.num_clusters + 1))
        return [order[low:high] for low, high in pairwise(edges)]


def k_means(
    pool: Rows,
    settings: ClusterSettings,
    *,
    rows_per_cluster: int,
    allowed_N: np.ndarray,
    is_spherical: bool,
    rng: np.random.Generator,
) -> Clusters:
    """Clusters of the U measured rows that are allowed, U / rows_per_cluster of them (rounded up), by Euclidean distance.

    `is_spherical` scales the centres to unit length after each iteration. Equal distances go to the lowest cluster. Raises
    DataError if no row was measured.
    """
    row_U = np.flatnonzero(measured(pool, allowed_N))
    if not len(row_U):
        raise DataError(f"none of {len(pool):,} pool rows can be clustered: none with a label was measured")
    num_clusters = -(-len(row_U) // rows_per_cluster)
    algorithm = settings.algorithm
    if algorithm == "auto":
        algorithm = "lloyd" if len(row_U) <= _LLOYD_UP_TO else "minibatch"
    first_KD = take(pool, np.sort(rng.choice(row_U, num_clusters, replace=False)))
    if algorithm == "lloyd":
        centre_KD = _lloyd(take(pool, row_U), first_KD, settings.num_iterations, is_spherical=is_spherical)
    elif algorithm == "minibatch":
        centre_KD = _mini_batches(pool, allowed_N, first_KD, settings.num_iterations, is_spherical=is_spherical)
    else:
        count = min(len(row_U), _FAISS_ROWS_PER_CLUSTER * num_clusters)
        sample = np.sort(rng.choice(row_U, count, replace=False))
        centre_KD = _faiss(take(pool, sample), first_KD, settings.num_iterations, is_spherical=is_spherical)
    facts = {"algorithm": algorithm, "clusters": num_clusters, "rows": len(row_U)}
    return Clusters(*_assign(pool, centre_KD, allowed_N), num_clusters, facts)


def _moved(centre_KD: np.ndarray, *, is_spherical: bool) -> np.ndarray:
    if not is_spherical:
        return centre_KD
    return np.asarray(centre_KD / np.maximum(np.linalg.norm(centre_KD, axis=1, keepdims=True), 1e-12))


def _lloyd(value_UD: np.ndarray, centre_KD: np.ndarray, num_iterations: int, *, is_spherical: bool) -> np.ndarray:
    """Lloyd's iterations until no centre moves; an empty cluster restarts at the row farthest from its centre."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    at_once = 1 if is_spherical else num_iterations  # the centres are scaled between the steps
    for _ in range(num_iterations // at_once):
        step = KMeans(len(centre_KD), init=centre_KD, n_init=1, max_iter=at_once, tol=0, algorithm="lloyd")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: some stay empty
            moved_KD = _moved(step.fit(value_UD).cluster_centers_, is_spherical=is_spherical)
        is_still = np.array_equal(moved_KD, centre_KD)
        centre_KD = moved_KD
        if is_still:
            break
    return centre_KD


def _mini_batches(
    pool: Rows, allowed_N: np.ndarray, centre_KD: np.ndarray, num_iterations: int, *, is_spherical: bool
) -> np.ndarray:
    """Running means over the pieces of the pool, in storage order, `num_iterations` times; memory is one piece."""
    from sklearn.cluster import MiniBatchKMeans

    step = MiniBatchKMeans(len(centre_KD), init=centre_KD, n_init=1, reassignment_ratio=0)
    held: list[np.ndarray] = []
    for _ in range(num_iterations):
        for _, value_BD in pieces(pool, allowed_N):
            held.append(value_BD)
            if sum(map(len, held)) >= len(centre_KD):  # scikit-learn wants no fewer rows than clusters at first
                step.partial_fit(np.concatenate(held))
                step.cluster_centers_[:] = _moved(step.cluster_centers_, is_spherical=is_spherical)
                held = []
    if held:
        step.partial_fit(np.concatenate(held))
    return _moved(step.cluster_centers_, is_spherical=is_spherical)


def _faiss(value_UD: np.ndarray, centre_KD: np.ndarray, num_iterations: int, *, is_spherical: bool) -> np.ndarray:
    faiss = import_faiss("clusters.algorithm=faiss")
    engine = faiss.Kmeans(
        value_UD.shape[1],
        len(centre_KD),
        niter=num_iterations,
        spherical=is_spherical,
        min_points_per_centroid=1,  # silences a warning; the cluster count is the user's
        max_points_per_centroid=_FAISS_ROWS_PER_CLUSTER,
        gpu=faiss.get_num_gpus() > 0,
    )
    engine.train(np.ascontiguousarray(value_UD, np.float32), init_centroids=np.ascontiguousarray(centre_KD, np.float32))
    return np.asarray(engine.centroids)


def _assign(pool: Rows, centre_KD: np.ndarray, allowed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre of each allowed row, and the cosine with it."""
    cluster_N, cosine_N = np.full(len(pool), -1, dtype=np.int64), np.full(len(pool), -1.0)
    length_K = np.maximum(np.linalg.norm(centre_KD, axis=1), 1e-12)
    rows_at_once = max(1, PIECE_BYTES // (4 * len(centre_KD)))
    for row_B, value_BD in pieces(pool, allowed_N):
        for start in range(0, len(row_B), rows_at_once):
            row, value = row_B[start : start + rows_at_once], value_BD[start : start + rows_at_once]
            dot_BK = value @ centre_KD.T.astype(value.dtype)
            best = (2 * dot_BK - (length_K**2).astype(value.dtype)).argmax(axis=1)
            cluster_N[row] = best
            cosine_N[row] = dot_BK[np.arange(len(row)), best] / length_K[best]
    return cluster_N, cosine_N
