"""DoReMi: raise the domains on which a small proxy model is still worse than a reference model, by group-robust training.

Xie et al. 2023, "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", https://arxiv.org/abs/2305.10429,
Algorithm 1. Checked against update_domain_weights of doremi/trainer.py of the authors' repository (commit 7cde52d),
executed, by the numbers of tests/vectors/doremi_trajectory.json.
Departs from the code: a domain whose tokens are all masked keeps its previous score (there one such step makes every weight
NaN). The paper does not say what the score of a domain is before its first token: 0 here, ln(vocabulary) in the code, which
gives a domain that misses the first batch nearly all of the weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.mixing import (
    Domains,
    MixState,
    Mixture,
    Observation,
    check_starting_weights,
    concentration,
    finite_means,
    starting_weights,
)
from dataflex_tools.methods.base import OnlineMixer
from dataflex_tools.ops.exponentiated import exponentiated
from dataflex_tools.ops.settled import unsettled

# K domains, S states of the trajectory


@dataclass(frozen=True, kw_only=True)
class DoremiSettings:
    """`eta`: step size of the weights. `smoothing`: share spread evenly after each update (c in the paper). `variant`:
    `paper` trains on the sum of weight x domain mean loss and averages the weights after each step; `official` weights
    tokens by weight / sampling, starts from the sampling weights and counts them in the average. `initial_score`: score of a
    domain not seen yet, nats per token, or `log_vocab` (the code). `reference_weights`: what the reference trains on;
    `sampling`: what the proxy's batches are drawn by; each `natural`, `uniform` or a weight per domain. `max_rounds`: rounds
    of reference and proxy, the next reference trained on the last average; they end early when no weight moved by
    `tolerance`."""

    eta: float = 1.0
    smoothing: float = 1e-3
    variant: Literal["paper", "official"] = "paper"
    initial_score: float | str = 0.0
    reference_weights: str | Mapping[str, float] = "natural"
    sampling: str | Mapping[str, float] = "uniform"
    max_rounds: int = 1
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require(0 < self.eta < np.inf, f"doremi: eta is {self.eta}, wanted a finite number above 0")
        require(0 <= self.smoothing < 1, f"doremi: smoothing is {self.smoothing}, wanted a value from 0 to below 1")
        require(self.max_rounds >= 1, f"doremi: max_rounds is {self.max_rounds}, wanted at least 1")
        require(self.tolerance > 0, f"doremi: tolerance is {self.tolerance}, wanted more than 0")
        score = self.initial_score
        is_score = score == "log_vocab" if isinstance(score, str) else score >= 0
        require(is_score, f"doremi: initial_score is {score!r}, wanted 'log_vocab' or nats per token of 0 or more")
        check_starting_weights(self.reference_weights, where="doremi: reference_weights")
        check_starting_weights(self.sampling, where="doremi: sampling")


class Doremi(OnlineMixer):
    """Constant proportions: the average of the weights that the proxy's training went through.

    `start` tells it the domains; a restarted training calls it again before `update`.
    """

    Settings = DoremiSettings
    paper = "Xie et al. 2023, https://arxiv.org/abs/2305.10429"
    cost = "two small trainings, reference and proxy, and one forward of the reference per proxy batch"
    observes = "excess_loss"
    weighs_loss = True
    after_training = ("max_rounds", "tolerance", "reference_weights")  # the reference has an address of its own

    @property
    def max_rounds(self) -> int:
        """Most rounds of reference and proxy."""
        return int(self.settings.max_rounds)

    @property
    def loss_kind(self) -> Literal["paper", "official"]:
        """Which of the two losses of `ops.group_loss` the proxy trains on."""
        return "official" if self.settings.variant == "official" else "paper"

    def start(self, domains: Domains) -> MixState:
        """Uniform weights (`official`: the sampling weights). Raises ConfigError for settings that do not fit."""
        self._names = domains.names
        self.reference_weights(domains)
        sampling_K = self.sampling_weights(domains)
        weight_K = sampling_K if self.loss_kind == "official" else np.full(len(domains), 1 / len(domains))
        score = self.settings.initial_score
        return MixState(0, weight_K, np.full(len(domains), np.log(domains.vocab_size) if score == "log_vocab" else score))

    def update(self, state: MixState, seen: Observation) -> MixState:
        """One step up the excess losses. Raises DataError for a loss that is not finite."""
        mean_K = finite_means(seen, self._names, where="doremi")
        score_K = np.where(np.isnan(mean_K), state.score_K, mean_K)
        weight_K = exponentiated(state.weight_K, score_K, eta=self.settings.eta, smoothing=self.settings.smoothing)
        return MixState(seen.step, weight_K, score_K)

    def finish(self, domains: Domains, trajectory: tuple[MixState, ...]) -> Mixture:
        """The average weights. `facts` and the table `averages` hold both, with the starting weights and without.

        Raises ConfigError if the proxy made no step.
        """
        require(len(trajectory) > 1, "doremi: the proxy made no step, so there are no weights; give it at least one")
        weight_SK = np.stack([state.weight_K for state in trajectory])
        average = {"paper": weight_SK[1:].mean(axis=0), "official": weight_SK.mean(axis=0)}
        table = {"domain": np.array(domains.names), **average, "last": weight_SK[-1]}
        facts = {
            "num_updates": len(trajectory) - 1,
            **concentration(domains.names, average[self.loss_kind]),
            **{f"average_{kind}": dict(zip(domains.names, a.tolist(), strict=True)) for kind, a in average.items()},
        }
        if found := unsettled(domains.names, weight_SK, average[self.loss_kind]):
            advice = "train the proxy longer, in larger batches, or with a smaller eta"
            facts["warnings"] = [f"{found}; {advice}"]
        more = {"trajectory": trajectory, "tables": {"averages": table}, "facts": facts}
        return Mixture.constant(domains.names, average[self.loss_kind], **more)

    def sampling_weights(self, domains: Domains) -> np.ndarray:
        """(K,) proportions of the proxy's batches. Raises ConfigError for a domain that would never be drawn."""
        weight_K = starting_weights(self.settings.sampling, domains, where="doremi: sampling")
        for name, weight in zip(domains.names, weight_K, strict=True):
            if weight == 0:
                raise ConfigError(
                    f"doremi: sampling gives {name!r} no weight, so its loss would never be seen; give it some"
                )
        return weight_K

    def reference_weights(self, domains: Domains) -> np.ndarray:
        """(K,) proportions the first reference model trains on."""
        return starting_weights(self.settings.reference_weights, domains, where="doremi: reference_weights")

    def is_settled(self, before_K: np.ndarray, after_K: np.ndarray) -> bool:
        """Whether another round is not needed: no weight moved by `tolerance` or more."""
        return bool(np.abs(np.asarray(after_K) - before_K).max() < self.settings.tolerance)
