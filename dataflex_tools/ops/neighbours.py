"""Nearest pool rows of some queries by faiss: exact and streaming by default, approximate indexes by name, never a hole.

The exact search keeps no index: each piece of the pool is searched and forgotten, so memory is the neighbour lists plus one
piece. An approximate index pays only when many queries are asked (building an inverted file costs about as much as
4 sqrt(N) queries) and holds the pool in memory, 4 bytes per number. Distances are computed again in float64 for the rows
found, because |q - b|^2 from products loses digits in float32. The GPU path has not been run on a GPU.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.signals import Rows
from dataflex_tools.ops.stream import PIECE_BYTES, pieces, take

# N pool rows, M queries, K neighbours, D columns, B rows of a piece, P pairs of a query and a neighbour

INDEXES = ("flat", "ivf", "hnsw")
_GPU_MAX_NEIGHBOURS = 2048  # limit of faiss's GPU selection
_TRAIN_ROWS_PER_LIST = 64  # faiss warns below 39 and uses at most 256


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How neighbours are found. `index`: `flat` is exact; `ivf` (inverted file) and `hnsw` (graph) are approximate.

    `exact_up_to`: pools of up to so many rows are searched exactly whatever `index` says. `effort`: lists probed per query
    (ivf) or candidates kept on the way (hnsw). `num_checked`: queries whose neighbours are searched exactly as well, to
    state the recall.
    """

    index: str = "flat"
    exact_up_to: int = 0
    effort: int = 64
    num_checked: int = 32

    def __post_init__(self) -> None:
        require(self.index in INDEXES, f"search.index is {self.index!r}, wanted one of {', '.join(INDEXES)}")
        require(self.exact_up_to >= 0, f"search.exact_up_to is {self.exact_up_to}, wanted at least 0")
        for name in ("effort", "num_checked"):
            require(getattr(self, name) >= 1, f"search.{name} is {getattr(self, name)}, wanted at least 1")
        is_default = (self.exact_up_to, self.effort, self.num_checked) == (0, 64, 32)
        require(
            self.index != "flat" or is_default,
            "search.exact_up_to, effort and num_checked have no effect with search.index=flat, which is always exact; "
            "choose ivf or hnsw, or leave them out",
        )


@dataclass(frozen=True)
class Neighbours:
    """The K nearest rows of each query, nearest first, ties to the lowest row; all rows exist.

    `distance_MK`: Euclidean, float64. `facts`: index, device, recall and how it was found, for the artifact.
    """

    row_MK: np.ndarray
    distance_MK: np.ndarray
    facts: dict[str, Any]


def nearest(
    pool: Rows,
    query_MD: np.ndarray,
    num_neighbours: int,
    *,
    allowed_N: np.ndarray,
    search: SearchSettings,
    rng: np.random.Generator,
) -> Neighbours:
    """The `num_neighbours` nearest of the measured pool rows that are allowed, or all of them if there are fewer.

    Raises ConfigError if faiss is not installed, DataError if no allowed row was measured.
    """
    engine = _Engine()
    query32_MD = np.ascontiguousarray(query_MD, dtype=np.float32)
    # a float32 search may swap rows at almost equal distance: take some more, order them in float64, then cut
    wanted = min(num_neighbours + num_neighbours // 8 + 16, int(allowed_N.sum()))
    if wanted < 1:
        raise DataError(f"none of {len(pool):,} pool rows can be a neighbour: none has a label")
    is_exact = search.index == "flat" or int(allowed_N.sum()) <= search.exact_up_to
    facts: dict[str, Any] = {"index": "flat" if is_exact else search.index, "queries": len(query_MD)}
    if is_exact:
        found_MK = engine.search_exact(pool, query32_MD, wanted, allowed_N=allowed_N)
        facts |= {"device": engine.device(wanted), "recall": 1.0}
        row_MK, distance_MK = _ordered(pool, query_MD, found_MK, num_neighbours)
    else:
        found_MK, facts["device"] = engine.search_index(
            pool, query32_MD, wanted, allowed_N=allowed_N, search=search, rng=rng
        )
        short = np.flatnonzero((found_MK < 0).any(axis=1))
        if len(short):
            found_MK[short] = engine.search_exact(pool, query32_MD[short], wanted, allowed_N=allowed_N)
        row_MK, distance_MK = _ordered(pool, query_MD, found_MK, num_neighbours)
        checked = np.sort(rng.choice(len(query_MD), min(search.num_checked, len(query_MD)), replace=False))
        exact_MK = engine.search_exact(pool, query32_MD[checked], wanted, allowed_N=allowed_N)
        limit_M = _ordered(pool, query_MD[checked], exact_MK, num_neighbours)[1][:, -1]
        recall = float((distance_MK[checked] <= limit_M[:, None]).mean())
        facts |= {"recall": recall, "recall_queries": len(checked), "filled_queries": len(short)}
    return Neighbours(row_MK, distance_MK, {**facts, "neighbours": row_MK.shape[1]})


def _ordered(pool: Rows, query_MD: np.ndarray, found_MK: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Found rows sorted by exact distance, then row, cut to the number wanted; -1 only where the pool has no more rows."""
    num_found = int((found_MK >= 0).sum(axis=1).min(initial=found_MK.shape[1]))
    if num_found == 0:
        raise DataError(f"none of {len(pool):,} pool rows can be a neighbour: none was measured")
    distance_MK = _distances(pool, query_MD, found_MK)
    order_MK = np.lexsort((found_MK, distance_MK), axis=-1)[:, : min(num_neighbours, num_found)]
    return np.take_along_axis(found_MK, order_MK, axis=1), np.take_along_axis(distance_MK, order_MK, axis=1)


def _distances(pool: Rows, query_MD: np.ndarray, row_MK: np.ndarray) -> np.ndarray:
    """Euclidean distance of each query to its rows, (M, K) float64, in one pass over the pool; inf where the row is -1."""
    flat_P = row_MK.ravel()
    order_P = np.argsort(flat_P, kind="stable")
    sorted_P = flat_P[order_P]
    distance_P = np.full(len(flat_P), np.inf)
    pairs_at_once = max(1, PIECE_BYTES // (8 * max(1, pool.dim)))
    is_asked_N = np.zeros(len(pool), dtype=bool)
    is_asked_N[flat_P[flat_P >= 0]] = True
    for row_B, value_BD in pieces(pool, is_asked_N):
        low_B, high_B = np.searchsorted(sorted_P, row_B, "left"), np.searchsorted(sorted_P, row_B, "right")
        local_P = np.repeat(np.arange(len(row_B)), high_B - low_B)
        first_B = np.cumsum(high_B - low_B) - (high_B - low_B)
        pair_P = order_P[np.arange(len(local_P)) - first_B[local_P] + low_B[local_P]]
        for start in range(0, len(pair_P), pairs_at_once):
            chosen, local = pair_P[start : start + pairs_at_once], local_P[start : start + pairs_at_once]
            difference_PD = query_MD[chosen // row_MK.shape[1]].astype(np.float64)
            difference_PD -= value_BD[local]
            distance_P[chosen] = np.sqrt(np.einsum("pd,pd->p", difference_PD, difference_PD))
    return distance_P.reshape(row_MK.shape)


class _Engine:
    """faiss, on a GPU where it has one."""

    def __init__(self) -> None:
        self.faiss = import_faiss("a search for neighbours")
        self.resources = self.faiss.StandardGpuResources() if self.faiss.get_num_gpus() else None

    def device(self, num_neighbours: int) -> str:
        """Where a search for so many neighbours runs."""
        return "gpu" if self.resources is not None and num_neighbours <= _GPU_MAX_NEIGHBOURS else "cpu"

    def search_exact(self, pool: Rows, query_MD: np.ndarray, wanted: int, *, allowed_N: np.ndarray) -> np.ndarray:
        """Nearest rows of the pool, read once, (M, wanted) in no order; -1 where the pool has no more rows."""
        row_MK = np.full((len(query_MD), wanted), -1, dtype=np.int64)
        square_MK = np.full(row_MK.shape, np.inf, dtype=np.float32)
        for row_B, value_BD in pieces(pool, allowed_N):
            new_square, local = self._knn(query_MD, np.ascontiguousarray(value_BD, np.float32), min(wanted, len(row_B)))
            square = np.concatenate([square_MK, new_square], axis=1)
            row = np.concatenate([row_MK, row_B[local]], axis=1)
            keep = np.argpartition(square, wanted - 1, axis=1)[:, :wanted]
            square_MK, row_MK = np.take_along_axis(square, keep, axis=1), np.take_along_axis(row, keep, axis=1)
        return row_MK

    def _knn(self, query_MD: np.ndarray, base_BD: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        if self.device(wanted) == "gpu":
            square, local = self.faiss.knn_gpu(self.resources, query_MD, base_BD, wanted)
        else:
            square, local = self.faiss.knn(query_MD, base_BD, wanted)
        return square, local

    def search_index(
        self,
        pool: Rows,
        query_MD: np.ndarray,
        wanted: int,
        *,
        allowed_N: np.ndarray,
        search: SearchSettings,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, str]:
        """Neighbours by an approximate index filled block by block, (M, wanted) with -1 for holes; and its device."""
        faiss, device = self.faiss, "cpu"
        if search.index == "hnsw":
            graph = faiss.IndexHNSWFlat(pool.dim, 32)  # 32 links per row: faiss's and the paper's usual choice
            graph.hnsw.efSearch = max(search.effort, wanted)
            index = faiss.IndexIDMap(graph)
        else:
            index = self._inverted_file(pool, allowed_N, search, rng)
            if (device := self.device(wanted)) == "gpu":
                index = faiss.index_cpu_to_all_gpus(index)
        for row_B, value_BD in pieces(pool, allowed_N):
            index.add_with_ids(np.ascontiguousarray(value_BD, np.float32), row_B)
        return index.search(query_MD, wanted)[1].astype(np.int64), device

    def _inverted_file(self, pool: Rows, allowed_N: np.ndarray, search: SearchSettings, rng: np.random.Generator) -> Any:
        allowed = np.flatnonzero(allowed_N)
        num_lists = max(1, min(round(4 * len(allowed) ** 0.5), len(allowed) // 39))
        sample = np.sort(rng.choice(allowed, min(len(allowed), num_lists * _TRAIN_ROWS_PER_LIST), replace=False))
        index = self.faiss.index_factory(pool.dim, f"IVF{num_lists},Flat")
        index.cp.seed = int(rng.integers(2**31))
        index.nprobe = min(search.effort, num_lists)
        if self.resources is not None:
            trainer = self.faiss.index_cpu_to_all_gpus(self.faiss.IndexFlatL2(pool.dim))
            index.clustering_index = trainer
        index.train(np.ascontiguousarray(take(pool, sample), np.float32))
        return index


def import_faiss(what: str) -> Any:
    """The faiss module. Raises ConfigError naming the extras if it is not installed; `what` says what needs it."""
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            f"{what} needs faiss, which is not installed: pip install 'flextools[cpu]', or 'flextools[gpu]' on Linux with "
            "an NVIDIA GPU (one of the two, both provide `faiss`)"
        ) from None
    return faiss
