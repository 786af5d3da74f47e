"""UniMax: every domain gets the same number of tokens, but none is repeated more than a given number of epochs.

Chung, Constant, Garcia, Roberts, Tay, Narang, Firat 2023, "UniMax: Fairer and more Effective Language Sampling for
Large-Scale Multilingual Pretraining", https://arxiv.org/abs/2304.09151, Algorithm 1 [recall]. Checked by the numbers of
tests/vectors/sampling_distributions.json.
Departs from it: tokens, there characters; a budget above `max_epochs` times the corpus is cut down to that and said.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.mixing import Domains, Mixture
from dataflex_tools.methods.base import StaticMixer
from dataflex_tools.ops.proportions import fill

# K domains


@dataclass(frozen=True, kw_only=True)
class UnimaxSettings:
    """`max_epochs`: how often a domain may be gone through, 0.5 is half of it. `budget`: tokens of the training that is
    planned; what all domains have together if not given."""

    max_epochs: float = 4.0
    budget: int | None = None

    def __post_init__(self) -> None:
        is_fit = np.isfinite(self.max_epochs) and self.max_epochs > 0
        require(bool(is_fit), f"unimax: max_epochs is {self.max_epochs}, wanted a finite number above 0")
        require(self.budget is None or self.budget > 0, f"unimax: budget is {self.budget}, wanted tokens, more than 0")


class Unimax(StaticMixer):
    """The allocation over its sum, at every step."""

    Settings = UnimaxSettings
    paper = "Chung et al. 2023, https://arxiv.org/abs/2304.09151"
    cost = "none"

    def mix(self, domains: Domains, *, rng: np.random.Generator) -> Mixture:
        """The proportions. Facts: `budget`, `epochs` of each domain at it, `capped` domains, `unused` tokens if all are."""
        total = int(domains.num_tokens_K.sum())
        budget = self.settings.budget or total
        limit_K = self.settings.max_epochs * domains.num_tokens_K
        tokens_K = fill(np.ones(len(domains)), budget, limit_K=limit_K)
        epochs_K = tokens_K / domains.num_tokens_K
        is_capped_K = tokens_K >= limit_K
        facts: dict[str, Any] = {
            "budget": budget,
            "epochs": dict(zip(domains.names, epochs_K.tolist(), strict=True)),
            "capped": [name for name, is_capped in zip(domains.names, is_capped_K, strict=True) if is_capped],
        }
        if (unused := budget - self.settings.max_epochs * total) > 0:
            facts["unused"] = unused
        return Mixture.constant(domains.names, tokens_K, facts=facts)
