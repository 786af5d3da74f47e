"""RegMix: train many small models on random mixtures, fit their loss to their mixture, take the mixtures the fit prefers.

Liu, Zheng, Muennighoff, Zeng, Dou, Pang, Jiang, Lin 2024, "RegMix: Data Mixture as Regression for Language Model
Pre-training", https://arxiv.org/abs/2407.01492, section 3 [recall]. Checked against mixture_config/synthesize_mixture.py of
sail-sg/regmix [read], and the linear fit by the numbers of tests/vectors/regmix_linear.json.
Departs from it: the number of boosting rounds and the reported rank correlation come from runs that the fit did not see
(there early stopping looks at the test set); candidates keep the bound that the runs keep; scikit-learn's trees, of depth 3
(there LightGBM); shares are rounded and then scaled to sum to 1; the draw goes by the domains' names, not their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.core.mixing import Domains, Mixture, weights_of
from dataflex_tools.methods.base import SwarmMixer
from dataflex_tools.ops.agreement import spearman
from dataflex_tools.ops.shares import by_name, natural_shares
from dataflex_tools.ops.swarm import REGRESSORS, Swarm, average_best, candidates, draw_swarm, held_out_predictions, predict

# S runs, K domains, C candidates


@dataclass(frozen=True, kw_only=True)
class RegmixSettings:
    """`num_runs`: small trainings. `prior_exponent`: runs are drawn around natural shares to this power. `strengths`: lowest
    and highest sum of the Dirichlet's parameters. `max_upsampling`: bound of a share, in natural shares. `min_share`:
    shares below it are 0, others multiples of it. `regressor`: gradient_boosting or linear. `num_rounds`: of boosting, at
    most. `num_folds`: of the runs; each fold is predicted by a fit to the others. `num_candidates`: drawn around natural
    shares. `num_best`: of them are averaged. `target`: the loss to lower, "mean" of all domains, a domain, or weights."""

    num_runs: int = 512
    prior_exponent: float = 0.5
    strengths: tuple[float, float] = (0.1, 5.0)
    max_upsampling: float = 15.0
    min_share: float = 2e-4
    regressor: str = "gradient_boosting"
    num_rounds: int = 1000
    num_folds: int = 5
    num_candidates: int = 100_000
    num_best: int = 128
    target: Mapping[str, float] | str = "mean"

    def __post_init__(self) -> None:
        low, high = self.strengths
        require(0 < low <= high < np.inf, f"regmix: strengths are {low} and {high}, wanted 0 < low <= high")
        require(0 <= self.prior_exponent < np.inf, f"regmix: prior_exponent is {self.prior_exponent}, wanted 0 or more")
        require(self.max_upsampling > 1, f"regmix: max_upsampling is {self.max_upsampling}, wanted more than 1")
        require(0 < self.min_share < 0.5, f"regmix: min_share is {self.min_share}, wanted a value between 0 and 0.5")
        require(
            self.regressor in REGRESSORS,
            f"regmix: regressor is {self.regressor!r}; {did_you_mean(self.regressor, REGRESSORS)}",
        )
        leasts = {"num_folds": 2, "num_rounds": 1, "num_best": 1, "num_candidates": self.num_best}
        for name, least in leasts.items():
            require(getattr(self, name) >= least, f"regmix: {name} is {getattr(self, name)}, wanted at least {least}")
        if not isinstance(self.target, str):
            weights_of(self.target, tuple(self.target), where="regmix: target")


class Regmix(SwarmMixer):
    """The mean of the best candidates of the fit, at every step."""

    Settings = RegmixSettings
    paper = "Liu et al. 2024, https://arxiv.org/abs/2407.01492"
    cost = "num_runs small trainings, each evaluated on held-out text"

    def mixtures(self, domains: Domains, *, rng: np.random.Generator) -> np.ndarray:
        """(num_runs, K) proportions, no two alike. Raises ConfigError if so many do not exist or cannot be fitted."""
        settings = self.settings
        self._target(domains)
        _check_size(len(domains), settings.num_runs, settings.num_folds)
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
        """The mixture. Facts: `spearman` and `rmse` (nats) of held-out runs, `rounds` of boosting, the predicted loss of
        the mixture and of the natural one, the best run. Table `fit`: target of each run, and what was predicted of it.
        """
        settings = self.settings
        _check_size(len(domains), len(weight_SK), settings.num_folds)
        order_K = by_name(domains.names)
        prior_K = natural_shares(domains)[order_K]
        swarm = Swarm(weight_SK[:, order_K], self._target_losses(domains, loss_SK), settings.regressor)
        held_out_S, rounds = held_out_predictions(swarm, settings.num_folds, num_rounds=settings.num_rounds, rng=rng)
        candidate_CK = candidates(prior_K, settings.num_candidates, max_upsampling=settings.max_upsampling, rng=rng)
        if len(candidate_CK) < settings.num_best:
            kept = f"{len(candidate_CK)} of {settings.num_candidates} candidates keep to max_upsampling"
            raise ConfigError(f"regmix: {kept}, {settings.num_best} are to be averaged; raise num_candidates")
        weight_K = np.empty(len(domains))
        weight_K[order_K] = average_best(candidate_CK, predict(swarm, candidate_CK, num_rounds=rounds), settings.num_best)
        predicted = predict(swarm, np.stack([weight_K[order_K], prior_K]), num_rounds=rounds)
        best_run = int(np.argmin(swarm.target_S))
        facts = {
            "spearman": spearman(held_out_S, swarm.target_S),
            "rmse": float(np.sqrt(np.mean((held_out_S - swarm.target_S) ** 2))),
            "rounds": rounds if settings.regressor == "gradient_boosting" else None,
            "predicted": float(predicted[0]),
            "predicted_natural": float(predicted[1]),
            "best_run": {"run": best_run, "target": float(swarm.target_S[best_run])},
        }
        table = {"run": np.arange(len(weight_SK)), "target": swarm.target_S, "predicted_held_out": held_out_S}
        return Mixture.constant(domains.names, weight_K, facts=facts, tables={"fit": table})

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


def _check_size(num_domains: int, num_runs: int, num_folds: int) -> None:
    least = max(2 * num_folds, -(-num_domains * num_folds // (num_folds - 1)))
    require(num_domains > 1, "regmix: the data has one domain, a mixture needs two; name more sources with --data NAME=PATH")
    require(num_runs >= least, f"regmix: {num_runs} runs are too few to fit {num_domains} domains; wanted at least {least}")
