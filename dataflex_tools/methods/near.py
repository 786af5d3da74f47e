"""NEAR: take what lies nearest to the target samples in embedding space, one neighbour of each in turn.

The near selector of DataFlex (OpenDCAI, near_selector.py and offline_near_selector.py, commit 3c13e37;
https://github.com/OpenDCAI/DataFlex), which has no paper of its own. Checked by the numbers of
tests/vectors/near_round_robin.json, computed independently from its walk over the neighbour lists.
Departs from it: the search is exact unless an approximate index is asked for, and then has no holes; the target is required
(there the first 100 pool rows stand in for it).
"""

from dataclasses import dataclass, field

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.neighbours import SearchSettings, nearest
from dataflex_tools.ops.round_robin import by_columns
from dataflex_tools.ops.stream import queries

# N pool samples


@dataclass(frozen=True, kw_only=True)
class NearSettings:
    """`num_neighbours`: length of each target sample's list; what is on no list can not be selected. `search`: the index."""

    num_neighbours: int = 1000
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        require(self.num_neighbours >= 1, f"near: num_neighbours is {self.num_neighbours}, wanted at least 1")


class Near(Selector):
    """Nearest of each target sample, then second nearest of each, and so on; score is minus the place in that walk."""

    Settings = NearSettings
    paper = "none; DataFlex, https://github.com/OpenDCAI/DataFlex"
    cost = "one embedding per sample, pool and target; a nearest-neighbour search"
    uses_target = True
    ranks_all_rows = False

    def needs(self) -> tuple[Need, ...]:
        """Embeddings of both sides."""
        return (Need("embedding", "pool"), Need("embedding", "target"))

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Walk the lists; rows on no list and rows without labels get -inf. `facts` hold the recall of the search."""
        (pool,), (target,) = signals.rows["embedding", "pool"], signals.rows["embedding", "target"]
        found = nearest(
            pool,
            queries(target),
            self.settings.num_neighbours,
            allowed_N=signals.pool.has_labels_N,
            search=self.settings.search,
            rng=rng,
        )
        score_N = np.full(len(signals.pool), -np.inf)
        order = by_columns(found.row_MK)
        score_N[order] = -np.arange(len(order), dtype=np.float64)
        return Selection(score_N, facts={"search": found.facts, "listed_rows": len(order)})
