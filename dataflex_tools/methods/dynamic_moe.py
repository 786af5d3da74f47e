"""Dynamic MoE: while a mixture-of-experts model trains, draw more from the domains whose tokens go to other experts.

Zhu et al. 2024, "Dynamic Data Mixing Maximizes Instruction Tuning for Mixture-of-Experts",
https://arxiv.org/abs/2406.11256, Algorithm 1; abstract read. Checked against
AdaptiveSamplingCallback of src/callbacks.py of https://github.com/Spico197/MoE-SFT (commit 2a5b1f4), executed, by the
numbers of tests/vectors/moe_gate_load_mixer.json.
Departs from it: a weight of 0 stays 0 until smoothing without log(0); `anchored` is an addition.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.mixing import (
    Domains,
    Follow,
    MixState,
    Observation,
    check_starting_weights,
    starting_weights,
)
from dataflex_tools.methods.base import ScheduleMixer
from dataflex_tools.ops.exponentiated import exponentiated

# K domains, E experts


@dataclass(frozen=True, kw_only=True)
class DynamicMoeSettings:
    """`eta`: step size of the weights. `smoothing`: share spread evenly after each update. `distance` between the expert
    shares of two domains: `l2`, or `cos` for 1 - cosine. `update_every`: optimizer steps per update. `initial`: weights at
    the start, `uniform`, `natural` or by domain. `anchored`: each update starts from these, not from the last weights.
    `follow`: what a training with the artifact does: replay the `schedule`, or keep its `mean` or `last` weights."""

    eta: float = 10.0
    smoothing: float = 0.05
    distance: Literal["l2", "cos"] = "l2"
    update_every: int = 100
    initial: str | Mapping[str, float] = "uniform"
    anchored: bool = False
    follow: Follow = "schedule"

    def __post_init__(self) -> None:
        require(0 < self.eta < np.inf, f"dynamic_moe: eta is {self.eta}, wanted a finite number above 0")
        require(0 <= self.smoothing < 1, f"dynamic_moe: smoothing is {self.smoothing}, wanted a value from 0 to below 1")
        require(self.update_every >= 1, f"dynamic_moe: update_every is {self.update_every}, wanted at least 1")
        check_starting_weights(self.initial, where="dynamic_moe: initial")


class DynamicMoe(ScheduleMixer):
    """The schedule of weights that drew the batches; the score is the mean distance to the domains' expert shares.

    `start` tells it the domains; a restarted training calls it again before `update`.
    """

    Settings = DynamicMoeSettings
    paper = "Zhu et al. 2024, https://arxiv.org/abs/2406.11256"
    cost = "one training of a mixture-of-experts model, and some held-out rows once per update"
    observes = "router_load"

    def start(self, domains: Domains) -> MixState:
        """The initial weights. Raises ConfigError for those that do not fit the domains."""
        self._names = domains.names
        self._initial_K = starting_weights(self.settings.initial, domains, where="dynamic_moe: initial")
        return MixState(0, self._initial_K, np.zeros(len(domains)))

    def update(self, state: MixState, seen: Observation) -> MixState:
        """One step towards the domains that use other experts. Raises DataError for loads that are no token counts."""
        assert seen.load_KE is not None
        for name, load_E in zip(self._names, seen.load_KE, strict=True):
            if not np.isfinite(load_E).all() or (load_E < 0).any() or load_E.sum() <= 0:
                raise DataError(
                    f"dynamic_moe: the router loads of domain {name!r} at step {seen.step} are {load_E.tolist()}, wanted "
                    f"tokens per expert, not all 0; hold out more rows, or the model has diverged"
                )
        distance_K = mean_distances(seen.load_KE, kind=self.settings.distance)
        before_K = self._initial_K if self.settings.anchored else state.weight_K
        weight_K = exponentiated(before_K, distance_K, eta=self.settings.eta, smoothing=self.settings.smoothing)
        return MixState(seen.step, weight_K, distance_K)


def mean_distances(load_KE: np.ndarray, *, kind: Literal["l2", "cos"]) -> np.ndarray:
    """Mean distance of each domain's expert shares to those of all domains, its own 0 counted in, (K,) float64."""
    share_KE = load_KE / load_KE.sum(axis=1, keepdims=True)
    if kind == "l2":
        return np.asarray(np.linalg.norm(share_KE[:, None] - share_KE, axis=2).mean(axis=1))
    unit_KE = share_KE / np.linalg.norm(share_KE, axis=1, keepdims=True)
    return np.asarray(1 - (unit_KE @ unit_KE.T).mean(axis=1))
