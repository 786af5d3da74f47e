"""RegMix: train many small models on random mixtures, fit their loss to their mixture, take the mixture the fit prefers.

Liu, Zheng, Muennighoff, Zeng, Dou, Pang, Jiang, Lin 2024, "RegMix: Data Mixture as Regression for Language Model
Pre-training", https://arxiv.org/abs/2407.01492, section 3 [recall]. Checked against mixture_config/synthesize_mixture.py of
sail-sg/regmix [read], and the linear fit by the numbers of tests/vectors/regmix_linear.json.
Departs from it: a Gaussian process on square roots of shares (there LightGBM; here scikit-learn's trees by name);
candidates from all over the simplex, and exchanges of shares from the best of them (there Dirichlet(prior), whose best for
a mean of domains was worse than natural); natural kept where nothing is predicted to be better; the number of boosting
rounds and the reported rank correlation come from runs that the fit did not see (there early stopping looks at the test
set); candidates keep the bounds that the runs keep; shares are rounded and then scaled to sum to 1; the draw goes by the
domains' names, not their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.mixing import Domains, Mixture, weights_of
from dataflex_tools.methods.base import SwarmMixer
from dataflex_tools.ops.proposal import Known, SearchSettings, propose, repetition_cap
from dataflex_tools.ops.shares import by_name, natural_shares
from dataflex_tools.ops.surrogates import Swarm
from dataflex_tools.ops.swarm import draw_swarm

# S runs, K domains


@dataclass(frozen=True, kw_only=True)
class RegmixSettings(SearchSettings):
    """`num_runs`: small trainings. `prior_exponent`: runs are drawn around natural shares to this power. `strengths`: lowest
    and highest sum of the Dirichlet's parameters. `min_share`: shares below it are 0, others multiples of it. `target`:
    the loss to lower, "mean" of all domains, a domain, or weights. The others are those of the search."""

    num_runs: int = 512
    prior_exponent: float = 0.5
    strengths: tuple[float, float] = (0.1, 5.0)
    min_share: float = 2e-4
    target: Mapping[str, float] | str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.strengths
        require(0 < low <= high < np.inf, f"regmix: strengths are {low} and {high}, wanted 0 < low <= high")
        require(0 <= self.prior_exponent < np.inf, f"regmix: prior_exponent is {self.prior_exponent}, wanted 0 or more")
        require(0 < self.min_share < 0.5, f"regmix: min_share is {self.min_share}, wanted a value between 0 and 0.5")
        if not isinstance(self.target, str):
            weights_of(self.target, tuple(self.target), where="regmix: target")


class Regmix(SwarmMixer):
    """The mixture that a fit to the runs prefers, at every step."""

    Settings = RegmixSettings
    paper = "Liu et al. 2024, https://arxiv.org/abs/2407.01492"
    cost = "num_runs small trainings, each evaluated on held-out text"

    def mixtures(self, domains: Domains, *, rng: np.random.Generator) -> np.ndarray:
        """(num_runs, K) proportions, no two alike. Raises ConfigError if so many do not exist or cannot be fitted."""
        settings = self.settings
        self._target(domains)
        repetition_cap(Known(domains.names, natural_shares(domains), domains.num_tokens_K), settings)
        check_size(len(domains), settings.num_runs, settings.num_folds)
        order_K = by_name(domains.names)
        weight_SK = np.empty((settings.num_runs, len(domains)))
        weight_SK[:, order_K] = draw_swarm(
            natural_shares(domains)[order_K],
            settings.num_runs,
            exponent=settings.prior_exponent,
            strengths=settings.strengths,
            max_upsampling=settings.max_upsampling,
            min_share=settings.min_share,
            rng=rng,
        )
        return weight_SK

    def fit(self, domains: Domains, weight_SK: np.ndarray, loss_SK: np.ndarray, *, rng: np.random.Generator) -> Mixture:
        """The mixture, with the facts of `ops.proposal.propose`; table `fit`: target of each run, and what was predicted
        of it."""
        known = Known(domains.names, natural_shares(domains), domains.num_tokens_K)
        return fit_runs(known, weight_SK, self._target_losses(domains, loss_SK), self.settings, rng=rng)

    def _target(self, domains: Domains) -> np.ndarray:
        """Weight of each domain's loss in what is to be lowered, (K,), sums to 1."""
        target = self.settings.target
        if target == "mean":
            return np.full(len(domains), 1 / len(domains))
        given = {target: 1.0} if isinstance(target, str) else target
        return weights_of(given, domains.names, where="regmix: target")

    def _target_losses(self, domains: Domains, loss_SK: np.ndarray) -> np.ndarray:
        """(S,) nats per token. Raises DataError for a loss of the target that is not finite."""
        target_K = self._target(domains)
        for run, k in np.argwhere(~np.isfinite(loss_SK) & (target_K > 0)):
            raise DataError(
                f"regmix: held-out loss of {domains.names[k]!r} after run {run} is {loss_SK[run, k]}, wanted a number"
            )
        return np.asarray(loss_SK[:, target_K > 0] @ target_K[target_K > 0])


def fit_runs(
    known: Known,
    weight_SK: np.ndarray,
    target_S: np.ndarray,
    settings: SearchSettings,
    *,
    rng: np.random.Generator,
    higher_is_better: bool = False,
) -> Mixture:
    """The mixture that a fit of `target_S` to the mixtures of any runs prefers; raises ConfigError for too few runs."""
    check_size(len(known.names), len(weight_SK), settings.num_folds)
    order_K = by_name(known.names)
    names = [known.names[k] for k in order_K]
    token_K = None if known.token_K is None else known.token_K[order_K]
    swarm = Swarm(weight_SK[:, order_K], target_S, settings.regressor)
    ordered = Known(names, known.prior_K[order_K], token_K)
    proposal = propose(swarm, ordered, settings, rng=rng, higher_is_better=higher_is_better)
    weight_K = np.empty(len(order_K))
    weight_K[order_K] = proposal.weight_K
    table = {"run": np.arange(len(weight_SK)), "target": target_S, "predicted_held_out": proposal.held_out_S}
    return Mixture.constant(known.names, weight_K, facts=proposal.facts, tables={"fit": table})


def check_size(num_domains: int, num_runs: int, num_folds: int) -> None:
    """Raise ConfigError for fewer runs than a fit to all but one fold needs, or a single domain."""
    least = max(2 * num_folds, -(-num_domains * num_folds // (num_folds - 1)))
    require(
        num_domains > 1, "regmix: found one domain, a mixture needs two; name more (--data NAME=PATH, or columns of shares)"
    )
    require(num_runs >= least, f"regmix: {num_runs} runs are too few to fit {num_domains} domains; wanted at least {least}")
