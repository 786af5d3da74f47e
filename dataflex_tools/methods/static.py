"""Static: the proportions that the user gives.

No paper. As `probabilities` of datasets.interleave_datasets or `interleave_probs` of LLaMA-Factory.
Departs from them: weights go by the name of a domain, not by its place, and need not sum to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.mixing import Domains, Mixture, weights_of
from dataflex_tools.methods.base import StaticMixer

# K domains

_ROUNDED = 1e-6  # rounding to six digits moves a weight by half of it


@dataclass(frozen=True, kw_only=True)
class StaticSettings:
    """`weights`: a weight of 0 or more by domain name, or "uniform". They are scaled to sum to 1; a domain that is not
    named gets 0."""

    weights: Mapping[str, float] | str = "uniform"

    def __post_init__(self) -> None:
        if isinstance(self.weights, str):
            wanted = "wanted 'uniform' or a weight by domain name, e.g. {code: 0.3, wiki: 0.7}"
            require(self.weights == "uniform", f"static: weights is {self.weights!r}, {wanted}")
        else:
            weights_of(self.weights, tuple(self.weights), where="static: weights")


class Static(StaticMixer):
    """The given weights, at every step."""

    Settings = StaticSettings
    paper = "none"
    cost = "none"

    def mix(self, domains: Domains, *, rng: np.random.Generator) -> Mixture:
        """The weights. Facts: `given_sum` if they had to be scaled, `not_named` for domains that get 0 unsaid.

        Raises ConfigError for a name that is no domain, with the nearest.
        """
        given = self.settings.weights
        if isinstance(given, str):
            return Mixture.constant(domains.names, np.ones(len(domains)))
        weight_K = weights_of(given, domains.names, where="static: weights")
        facts: dict[str, Any] = {}
        if abs((total := float(sum(given.values()))) - 1) > _ROUNDED * len(given):
            facts["given_sum"] = total
        if not_named := [name for name in domains.names if name not in given]:
            facts["not_named"] = not_named
        return Mixture.constant(domains.names, weight_K, facts=facts)
