"""Temperature: proportions between natural and uniform, p ~ n ** (1 / tau).

Devlin et al. 2018, multilingual BERT (exponent 1 / tau = 0.7); Conneau et al. 2019, "Unsupervised Cross-lingual
Representation Learning at Scale", https://arxiv.org/abs/1911.02116 (0.3); Xue et al. 2020, "mT5",
https://arxiv.org/abs/2010.11934 (0.3) [recall]. Checked by the numbers of tests/vectors/sampling_distributions.json.
Departs from them: n counts tokens or rows, there sentences or examples; no cap on n.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import did_you_mean
from dataflex_tools.core.mixing import Domains, Mixture
from dataflex_tools.methods.base import StaticMixer
from dataflex_tools.ops.shares import UNITS, natural_shares, tempered


@dataclass(frozen=True, kw_only=True)
class TemperatureSettings:
    """`tau`: above 0; 1 is natural, more is flatter, "inf" is uniform. `unit`: what n counts, tokens or rows."""

    tau: float | Literal["inf"] = 2.0
    unit: str = "tokens"

    def __post_init__(self) -> None:
        if self.tau == math.inf:
            object.__setattr__(self, "tau", "inf")  # JSON, in which settings are stored, has no infinite number
        is_fit = isinstance(self.tau, str) or self.tau > 0
        require(is_fit, f"temperature: tau is {self.tau}, wanted a number above 0, or inf for uniform")
        require(self.unit in UNITS, f"temperature: unit is {self.unit!r}; {did_you_mean(self.unit, UNITS)}")


class Temperature(StaticMixer):
    """Natural shares to the power of 1 / tau, at every step."""

    Settings = TemperatureSettings
    paper = "Conneau et al. 2019, https://arxiv.org/abs/1911.02116"
    cost = "none"

    def mix(self, domains: Domains, *, rng: np.random.Generator) -> Mixture:
        """The proportions; 1 / tau is 0 for "inf"."""
        share_K = natural_shares(domains, self.settings.unit)
        return Mixture.constant(domains.names, tempered(share_K, 1 / float(self.settings.tau)))
