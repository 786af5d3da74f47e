"""Sheared loading: while the model trains, draw more from the domains whose held-out loss is above where it should end.

Xia et al. 2023, "Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning",
https://arxiv.org/abs/2310.06694, Algorithm 1 (dynamic batch loading). Checked against update_proportion of
llmshearing/callbacks/dynamic_loading_callback.py of the authors' repository (commit b87218b), executed, by the numbers of
tests/vectors/sheared_llama_loading.json.
Departs from the code in float64 (there float32); `paper` is the algorithm of the paper, which the code does not run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.core.mixing import (
    Domains,
    Follow,
    MixState,
    Observation,
    check_starting_weights,
    finite_means,
    starting_weights,
)
from dataflex_tools.methods.base import ScheduleMixer
from dataflex_tools.ops.exponentiated import exponentiated

# K domains

_OFFICIAL_SMOOTHING = 1e-4  # a constant of the official code


@dataclass(frozen=True, kw_only=True)
class ShearedLoadingSettings:
    """`reference_losses`: for each domain the held-out loss to reach, nats per token. `variant`: `paper` clips what is below
    the reference at 0; `official` does not, and spreads 1e-4 evenly; `official_bandit` adds the difference to the weights
    instead of their logarithms. `update_every`: optimizer steps per update. `initial`: weights at the start, `natural`,
    `uniform` or by domain. `follow`: what a training with the artifact does: replay the `schedule`, or keep its `mean` or
    `last` weights."""

    reference_losses: Mapping[str, float] = field(default_factory=dict)
    variant: Literal["paper", "official", "official_bandit"] = "paper"
    update_every: int = 50
    initial: str | Mapping[str, float] = "natural"
    follow: Follow = "schedule"

    def __post_init__(self) -> None:
        require(self.update_every >= 1, f"sheared_loading: update_every is {self.update_every}, wanted at least 1")
        check_starting_weights(self.initial, where="sheared_loading: initial")
        for name, loss in self.reference_losses.items():
            message = f"sheared_loading: the reference loss of {name!r} is {loss}, wanted nats per token of 0 or more"
            require(bool(np.isfinite(loss)) and loss >= 0, message)


class ShearedLoading(ScheduleMixer):
    """The schedule of weights that drew the batches; the score is the excess over the reference loss.

    `start` tells it the domains; a restarted training calls it again before `update`.
    """

    Settings = ShearedLoadingSettings
    paper = "Xia et al. 2023, https://arxiv.org/abs/2310.06694"
    cost = "one training, and the held-out rows once per update"
    observes = "held_out_loss"

    def start(self, domains: Domains) -> MixState:
        """The initial weights. Raises ConfigError unless `reference_losses` names each domain and no other."""
        given = self.settings.reference_losses
        for name in given:
            if name not in domains.names:
                hint = did_you_mean(name, domains.names)
                raise ConfigError(f"sheared_loading: reference_losses names {name!r}, no domain of the data; {hint}")
        if missing := [name for name in domains.names if name not in given]:
            raise ConfigError(
                f"sheared_loading: reference_losses has no loss for {', '.join(missing)}; give each domain the held-out "
                f"nats per token to reach, e.g. those of a trained model of the same size"
            )
        self._names, self._reference_K = domains.names, np.array([given[name] for name in domains.names])
        weight_K = starting_weights(self.settings.initial, domains, where="sheared_loading: initial")
        return MixState(0, weight_K, np.zeros(len(domains)))

    def update(self, state: MixState, seen: Observation) -> MixState:
        """One step towards what is above its reference. Raises DataError for a loss that is missing or not finite."""
        loss_K = finite_means(seen, self._names, where="sheared_loading")
        if np.isnan(loss_K).any():
            name = self._names[int(np.isnan(loss_K).argmax())]
            raise DataError(
                f"sheared_loading: domain {name!r} has no held-out token at step {seen.step}; hold out more rows"
            )
        excess_K = loss_K - self._reference_K
        if self.settings.variant == "paper":
            excess_K = np.maximum(excess_K, 0)
            return MixState(seen.step, exponentiated(state.weight_K, excess_K), excess_K)
        if self.settings.variant == "official":
            weight_K = exponentiated(state.weight_K, excess_K, smoothing=_OFFICIAL_SMOOTHING)
        else:
            even_K = np.ones(len(excess_K))
            weight_K = exponentiated(even_K, state.weight_K + excess_K, smoothing=_OFFICIAL_SMOOTHING)
        return MixState(seen.step, weight_K, excess_K)
