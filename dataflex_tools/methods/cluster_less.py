"""Cluster-LESS: LESS at the price of a few gradients per cluster; every sample inherits the score of its cluster.

The cluster_less selector of DataFlex (OpenDCAI, cluster_less_selector.py, commit 3c13e37;
https://github.com/OpenDCAI/DataFlex), built on Xia et al. 2024 (LESS), https://arxiv.org/abs/2402.04333. Checked by the
numbers of tests/vectors/cluster_less.json, computed independently from its formula.
Departs from it: all warm-up checkpoints with their weights instead of the current model; a row's score is the highest over
subtasks, as in LESS (the same for one subtask); Adam's update is the optimizer's own; members of a cluster tie and the
lowest row goes first; an empty cluster restarts at the farthest row; of the ways to cluster only k-means is offered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.rng import generator
from dataflex_tools.core.signals import Need, Rows, Side, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.clusters import Clusters, ClusterSettings, k_means
from dataflex_tools.ops.influence import ADAM, mean_unit, strongest_group
from dataflex_tools.ops.representatives import PICKS, cluster_directions, representatives

# N pool samples, K clusters, R representatives, G subtasks


@dataclass(frozen=True, kw_only=True)
class ClusterLessSettings:
    """`rows_per_cluster`: mean size of a cluster. `num_representatives`: samples of each whose gradients are measured.
    `pick`: `random`, or `nearest` to the centre, `farthest` from it, or `mixed`, half of each. `adam`: as in LESS.
    `seed`: of clusters and pick, which are made before the plan. `clusters`: the k-means of the embeddings."""

    rows_per_cluster: int = 64
    num_representatives: int = 4
    pick: str = "random"
    adam: str = "optimizer_exact"
    seed: int = 0
    clusters: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        for name in ("rows_per_cluster", "num_representatives"):
            require(getattr(self, name) >= 1, f"cluster_less: {name} is {getattr(self, name)}, wanted at least 1")
        require(self.pick in PICKS, f"cluster_less: pick is {self.pick!r}, wanted one of {', '.join(PICKS)}")
        require(self.adam in ADAM, f"cluster_less: adam is {self.adam!r}, wanted one of {', '.join(ADAM)}")


class ClusterLess(Selector):
    """score = that of the cluster: max over subtasks of sum over checkpoints of weight x mean cosine with the cluster's
    unit mean gradient."""

    Settings = ClusterLessSettings
    paper = "DataFlex, https://github.com/OpenDCAI/DataFlex, after Xia et al. 2024"
    cost = "warm-up LoRA training; one embedding per sample; one backward per representative, target sample and checkpoint"
    uses_target = True
    _found: tuple[Rows, Clusters] | None = None

    def needs(self) -> tuple[Need, ...]:
        """Embeddings of the pool, then gradients of its representatives, and of the target."""
        return (
            Need("embedding", "pool"),
            Need("gradient", "pool", {"adam": self.settings.adam}, at_checkpoints=True, of_chosen_rows=True),
            Need("gradient", "target", {"adam": "none"}, at_checkpoints=True),
        )

    def rows_needed(self, signals: Signals) -> Mapping[tuple[str, Side], np.ndarray]:
        """The representatives, ascending."""
        return {("gradient", "pool"): np.sort(self._representatives(self._clusters(signals)))}

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score the clusters, then their members; a cluster whose representatives cancel out has score 0."""
        assert signals.target is not None  # the stage checks `uses_target`
        clusters = self._clusters(signals)
        representative_R = self._representatives(clusters)
        score_KG = np.zeros((clusters.num_clusters, len(signals.target.group_names)))
        for weight, train, target in self._checkpoints(signals):
            direction_GD = mean_unit(target, signals.target.group_N, score_KG.shape[1])
            for part, unit_KD in cluster_directions(train, clusters.cluster_N, representative_R, clusters.num_clusters):
                score_KG[part] += weight * (unit_KD @ direction_GD.T)
        score_NG = np.where(clusters.cluster_N[:, None] >= 0, score_KG[clusters.cluster_N], -np.inf)
        plan = strongest_group(score_NG, pool=signals.pool, target=signals.target)
        facts = {"clusters": clusters.facts, "representatives": len(representative_R)}
        return Selection(plan.score_N, {**plan.detail, "cluster": clusters.cluster_N}, facts)

    def _checkpoints(self, signals: Signals) -> Iterator[tuple[float, Rows, Rows]]:
        pairs = signals.rows["gradient", "pool"], signals.rows["gradient", "target"]
        yield from zip(signals.checkpoint_weight_C, *pairs, strict=True)

    def _clusters(self, signals: Signals) -> Clusters:
        (pool,) = signals.rows["embedding", "pool"]
        if self._found is None or self._found[0] is not pool:  # both calls of a run share one k-means
            self._found = (
                pool,
                k_means(
                    pool,
                    self.settings.clusters,
                    rows_per_cluster=self.settings.rows_per_cluster,
                    allowed_N=signals.pool.has_labels_N,
                    is_spherical=False,
                    rng=generator(self.settings.seed, "cluster_less", "clusters"),
                ),
            )
        return self._found[1]

    def _representatives(self, clusters: Clusters) -> np.ndarray:
        rng = generator(self.settings.seed, "cluster_less", "representatives")
        return representatives(clusters, self.settings.num_representatives, pick=self.settings.pick, rng=rng)
