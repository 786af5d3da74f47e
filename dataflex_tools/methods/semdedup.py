"""SemDeDup: of samples that mean nearly the same, keep one; what is kept is ordered by how unlike the others it is.

Abbas, Tirumala, Simig, Ganguli, Morcos 2023, "SemDeDup: Data-efficient learning at web-scale through semantic
deduplication", https://arxiv.org/abs/2303.09540 [recall]. Checked against semdedup.py and clustering/sort_clusters.py of the
authors' repository (facebookresearch/SemDeDup, commit 6b41945) by the numbers of tests/vectors/semdedup.json, computed
independently from its formula.
Departs from it: kept samples have a score, one minus the cosine that decided, so that with `variant="official"` taking a
budget's best is the same as lowering the threshold until so many are left; embeddings are scaled to unit length; the number
of clusters follows the size of the pool (there 50,000), with 20 iterations of k-means by default (there 100).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.clusters import Clusters, ClusterSettings, k_means
from dataflex_tools.ops.duplicates import cosine_to_earlier
from dataflex_tools.ops.stream import take

# N pool samples, J samples of a cluster in order of precedence, U samples in memory

VARIANTS = ("official", "greedy")
KEEP = ("hard", "easy", "random")
_HELD_BYTES = 512 * 2**20  # vectors of whole clusters in memory at a time


@dataclass(frozen=True, kw_only=True)
class SemdedupSettings:
    """`eps`: a sample is removed if its cosine with one that comes before it in its cluster is more than 1 - eps.
    `variant`: compared with all before it (`official`) or with those kept (`greedy`, keeps more). `keep`: who comes first,
    the farthest from the centre (`hard`), the nearest (`easy`) or at random. `rows_per_cluster`: mean size of a cluster;
    duplicates are looked for within one. `clusters`: the spherical k-means."""

    eps: float = 0.05
    variant: str = "official"
    keep: str = "hard"
    rows_per_cluster: int = 1000
    clusters: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        is_fit = 0 < self.eps <= 1 and 1 - self.eps < 1
        require(is_fit, f"semdedup: eps is {self.eps}, wanted more than 0 (by 1e-15, which float64 can tell) and at most 1")
        require(self.variant in VARIANTS, f"semdedup: variant is {self.variant!r}, wanted one of {', '.join(VARIANTS)}")
        require(self.keep in KEEP, f"semdedup: keep is {self.keep!r}, wanted one of {', '.join(KEEP)}")
        size = self.rows_per_cluster
        require(size >= 1, f"semdedup: rows_per_cluster is {size}, wanted at least 1")


class Semdedup(Selector):
    """score = 1 - highest cosine with a sample that comes before; samples above the threshold are never taken."""

    Settings = SemdedupSettings
    paper = "Abbas et al. 2023, https://arxiv.org/abs/2303.09540"
    cost = "one embedding per pool sample"
    ranks_all_rows = False

    def needs(self) -> tuple[Need, ...]:
        """Embeddings of the pool."""
        return (Need("embedding", "pool"),)

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score kept rows; removed rows and rows without labels get -inf. `cosine` and `cluster` are in `detail`."""
        (pool,) = signals.rows["embedding", "pool"]
        settings = self.settings
        clusters = k_means(
            pool,
            settings.clusters,
            rows_per_cluster=settings.rows_per_cluster,
            allowed_N=signals.pool.has_labels_N,
            is_spherical=True,
            rng=rng,
        )
        cosine_N = np.full(len(signals.pool), np.nan)
        for group in _held_together(clusters, 8 * pool.dim):
            row_U = np.concatenate(group)
            value_UD, start = take(pool, row_U), 0
            for row_B in group:
                order_J = _precedence(clusters.cosine_N[row_B], settings.keep, rng)
                limit = 1 - settings.eps if settings.variant == "greedy" else None
                cosine_N[row_B[order_J]] = cosine_to_earlier(value_UD[start + order_J], limit=limit)
                start += len(row_B)
        is_kept_N = np.nan_to_num(cosine_N, nan=np.inf) <= 1 - settings.eps
        facts = {
            "clusters": clusters.facts,
            "kept_rows": int(is_kept_N.sum()),
            "removed_rows": int((~is_kept_N & ~np.isnan(cosine_N)).sum()),
        }
        score_N = np.where(is_kept_N, 1 - cosine_N, -np.inf)
        return Selection(score_N, {"cosine": cosine_N, "cluster": clusters.cluster_N}, facts)


def _precedence(cosine_B: np.ndarray, keep: str, rng: np.random.Generator) -> np.ndarray:
    """Places of a cluster's rows in the order in which they are looked at; ties to the lowest row."""
    if keep == "random":
        return rng.permutation(len(cosine_B))
    return np.argsort(cosine_B if keep == "hard" else -cosine_B, kind="stable")


def _held_together(clusters: Clusters, bytes_per_row: int) -> Iterator[list[np.ndarray]]:
    """Clusters in lots whose vectors fit in memory together; a larger one comes alone."""
    lot: list[np.ndarray] = []
    num_held = 0
    for row_B in clusters.members():
        if lot and (num_held + len(row_B)) * bytes_per_row > _HELD_BYTES:
            yield lot
            lot, num_held = [], 0
        lot.append(row_B)
        num_held += len(row_B)
    if lot:
        yield lot
