"""Random mix: proportions drawn at random. The control that each other mixer has to beat.

A Dirichlet distribution, as the mixtures of RegMix's small runs, https://arxiv.org/abs/2407.01492.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import did_you_mean
from dataflex_tools.core.mixing import Domains, Mixture
from dataflex_tools.methods.base import StaticMixer
from dataflex_tools.ops.shares import by_name, natural_shares

# K domains

AROUND = ("natural", "uniform")


@dataclass(frozen=True, kw_only=True)
class RandomMixSettings:
    """`around`: the mean of the draw, natural (token shares) or uniform. `concentration`: parameters of the Dirichlet
    are concentration * K * mean; around uniform, 1 makes every mixture equally likely. Higher stays nearer to the mean."""

    around: str = "natural"
    concentration: float = 1.0

    def __post_init__(self) -> None:
        require(self.around in AROUND, f"random_mix: around is {self.around!r}; {did_you_mean(self.around, AROUND)}")
        is_fit = np.isfinite(self.concentration) and self.concentration > 0
        require(bool(is_fit), f"random_mix: concentration is {self.concentration}, wanted a finite number above 0")


class RandomMix(StaticMixer):
    """One draw, held at every step; the seed of the score stage decides it."""

    Settings = RandomMixSettings
    paper = "control"
    cost = "none"

    def mix(self, domains: Domains, *, rng: np.random.Generator) -> Mixture:
        """The draw. Fact `distance`: half the sum of |weight - mean|, 0 at the mean, at most 1."""
        num = len(domains)
        mean_K = natural_shares(domains) if self.settings.around == "natural" else np.full(num, 1 / num)
        weight_K, order_K = np.empty(num), by_name(domains.names)
        weight_K[order_K] = rng.dirichlet(self.settings.concentration * num * mean_K[order_K])
        return Mixture.constant(domains.names, weight_K, facts={"distance": float(np.abs(weight_K - mean_K).sum() / 2)})
