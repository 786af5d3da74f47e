"""Natural: each domain in proportion to what the data has of it. The baseline of every mixture.

No paper; what shuffling all data together does.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import did_you_mean
from dataflex_tools.core.mixing import Domains, Mixture
from dataflex_tools.methods.base import StaticMixer
from dataflex_tools.ops.shares import UNITS, natural_shares


@dataclass(frozen=True, kw_only=True)
class NaturalSettings:
    """`unit`: what is counted, tokens or rows."""

    unit: str = "tokens"

    def __post_init__(self) -> None:
        require(self.unit in UNITS, f"natural: unit is {self.unit!r}; {did_you_mean(self.unit, UNITS)}")


class Natural(StaticMixer):
    """The domains' own shares, at every step."""

    Settings = NaturalSettings
    paper = "none"
    cost = "none"

    def mix(self, domains: Domains, *, rng: np.random.Generator) -> Mixture:
        """Share of each domain in all tokens (or rows)."""
        return Mixture.constant(domains.names, natural_shares(domains, self.settings.unit))
