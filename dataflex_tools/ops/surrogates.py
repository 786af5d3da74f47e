"""Surrogates: what a regression on runs predicts of any mixture, and how well it predicts runs that it has not seen."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# S runs, F of them in a fold, K domains, C mixtures, R boosting rounds, D distinct mixtures

REGRESSORS = ("gaussian_process", "gradient_boosting", "linear")
_LEARNING_RATE = 0.01  # as in sail-sg/regmix
_CHUNK = 8192  # mixtures predicted at once: 32 MiB of kernel values for 512 runs


@dataclass(frozen=True)
class Swarm:
    """What is fitted: `weight_SK` rows sum to 1, `target_S` is to be low; `regressor`: one of REGRESSORS."""

    weight_SK: np.ndarray
    target_S: np.ndarray
    regressor: str


class Surrogate(Protocol):
    """A regression that was fitted to runs."""

    def predict(self, at_CK: np.ndarray) -> np.ndarray:
        """Expected target of each mixture, (C,)."""

    def deviation(self, at_CK: np.ndarray) -> np.ndarray | None:
        """Standard deviation of what a run on each mixture measures, (C,); None where the regression has none."""


@dataclass(frozen=True)
class HeldOut:
    """What was predicted of each run by a fit to the other folds, (S,), and its deviation where the regression has one.

    `rounds`: the number of boosting rounds that predicts these runs best; 1 for other regressors.
    """

    predicted_S: np.ndarray
    deviation_S: np.ndarray | None
    rounds: int

    def widening(self, target_S: np.ndarray) -> float:
        """By how much the deviations are to be multiplied to hold what these runs measured; at least 1."""
        if self.deviation_S is None:
            return 1.0
        return max(1.0, float(np.sqrt(np.mean(((self.predicted_S - target_S) / self.deviation_S) ** 2))))


def fit_surrogate(swarm: Swarm, *, num_rounds: int) -> Surrogate:
    """The regression fitted to all runs; `num_rounds`: of boosting."""
    if swarm.regressor == "linear":
        return _Linear(linear_coefficients(swarm.weight_SK, swarm.target_S))
    if swarm.regressor == "gradient_boosting":
        return _Trees(_boosted(swarm.weight_SK, swarm.target_S, num_rounds))
    return _GaussianProcess(_gaussian_process(swarm.weight_SK, swarm.target_S))


def held_out_predictions(swarm: Swarm, num_folds: int, *, num_rounds: int, rng: np.random.Generator) -> HeldOut:
    """Each run as a fit to the other folds predicts it; runs of one mixture share a fold.

    The rounds, at most `num_rounds`, have the least squared error over all held-out runs.
    """
    folds = _folds(swarm.weight_SK, num_folds, rng)
    if swarm.regressor == "gradient_boosting":
        return _held_out_trees(swarm, folds, num_rounds)
    predicted_S = np.empty(len(swarm.target_S))
    deviation_S = np.full(len(swarm.target_S), np.nan)
    for fold in folds:
        fit = fit_surrogate(_without(swarm, fold), num_rounds=1)
        predicted_S[fold] = fit.predict(swarm.weight_SK[fold])
        if (deviation_F := fit.deviation(swarm.weight_SK[fold])) is not None:
            deviation_S[fold] = deviation_F
    return HeldOut(predicted_S, None if np.isnan(deviation_S).any() else deviation_S, 1)


def _held_out_trees(swarm: Swarm, folds: Sequence[np.ndarray], num_rounds: int) -> HeldOut:
    predicted_RS = np.empty((num_rounds, len(swarm.target_S)))
    for fold in folds:
        others = _without(swarm, fold)
        model = _boosted(others.weight_SK, others.target_S, num_rounds)
        for r, predicted in enumerate(model.staged_predict(swarm.weight_SK[fold])):
            predicted_RS[r, fold] = predicted
    best = int(np.argmin(((predicted_RS - swarm.target_S) ** 2).mean(axis=1)))
    return HeldOut(predicted_RS[best], None, best + 1)


def _without(swarm: Swarm, fold: np.ndarray) -> Swarm:
    rest = np.delete(np.arange(len(swarm.target_S)), fold)
    return Swarm(swarm.weight_SK[rest], swarm.target_S[rest], swarm.regressor)


def linear_coefficients(weight_SK: np.ndarray, target_S: np.ndarray) -> np.ndarray:
    """Least squares without an intercept, (K,): rows sum to 1, so that a coefficient is the loss of its domain alone."""
    return np.asarray(np.linalg.lstsq(weight_SK, target_S, rcond=None)[0])


@dataclass(frozen=True)
class _Linear:
    coefficient_K: np.ndarray

    def predict(self, at_CK: np.ndarray) -> np.ndarray:
        return np.asarray(at_CK @ self.coefficient_K)

    def deviation(self, at_CK: np.ndarray) -> None:
        return None


@dataclass(frozen=True)
class _Trees:
    model: Any

    def predict(self, at_CK: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.predict(at_CK))

    def deviation(self, at_CK: np.ndarray) -> None:
        return None


@dataclass(frozen=True)
class _GaussianProcess:
    model: Any

    def predict(self, at_CK: np.ndarray) -> np.ndarray:
        chunks = np.array_split(np.sqrt(at_CK), -(-len(at_CK) // _CHUNK))
        return np.concatenate([self.model.predict(chunk) for chunk in chunks])

    def deviation(self, at_CK: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.predict(np.sqrt(at_CK), return_std=True)[1])


def _folds(weight_SK: np.ndarray, num_folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Runs of each fold; a run whose mixture another one has would be predicted by its twin."""
    _, first_D, of_S = np.unique(weight_SK, axis=0, return_index=True, return_inverse=True)
    # distinct mixtures counted in the order of the runs
    place_D = np.argsort(np.argsort(first_D))
    mixture_S = place_D[of_S]
    parts = np.array_split(rng.permutation(len(first_D)), num_folds)
    if len(first_D) == len(weight_SK):
        return parts
    return [np.flatnonzero(np.isin(mixture_S, part)) for part in parts]


def _boosted(weight_SK: np.ndarray, target_S: np.ndarray, num_rounds: int) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    # exact splits on one thread: the same on any machine, and fits 32 runs, where a leaf of 20 leaves nothing to split
    model = GradientBoostingRegressor(n_estimators=num_rounds, learning_rate=_LEARNING_RATE, max_depth=3, random_state=0)
    return model.fit(weight_SK, target_S)


def _gaussian_process(weight_SK: np.ndarray, target_S: np.ndarray) -> Any:
    """On square roots of shares: near 0, where a domain's first tokens count most, they differ more."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

    lengths = Matern(np.ones(weight_SK.shape[1]), length_scale_bounds=(1e-2, 1e2), nu=2.5)
    kernel = ConstantKernel() * lengths + ConstantKernel() * DotProduct() + WhiteKernel()
    model = GaussianProcessRegressor(kernel, normalize_y=True)
    with warnings.catch_warnings():
        # a length at its bound is a domain that does not matter; what an optimum is worth the held-out runs say
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(np.sqrt(weight_SK), target_S)
