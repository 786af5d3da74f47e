"""A swarm of runs: mixtures drawn from Dirichlet distributions, and losses fitted to them.

The draw is that of mixture_config/synthesize_mixture.py of sail-sg/regmix, https://arxiv.org/abs/2407.01492.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.shares import tempered

# S runs, K domains, C candidates or drawn mixtures, R boosting rounds

REGRESSORS = ("gradient_boosting", "linear")
_NUM_STRENGTHS = 15  # as in sail-sg/regmix, like the two below
_NUM_DRAWS = 51_200  # there 100 for each of 512 runs; one number for all, so that fewer runs are the first of more
_LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Swarm:
    """What is fitted: `weight_SK` rows sum to 1, `target_S` nats per token; `regressor`: one of REGRESSORS."""

    weight_SK: np.ndarray
    target_S: np.ndarray
    regressor: str


def draw_swarm(
    prior_K: np.ndarray,
    num_runs: int,
    *,
    exponent: float,
    strengths: tuple[float, float],
    max_upsampling: float,
    min_share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Different mixtures drawn around prior ** exponent, (num_runs, K); rows sum to 1. Fewer are the first of more.

    Each has one of 15 strengths between the two, log-spaced. A draw with a share above `max_upsampling` * prior is left out;
    shares are then rounded as in `rounded`. Raises ConfigError if fewer than `num_runs` different ones come out.
    """
    base_K = tempered(prior_K, exponent)
    strength_G = np.geomspace(*strengths, _NUM_STRENGTHS)
    count_G = rng.multinomial(_NUM_DRAWS, np.full(_NUM_STRENGTHS, 1 / _NUM_STRENGTHS))
    drawn = [rng.dirichlet(base_K * strength, count) for strength, count in zip(strength_G, count_G, strict=True)]
    kept_CK = within_bound(np.concatenate(drawn), prior_K, max_upsampling=max_upsampling)
    unique_CK = np.unique(rounded(kept_CK, min_share), axis=0)
    if len(unique_CK) < num_runs:
        raise ConfigError(
            f"{len(unique_CK)} different mixtures came out of {_NUM_DRAWS:,} draws, {num_runs} were asked for; lower "
            "num_runs or min_share, or raise max_upsampling"
        )
    chosen_SK = unique_CK[rng.permutation(len(unique_CK))[:num_runs]]
    return np.asarray(chosen_SK / chosen_SK.sum(axis=1, keepdims=True))


def within_bound(weight_CK: np.ndarray, prior_K: np.ndarray, *, max_upsampling: float) -> np.ndarray:
    """The rows without a share above min(max_upsampling * prior, 1)."""
    return np.asarray(weight_CK[(weight_CK <= np.minimum(max_upsampling * prior_K, 1)).all(axis=1)])


def rounded(weight_CK: np.ndarray, min_share: float) -> np.ndarray:
    """Shares in units of `min_share`, (C, K) int64: those below it are 0, the others scaled to sum to 1 and rounded.

    Rows sum to about 1 / min_share. Rows whose shares are all below it are left out.
    """
    weight_CK = np.where(weight_CK < min_share, 0.0, weight_CK)
    weight_CK = weight_CK[weight_CK.any(axis=1)]
    return np.asarray(np.rint(weight_CK / weight_CK.sum(axis=1, keepdims=True) / min_share).astype(np.int64))


def candidates(prior_K: np.ndarray, num: int, *, max_upsampling: float, rng: np.random.Generator) -> np.ndarray:
    """`num` draws of Dirichlet(prior) less those outside the bound of the runs, (C, K); trees do not extrapolate."""
    return within_bound(rng.dirichlet(prior_K, num), prior_K, max_upsampling=max_upsampling)


def average_best(candidate_CK: np.ndarray, predicted_C: np.ndarray, num_best: int) -> np.ndarray:
    """Mean of the candidates of lowest predicted loss, (K,); ties to the first drawn."""
    return np.asarray(candidate_CK[np.argsort(predicted_C, kind="stable")[:num_best]].mean(axis=0))


def linear_coefficients(weight_SK: np.ndarray, target_S: np.ndarray) -> np.ndarray:
    """Least squares without an intercept, (K,): rows sum to 1, so that a coefficient is the loss of its domain alone."""
    return np.asarray(np.linalg.lstsq(weight_SK, target_S, rcond=None)[0])


def predict(swarm: Swarm, at_CK: np.ndarray, *, num_rounds: int) -> np.ndarray:
    """Loss that a fit to all runs predicts of each mixture, (C,) nats per token; `num_rounds`: of boosting."""
    if swarm.regressor == "linear":
        return np.asarray(at_CK @ linear_coefficients(swarm.weight_SK, swarm.target_S))
    return np.asarray(_boosted(swarm.weight_SK, swarm.target_S, num_rounds).predict(at_CK))


def held_out_predictions(
    swarm: Swarm, num_folds: int, *, num_rounds: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Loss of each run as predicted by a fit to the other folds, (S,), and the number of boosting rounds that does it best.

    The rounds, at most `num_rounds`, have the least squared error over all held-out runs; 1 for a linear fit.
    """
    num_rounds = 1 if swarm.regressor == "linear" else num_rounds
    predicted_RS = np.empty((num_rounds, len(swarm.target_S)))
    for fold in np.array_split(rng.permutation(len(swarm.target_S)), num_folds):
        rest = np.delete(np.arange(len(swarm.target_S)), fold)
        weight_SK, target_S, at_CK = swarm.weight_SK[rest], swarm.target_S[rest], swarm.weight_SK[fold]
        if swarm.regressor == "linear":
            predicted_RS[0, fold] = at_CK @ linear_coefficients(weight_SK, target_S)
        else:
            for r, predicted in enumerate(_boosted(weight_SK, target_S, num_rounds).staged_predict(at_CK)):
                predicted_RS[r, fold] = predicted
    best = int(np.argmin(((predicted_RS - swarm.target_S) ** 2).mean(axis=1)))
    return predicted_RS[best], best + 1


def _boosted(weight_SK: np.ndarray, target_S: np.ndarray, num_rounds: int) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    # exact splits on one thread: the same on any machine, and fits 32 runs, where a leaf of 20 leaves nothing to split
    model = GradientBoostingRegressor(n_estimators=num_rounds, learning_rate=_LEARNING_RATE, max_depth=3, random_state=0)
    return model.fit(weight_SK, target_S)
