"""Zeroth: take the samples whose loss changes like the target's along random directions in weight space; no backward pass.

With q directions xi and p_q(z) = [f(theta + eps xi; z) - f(theta - eps xi; z)] / (2 eps), the mean over q of
p_q(z) p_q(v) estimates the inner product of the gradients of z and v: two-point simultaneous perturbation, Spall 1992,
"Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation" [recall]. As a selector it
is DataFlex's (zeroth_selector.py, commit 6b9a326, later removed; https://github.com/OpenDCAI/DataFlex). Checked by the
numbers of tests/vectors/zeroth_spsa.json, computed independently from its formula.
Departs from it: several directions, set in the signal, are averaged; one direction alone orders the pool by p(z), up or
down, whatever the target is beyond a sign.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.influence import dot_rows, raw_mean

# N pool samples, M target samples, Q directions


@dataclass(frozen=True, kw_only=True)
class ZerothSettings:
    """Nothing to set: number of directions, eps and seed are settings of the signal."""


class Zeroth(Selector):
    """score = mean over directions of the sample's derivative x the target's mean derivative."""

    Settings = ZerothSettings
    paper = "none; DataFlex, https://github.com/OpenDCAI/DataFlex"
    cost = "two forwards per direction and sample, pool and target"
    uses_target = True

    def needs(self) -> tuple[Need, ...]:
        """Derivatives of the loss along the same directions, one column per direction, pool and target."""
        return (Need("zeroth", "pool"), Need("zeroth", "target"))

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score the pool. Raises DataError if the two sides were not measured along equally many directions."""
        (train,), (target,) = signals.rows["zeroth", "pool"], signals.rows["zeroth", "target"]
        if train.dim != target.dim:
            raise DataError(f"zeroth: {train.dim} directions on the pool and {target.dim} on the target; measure both alike")
        mean_1Q = raw_mean(target, np.zeros(len(target), dtype=np.int64), 1)
        score_N = dot_rows(train, mean_1Q / train.dim, is_scaled=True)[:, 0]
        return Selection(np.where(signals.pool.has_labels_N, score_N, -np.inf))
