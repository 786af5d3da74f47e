"""ODM: while the model trains, draw more from the domains whose loss is high, as a bandit that keeps exploring.

Albalak et al. 2023, "Efficient Online Data Mixing For Language Model Pre-Training", https://arxiv.org/abs/2312.02406,
Algorithm 1 [recall]. Checked against the updaters of megatron/data/data_sampling_utils.py of the authors' repository (commit
edbfdad) and odm_mixer.py of https://github.com/OpenDCAI/DataFlex (commit 3c13e37), executed, by the numbers of
tests/vectors/odm_trajectory.json.
Departs from them: every exponential has its largest exponent subtracted, and exp(loss) is taken of at most 700 nats, where
float64 ends (there math.exp overflows, with three domains from a loss of 10 on); the linear policy of rewards that are all 0
is uniform (there 0/0); where several domains were in the batch all are credited with their own mean loss over all ranks
(DataFlex: the domain of the first sample, on one rank).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.mixing import (
    Domains,
    Follow,
    MixState,
    Mixture,
    Observation,
    check_starting_weights,
    finite_means,
    starting_weights,
)
from dataflex_tools.methods.base import ScheduleMixer
from dataflex_tools.ops.exponentiated import exponentiated
from dataflex_tools.ops.settled import is_uniform

# K domains

_LARGEST_EXPONENT = 700.0  # float64 ends at exp(709)
_DATAFLEX_SCALE, _DATAFLEX_FLOOR, _DATAFLEX_LIMIT, _DATAFLEX_SPREAD = 15.0, 0.03, 1e4, 5.0  # constants of its odm_mixer.py


@dataclass(frozen=True, kw_only=True)
class OdmSettings:
    """`variant`: `paper`: moving average of loss / weight, exponential policy; `smoothed_mean`: moving average of exp(loss);
    `smoothed_mean_group`: the same with a linear policy (what the official training calls); `exp3`: sum of loss / weight
    / 10; `dataflex`. `smoothing`: what the moving average keeps of the past; `exp3` has none. `warmup_steps`: optimizer
    steps drawn by `initial` (`natural`, `uniform` or by domain) whose losses are not used. `update_every`: optimizer steps
    per update. `follow`: what a training with the artifact does: replay the `schedule`, or keep `mean` or `last` weights."""

    variant: Literal["paper", "smoothed_mean", "smoothed_mean_group", "exp3", "dataflex"] = "paper"
    smoothing: float = 0.9
    warmup_steps: int = 0
    update_every: int = 1
    initial: str | Mapping[str, float] = "uniform"
    follow: Follow = "schedule"

    def __post_init__(self) -> None:
        require(0 <= self.smoothing < 1, f"odm: smoothing is {self.smoothing}, wanted a value from 0 to below 1")
        is_whole = self.warmup_steps >= 0 and self.warmup_steps % max(self.update_every, 1) == 0
        wanted = f"wanted a multiple of update_every ({self.update_every}), 0 or more"
        require(is_whole, f"odm: warmup_steps is {self.warmup_steps}, {wanted}")
        require(self.update_every >= 1, f"odm: update_every is {self.update_every}, wanted at least 1")
        has_average = self.variant != "exp3" or self.smoothing == OdmSettings.smoothing
        require(has_average, f"odm: smoothing {self.smoothing} has no effect: exp3 sums its rewards; leave it out")
        check_starting_weights(self.initial, where="odm: initial")


class Odm(ScheduleMixer):
    """The schedule of weights that drew the batches; the weights of a state draw the step after it.

    `start` tells it the domains; a restarted training calls it again before `update`.
    """

    Settings = OdmSettings
    paper = "Albalak et al. 2023, https://arxiv.org/abs/2312.02406"
    cost = "one training; nothing beyond its own losses"
    observes = "loss"

    @property
    def first_update(self) -> int:
        """After the warm-up."""
        return int(self.settings.warmup_steps + self.settings.update_every)

    def finish(self, domains: Domains, trajectory: tuple[MixState, ...]) -> Mixture:
        """The schedule, or what of it `follow` asks for; a warning, with the cause, if it ends without a preference."""
        mixture, last, num = super().finish(domains, trajectory), trajectory[-1], len(domains)
        if not is_uniform(last.weight_K):
            return mixture
        cause = "the losses are too alike for so few steps of this rule"
        if self.settings.variant == "dataflex" and (last.score_K >= _DATAFLEX_LIMIT).all():
            cause = f"every reward is at DataFlex's limit of {_DATAFLEX_LIMIT:g}"
        elif num * self._exploration(last.step, num) >= 1:
            cause = f"with {num} domains exploration takes all the weight at step {last.step:,}"
        found = f"the last weights are uniform, so the plan prefers no domain: {cause}; train longer or take another variant"
        return replace(mixture, facts={**mixture.facts, "warnings": [found]})

    def start(self, domains: Domains) -> MixState:
        """The initial weights and no rewards. Raises ConfigError for a domain of weight 0, which losses are divided by."""
        self._names = domains.names
        weight_K = starting_weights(self.settings.initial, domains, where="odm: initial")
        for name, weight in zip(domains.names, weight_K, strict=True):
            if weight == 0:
                raise ConfigError(f"odm: initial gives {name!r} no weight, and its loss is divided by it; give it some")
        return MixState(0, weight_K, np.zeros(len(domains)))

    def update(self, state: MixState, seen: Observation) -> MixState:
        """Credit the domains of the batch, then say what draws the next; as it was while warming up.

        Raises DataError for a loss that is not finite.
        """
        mean_K = finite_means(seen, self._names, where="odm")
        if seen.step <= self.settings.warmup_steps:
            return MixState(seen.step, state.weight_K, state.score_K)
        was_seen_K = ~np.isnan(mean_K)
        score_K = np.where(was_seen_K, self._reward(state, np.where(was_seen_K, mean_K, 0)), state.score_K)
        return MixState(seen.step, self._policy(score_K, state.step, seen.step), score_K)

    def _reward(self, state: MixState, loss_K: np.ndarray) -> np.ndarray:
        """New rewards (K,), were all domains seen; `state.weight_K` drew the batch."""
        variant, keep = self.settings.variant, self.settings.smoothing
        if variant == "exp3":
            return np.asarray(state.score_K + loss_K / 10 / state.weight_K)
        if variant in ("smoothed_mean", "smoothed_mean_group"):
            return np.asarray(keep * state.score_K + (1 - keep) * np.exp(np.minimum(loss_K, _LARGEST_EXPONENT)))
        scale = _DATAFLEX_SCALE if variant == "dataflex" else 1.0
        score_K = keep * state.score_K + (1 - keep) * scale * loss_K / state.weight_K
        limit = _DATAFLEX_LIMIT if variant == "dataflex" else np.inf
        return np.asarray(np.clip(score_K, -limit, limit))

    def _policy(self, score_K: np.ndarray, before: int, step: int) -> np.ndarray:
        """Weights (K,) after the update at `step`, the last one having been at `before`."""
        num, variant = len(score_K), self.settings.variant
        if variant == "paper":  # pi_t is made at the start of step t, of epsilon_t and epsilon_{t-1}
            before, step = step, step + self.update_every
        explored, eta = num * self._exploration(step, num), self._exploration(before, num)
        if variant == "smoothed_mean_group":
            total = score_K.sum()
            return np.asarray((1 - explored) * (score_K / total if total > 0 else 1 / num) + explored / num)
        if variant == "dataflex":
            below_K = np.clip(eta * (score_K - score_K.max()), -_DATAFLEX_SPREAD, 0)
            return exponentiated(np.ones(num), below_K, smoothing=min(explored, 1.0))
        return exponentiated(np.ones(num), score_K, eta=eta, smoothing=explored)

    def _exploration(self, step: int, num: int) -> float:
        """epsilon_t = min(1/K, sqrt(ln K / (K t))), 1/K before the first update."""
        is_dataflex = self.settings.variant == "dataflex"
        if step <= self.settings.warmup_steps:
            return 1 / num
        count = step - self.settings.warmup_steps if is_dataflex else step
        epsilon = min(1 / num, float(np.sqrt(np.log(num) / (num * count))))
        return max(_DATAFLEX_FLOOR, epsilon) if is_dataflex else epsilon
