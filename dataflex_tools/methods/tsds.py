"""TSDS: draw samples with the probabilities that move the target's mass to near and mutually different pool samples.

Liu, Karbasi, Rekatsinas 2024, "TSDS: Data Selection for Task-Specific Model Finetuning", https://arxiv.org/abs/2410.11303;
abstract read. Checked against tsds.py of the authors' repository (commit 3dfe139), executed with exact search, by the
numbers of tests/vectors/tsds_assignment.json.
Departs from it: a neighbour gets at most the mass its query has left (there an assertion fails for alpha near 1); float64
throughout (float32 distances break its assertions under numpy 2); densities are exact and at least 1; neighbours are exact
or their recall is in the artifact; lists have at least 2 rows; samples are drawn without replacement, so that any budget can
be chosen at train time (there with replacement, keeping duplicates).
"""

from dataclasses import dataclass, field

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Rows, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.draw import draw_scores
from dataflex_tools.ops.neighbours import Neighbours, SearchSettings, nearest
from dataflex_tools.ops.stream import queries, take
from dataflex_tools.ops.transport import assign, kernel_density

# N pool samples, M target samples, K neighbours, U candidates on any list


@dataclass(frozen=True, kw_only=True)
class TsdsSettings:
    """`alpha` in [0, 1]: weight of closeness against diversity. `scale`: distances are divided by it (C in the paper).
    `sigma`: reach of the density kernel that makes near-duplicates share one place, 0 for none. `num_neighbours` and
    `density_neighbours`: lengths of lists, each at most a tenth of the pool as in the official code. `search`: the index."""

    alpha: float = 0.5
    scale: float = 5.0
    sigma: float = 0.75
    num_neighbours: int = 5000
    density_neighbours: int = 1000
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, f"tsds: alpha is {self.alpha}, wanted a value from 0 to 1")
        require(self.scale > 0, f"tsds: scale is {self.scale}, wanted more than 0")
        require(self.sigma >= 0, f"tsds: sigma is {self.sigma}, wanted at least 0")
        require(self.num_neighbours >= 2, f"tsds: num_neighbours is {self.num_neighbours}, wanted at least 2")
        require(self.density_neighbours >= 1, f"tsds: density_neighbours is {self.density_neighbours}, wanted at least 1")


class Tsds(Selector):
    """A random order drawn without replacement; `probability` in `detail` is the mass a row receives."""

    Settings = TsdsSettings
    paper = "Liu et al. 2024, https://arxiv.org/abs/2410.11303"
    cost = "one embedding per sample, pool and target; a nearest-neighbour search"
    uses_target = True
    ranks_all_rows = False

    def needs(self) -> tuple[Need, ...]:
        """Embeddings of both sides."""
        return (Need("embedding", "pool"), Need("embedding", "target"))

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Draw the order. `facts` say whether the lists were too short for the diversity asked for (`is_saturated`).

        Rows that receive no mass get -inf.
        """
        (pool,), (target,) = signals.rows["embedding", "pool"], signals.rows["embedding", "target"]
        longest = int(signals.pool.has_labels_N.sum()) // 10
        found = nearest(
            pool,
            queries(target),
            max(2, min(self.settings.num_neighbours, longest)),
            allowed_N=signals.pool.has_labels_N,
            search=self.settings.search,
            rng=rng,
        )
        plan = assign(
            found.distance_MK,
            found.row_MK,
            self._density(pool, found, max(1, min(self.settings.density_neighbours, longest))),
            num_rows=len(signals.pool),
            alpha=self.settings.alpha,
            scale=self.settings.scale,
        )
        facts = {
            "search": found.facts,
            "spread": plan.spread,
            "drawable_rows": int((plan.probability_N > 0).sum()),
            "is_saturated": plan.num_saturated == len(plan.last_M),
            "saturated_queries": plan.num_saturated,
        }
        return Selection(draw_scores(plan.probability_N, rng=rng), {"probability": plan.probability_N}, facts)

    def _density(self, pool: Rows, found: Neighbours, num_neighbours: int) -> np.ndarray:
        """Density of each neighbour among all rows on any list, (M, K)."""
        if self.settings.sigma == 0:
            return np.ones(found.row_MK.shape)
        row_U, place = np.unique(found.row_MK, return_inverse=True)
        density_U = kernel_density(take(pool, row_U), sigma=self.settings.sigma, num_neighbours=num_neighbours)
        return np.asarray(density_U[place.reshape(found.row_MK.shape)])
