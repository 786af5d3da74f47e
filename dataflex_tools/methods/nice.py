"""NICE: LESS with the target's loss gradient replaced by the policy gradient of a reward that need not be differentiable.

Wang, Lin, Qiao, Koh, Foo, Low 2025, "NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation
Metric", https://openreview.net/forum?id=2wt8m5HUBs (abstract [note]). Read: nice/data_selection/matching_nice.py of the
authors' repository (JTWang2000/NICE, commit d396faa), which scores as LESS does. Checked by loops written from it, on the
reward gradients of tests/vectors/nice_policy_gradient.json.
Departs from it: Adam's update is the optimizer's own (`adam="optimizer_exact"`) unless `less_official` is asked for; a
prompt whose reward gradient is zero counts with cosine 0 (there NaN scores are set to 0); ties go to the lowest row;
subtasks may differ in size. How answers are drawn, rewarded and filtered is a matter of the signal, not of this file.
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
class NiceSettings:
    """`adam`: how a train gradient becomes an update. `aggregate`: `mean_of_cosines` over a subtask's prompts (official
    code) or `cosine_of_mean`, the cosine with the subtask's mean reward gradient."""

    adam: str = "optimizer_exact"
    aggregate: str = "mean_of_cosines"

    def __post_init__(self) -> None:
        require(self.adam in ADAM, f"nice: adam is {self.adam!r}, wanted one of {', '.join(ADAM)}")
        require(
            self.aggregate in AGGREGATES,
            f"nice: aggregate is {self.aggregate!r}, wanted one of {', '.join(AGGREGATES)}",
        )


class Nice(Selector):
    """score = max over subtasks of sum over checkpoints of weight x mean cosine with the gradient of minus the reward."""

    Settings = NiceSettings
    paper = "Wang et al. 2025, https://openreview.net/forum?id=2wt8m5HUBs"
    cost = "warm-up LoRA training; one backward per sample and checkpoint; answers drawn and rewarded per target prompt"
    uses_target = True

    def needs(self) -> tuple[Need, ...]:
        """Adam-scaled gradients of the pool, plain reward gradients of the target, at every warm-up checkpoint."""
        return (
            Need("gradient", "pool", {"adam": self.settings.adam}, at_checkpoints=True),
            Need("reward_gradient", "target", {"adam": "none"}, at_checkpoints=True),
        )

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score the pool; `score_<subtask>` columns in `detail` when there is more than one subtask."""
        assert signals.target is not None  # the stage checks `uses_target`
        score_NG = influence(
            signals.rows["gradient", "pool"],
            signals.rows["reward_gradient", "target"],
            weight_C=signals.checkpoint_weight_C,
            target=signals.target,
            aggregate=self.settings.aggregate,
        )
        return strongest_group(score_NG, pool=signals.pool, target=signals.target)
