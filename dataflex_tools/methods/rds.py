"""RDS+: take the samples whose hidden states are most like those of the target samples, each of which picks in turn.

Ivison, Zhang, Brahman, Koh, Dasigi 2025, "Large-Scale Data Selection for Instruction Tuning",
https://arxiv.org/abs/2503.01807; the abstract was read, the algorithm through a summary [note]. Embeddings are means of the
last hidden layer weighted by position. Read beside minimal_multitask/get_top_influences.py of the authors' repository
(hamishivi/automated-instruction-selection); nothing of it was run.
Departs from that script: a query whose best row is taken already takes its next best one instead of losing its turn; ties
go to the lowest row; queries of all subtasks take turns alike (for several tasks the authors also have a script that gives
each task one turn, by its best query).
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.round_robin import by_turns
from dataflex_tools.ops.stream import queries

# N pool samples

POOLING = {"pooling": "weighted_mean"}


@dataclass(frozen=True, kw_only=True)
class RdsSettings:
    """Nothing to set."""


class Rds(Selector):
    """Queries pick in turn, each the free row of highest cosine; score is minus the place in that order."""

    Settings = RdsSettings
    paper = "Ivison et al. 2025, https://arxiv.org/abs/2503.01807"
    cost = "one forward per sample, pool and target"
    uses_target = True

    def needs(self) -> tuple[Need, ...]:
        """Position-weighted embeddings of both sides."""
        return (Need("embedding", "pool", POOLING), Need("embedding", "target", POOLING))

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Rank the whole pool; rows without labels get -inf."""
        (pool,), (target,) = signals.rows["embedding", "pool"], signals.rows["embedding", "target"]
        order = by_turns(pool, queries(target), allowed_N=signals.pool.has_labels_N)
        score_N = np.full(len(signals.pool), -np.inf)
        score_N[order] = -np.arange(len(order), dtype=np.float64)
        return Selection(score_N)
