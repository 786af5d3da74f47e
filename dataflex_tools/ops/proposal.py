"""The mixture that a fit to runs prefers, what it may not exceed, and how far the fit is to be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import did_you_mean
from dataflex_tools.ops.agreement import spearman
from dataflex_tools.ops.surrogates import REGRESSORS, Surrogate, Swarm, fit_surrogate, held_out_predictions
from dataflex_tools.ops.swarm import (
    Objective,
    average_best,
    bounded,
    candidates,
    divergence,
    lower,
    refine,
    upper_bounds,
)

# S runs, K domains, C candidates

_NORMAL_95 = 1.96  # standard deviations


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a mixture is found that is better than the runs.

    `max_upsampling`: bound of a share, in natural shares. `regressor`: gaussian_process,
    gradient_boosting or linear. `num_rounds`: of boosting, at most. `num_folds`: of the runs; each
    fold is predicted by a fit to the others. `num_candidates`: mixtures drawn. `num_best`: of them
    are averaged; a fit other than trees is then followed downhill. `kl`: added to the target for
    each nat of KL(mixture || natural). `target_tokens`: of the training that is to follow; with it
    no domain is passed over more than `repetition` times.
    """

    max_upsampling: float = 15.0
    regressor: str = "gaussian_process"
    num_rounds: int = 1000
    num_folds: int = 5
    num_candidates: int = 100_000
    num_best: int = 128
    kl: float = 0.0
    target_tokens: int | None = None
    repetition: float = 4.0

    def __post_init__(self) -> None:
        hint = did_you_mean(self.regressor, REGRESSORS)
        require(self.regressor in REGRESSORS, f"regmix: regressor is {self.regressor!r}; {hint}")
        require(self.max_upsampling > 1, f"regmix: max_upsampling is {self.max_upsampling}, wanted more than 1")
        leasts = {"num_folds": 2, "num_rounds": 1, "num_best": 1, "num_candidates": self.num_best}
        for name, least in leasts.items():
            require(getattr(self, name) >= least, f"regmix: {name} is {getattr(self, name)}, wanted at least {least}")
        require(0 <= self.kl < np.inf, f"regmix: kl is {self.kl}, wanted 0 or more")
        require(0 < self.repetition < np.inf, f"regmix: repetition is {self.repetition}, wanted a number above 0")
        require(
            self.target_tokens is None or self.target_tokens > 0,
            f"regmix: target_tokens is {self.target_tokens}, wanted a number above 0",
        )
        require(
            self.target_tokens is not None or self.repetition == SearchSettings.repetition,
            "regmix: repetition has no effect without target_tokens; say how many tokens will be trained on",
        )


@dataclass(frozen=True)
class Known:
    """What is known of K domains: `prior_K` natural shares, `token_K` tokens (None where only shares are known)."""

    names: Sequence[str]
    prior_K: np.ndarray
    token_K: np.ndarray | None


@dataclass(frozen=True)
class Proposal:
    """The mixture (K,), what was predicted of each run by a fit without it (S,), and facts as JSON values."""

    weight_K: np.ndarray
    held_out_S: np.ndarray
    facts: dict[str, Any]


def propose(
    swarm: Swarm, known: Known, settings: SearchSettings, *, rng: np.random.Generator, higher_is_better: bool = False
) -> Proposal:
    """Fit, search and judge; domains come in an order that no listing of sources changes.

    The law: what is predicted of the mixture is at least as good as what is predicted of the
    natural one, which is kept where nothing is better (fact `warning`), and no share is above its
    bound. Facts: `spearman` and `rmse` of runs as predicted without them; `regret`: how much worse
    than the best run the run is that such predictions prefer; `optimism`: what the fit predicts of
    the run it likes best, less what a fit without that run does; `predicted` and
    `predicted_natural`, with intervals that hold what a run there measures in 95 of 100 cases, if
    it is as far from what is predicted as the runs are from what a fit without them predicts;
    `unconstrained`: the mixture without `kl` and `target_tokens`, where one of them is set.
    Raises ConfigError where no mixture keeps to `target_tokens`.
    """
    sign = -1.0 if higher_is_better else 1.0
    swarm = Swarm(swarm.weight_SK, sign * swarm.target_S, swarm.regressor)
    cap_K = repetition_cap(known, settings)
    held_out = held_out_predictions(swarm, settings.num_folds, num_rounds=settings.num_rounds, rng=rng)
    surrogate = fit_surrogate(swarm, num_rounds=held_out.rounds)
    bound_K = upper_bounds(known.prior_K, swarm.weight_SK, max_upsampling=settings.max_upsampling)
    drawn_CK = candidates(known.prior_K, settings.num_candidates, rng=rng)
    pool_CK = np.concatenate([known.prior_K[None], swarm.weight_SK, drawn_CK])

    def best_of(kl: float, bound_K: np.ndarray) -> np.ndarray:
        def objective(weight_CK: np.ndarray) -> np.ndarray:
            return surrogate.predict(weight_CK) + kl * divergence(weight_CK, known.prior_K)

        return _best(objective, pool_CK, np.maximum(bound_K, known.prior_K), settings)

    weight_K = best_of(settings.kl, np.minimum(bound_K, cap_K))
    facts = _out_of_fold(swarm, held_out.predicted_S, surrogate)
    facts["rounds"] = held_out.rounds if settings.regressor == "gradient_boosting" else None
    at_2K = np.stack([weight_K, known.prior_K])
    deviation_2 = surrogate.deviation(at_2K)
    if deviation_2 is None:
        deviation_2 = np.full(2, facts["rmse"])
    margin_2 = _NORMAL_95 * held_out.widening(swarm.target_S) * deviation_2
    facts |= _rated(sign * surrogate.predict(at_2K), margin_2)
    best_run = int(np.argmin(swarm.target_S))
    facts["best_run"] = {"run": best_run, "target": float(sign * swarm.target_S[best_run])}
    if settings.kl or settings.target_tokens is not None:
        free_K = best_of(0.0, bound_K)
        predicted = float(sign * surrogate.predict(free_K[None])[0])
        facts["unconstrained"] = {"predicted": predicted, "weights": _by_name(known.names, free_K)}
    if np.array_equal(weight_K, known.prior_K):
        facts["warning"] = "no mixture is predicted to be better than the natural one, which is kept"
    return Proposal(weight_K, sign * held_out.predicted_S, facts)


def repetition_cap(known: Known, settings: SearchSettings) -> np.ndarray:
    """Largest share of each domain that passes over it at most `repetition` times, (K,); infinite without an aim."""
    if settings.target_tokens is None:
        return np.full(len(known.prior_K), np.inf)
    if known.token_K is None:
        raise ValueError("repetition_cap: the tokens of the domains are not known")
    most = settings.repetition * float(known.token_K.sum())
    require(
        most >= settings.target_tokens,
        f"regmix: target_tokens is {settings.target_tokens:,}, and {settings.repetition:g} passes over all domains are "
        f"{most:,.0f} tokens; raise repetition, lower target_tokens or add data",
    )
    return np.asarray(settings.repetition * known.token_K / settings.target_tokens)


def _best(objective: Objective, pool_CK: np.ndarray, bound_K: np.ndarray, settings: SearchSettings) -> np.ndarray:
    """The best mixture found from the pool, whose first row is the natural one; that one if nothing is better.

    Trees have steps for slopes: exchanges follow their noise, so that the mean of the best is the answer.
    """
    pool_CK = bounded(pool_CK, bound_K)
    value_C = objective(pool_CK)
    ends = [average_best(pool_CK, value_C, settings.num_best)]
    if settings.regressor != "gradient_boosting":
        ends = [refine(objective, start_K, bound_K) for start_K in (*ends, pool_CK[np.argmin(value_C)])]
    found_CK = np.stack([pool_CK[0], *ends])
    found_C = objective(found_CK)
    best = int(np.argmin(found_C))
    return np.asarray(found_CK[best if found_C[best] < lower(found_C[0]) else 0])


def _out_of_fold(swarm: Swarm, held_out_S: np.ndarray, surrogate: Surrogate) -> dict[str, Any]:
    own_S = surrogate.predict(swarm.weight_SK)
    liked = int(np.argmin(own_S))
    return {
        "spearman": spearman(held_out_S, swarm.target_S),
        "rmse": float(np.sqrt(np.mean((held_out_S - swarm.target_S) ** 2))),
        "regret": float(swarm.target_S[np.argmin(held_out_S)] - swarm.target_S.min()),
        "optimism": float(own_S[liked] - held_out_S[liked]),
    }


def _rated(predicted_2: np.ndarray, margin_2: np.ndarray) -> dict[str, Any]:
    """What is predicted of the mixture and of the natural one."""
    facts: dict[str, Any] = {}
    for name, value, half in zip(("predicted", "predicted_natural"), predicted_2, margin_2, strict=True):
        facts[name] = float(value)
        facts[f"{name}_interval"] = [float(value - half), float(value + half)]
    return facts


def _by_name(names: Sequence[str], weight_K: np.ndarray) -> Mapping[str, float]:
    return dict(zip(names, weight_K.tolist(), strict=True))
