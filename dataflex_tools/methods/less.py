"""LESS: take the samples whose Adam update, at several warm-up checkpoints, points where the target's gradient points.

Xia, Malladi, Gururangan, Arora, Chen 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning",
https://arxiv.org/abs/2402.04333, section 4 and algorithm in appendix; read through a public summary [note] and from
memory [recall]. Checked against less/data_selection/matching.py and write_selected_data.py of the authors' repository
(princeton-nlp/LESS, commit 8abf962) by the numbers of tests/vectors/less_scores.json.
Departs from the official code: Adam's update is the optimizer's own (`adam="optimizer_exact"`; eps outside the root, bias
corrected) unless `less_official` is asked for; ties go to the lowest row; subtasks may differ in size.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.influence import ADAM, AGGREGATES, influence, strongest_group

# N pool samples, G subtasks


@dataclass(frozen=True, kw_only=True)
class LessSettings:
    """`adam`: how a train gradient becomes an update. `aggregate`: `mean_of_cosines` over a subtask's rows (official code)
    or `cosine_of_mean`, the cosine with the subtask's mean gradient (paper [recall])."""

    adam: str = "optimizer_exact"
    aggregate: str = "mean_of_cosines"

    def __post_init__(self) -> None:
        require(self.adam in ADAM, f"less: adam is {self.adam!r}, wanted one of {', '.join(ADAM)}")
        require(
            self.aggregate in AGGREGATES,
            f"less: aggregate is {self.aggregate!r}, wanted one of {', '.join(AGGREGATES)}",
        )


class Less(Selector):
    """score = max over subtasks of sum over checkpoints of weight x mean cosine; weight = share of mean learning rate."""

    Settings = LessSettings
    paper = "Xia et al. 2024, https://arxiv.org/abs/2402.04333"
    cost = "warm-up LoRA training; one backward per sample and checkpoint, pool and target"
    uses_target = True

    def needs(self) -> tuple[Need, ...]:
        """Adam-scaled gradients of the pool, plain gradients of the target, at every warm-up checkpoint."""
        return (
            Need("gradient", "pool", {"adam": self.settings.adam}, at_checkpoints=True),
            Need("gradient", "target", {"adam": "none"}, at_checkpoints=True),
        )

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score the pool; `score_<subtask>` columns in `detail` when there is more than one subtask."""
        assert signals.target is not None  # the stage checks `uses_target`
        score_NG = influence(
            signals.rows["gradient", "pool"],
            signals.rows["gradient", "target"],
            weight_C=signals.checkpoint_weight_C,
            target=signals.target,
            aggregate=self.settings.aggregate,
        )
        return strongest_group(score_NG, pool=signals.pool, target=signals.target)
