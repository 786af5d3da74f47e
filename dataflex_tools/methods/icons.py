"""ICONS: take the samples that are among the most influential ones for many target tasks, counted as votes.

Wu, Xia, Shao, Deng, Koh, Russakovsky 2024, "ICONS: Influence Consensus for Vision-Language Data Selection",
https://arxiv.org/abs/2501.00654, specialist and generalist stage [note]. Read: icons/generalist.py, influence_matrix.py and
scripts/ of the authors' repository (princetonvisualai/icons, commit ebd3a82): plain gradients on both sides, threshold =
percentile 100 - p of each task's mean influence, `>=`, p = 20. Tested against loops written from these.
Departs from it: influence is summed over all warm-up checkpoints with LESS's weights (there one checkpoint); equal votes are
ordered by mean influence over tasks, then by row (there arbitrary); rows without labels have no part in the threshold.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.influence import ADAM, influence

# N pool samples, K tasks (the target's subtasks)

ICONS_ADAM = ("none", *ADAM)


@dataclass(frozen=True, kw_only=True)
class IconsSettings:
    """`top`: share of the pool that each task votes for. `adam`: how a train gradient becomes an update; `none` is the
    plain gradient, `optimizer_exact` uses the gradients that LESS stored."""

    top: float = 0.2
    adam: str = "none"

    def __post_init__(self) -> None:
        require(0 < self.top < 1, f"icons: top is {self.top}, wanted a value in (0, 1)")
        require(self.adam in ICONS_ADAM, f"icons: adam is {self.adam!r}, wanted one of {', '.join(ICONS_ADAM)}")


class Icons(Selector):
    """score = number of votes + a quarter of the mean influence, which only orders rows of equal votes."""

    Settings = IconsSettings
    paper = "Wu et al. 2024, https://arxiv.org/abs/2501.00654"
    cost = "warm-up LoRA training; one backward per sample and checkpoint, pool and target"
    uses_target = True

    def needs(self) -> tuple[Need, ...]:
        """Gradients of the pool, plain gradients of the target, at every warm-up checkpoint."""
        return (
            Need("gradient", "pool", {"adam": self.settings.adam}, at_checkpoints=True),
            Need("gradient", "target", {"adam": "none"}, at_checkpoints=True),
        )

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score the pool; `votes`, `mean_influence` and each task's `influence_<task>` in `detail`."""
        assert signals.target is not None  # the stage checks `uses_target`
        influence_NK = influence(
            signals.rows["gradient", "pool"],
            signals.rows["gradient", "target"],
            weight_C=signals.checkpoint_weight_C,
            target=signals.target,
            aggregate="mean_of_cosines",
        )
        has_labels_N = signals.pool.has_labels_N
        threshold_K = np.quantile(influence_NK[has_labels_N], 1 - self.settings.top, axis=0)
        votes_N = (influence_NK >= threshold_K).sum(axis=1) * has_labels_N
        mean_N = influence_NK.mean(axis=1)
        # |mean| <= 1, so a quarter of it never bridges the gap of 1 between two numbers of votes
        score_N = np.where(has_labels_N, votes_N + mean_N / 4, -np.inf)
        per_task = {f"influence_{name}": influence_NK[:, k] for k, name in enumerate(signals.target.group_names)}
        return Selection(score_N, {"votes": votes_N, "mean_influence": mean_N, **per_task})
