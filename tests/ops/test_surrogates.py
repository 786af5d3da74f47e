"""Surrogates against plain solutions and against scikit-learn, and predictions of runs that a fit has not seen."""

import warnings

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from dataflex_tools.ops.surrogates import (
    REGRESSORS,
    HeldOut,
    Swarm,
    fit_surrogate,
    held_out_predictions,
    linear_coefficients,
)
from dataflex_tools.ops.swarm import average_best
from tests.helpers import FLOAT64, vector

DATA = vector("regmix_linear")


def mixtures(num, num_domains=4, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(num_domains), num)


def law(weight_SK):
    return 2 + (np.array([1.0, 1.5, 3.0, 0.3]) * np.exp(-5 * weight_SK)).mean(axis=1)


def test_the_linear_fit_and_what_it_predicts_are_the_given_numbers():
    given, wanted = DATA["inputs"], DATA["expected"]
    weight_SK, target_S = np.array(given["train_mixtures"]), np.array(given["train_losses"])
    candidate_CK = np.array(given["candidates"])
    fit = fit_surrogate(Swarm(weight_SK, target_S, "linear"), num_rounds=1)
    predicted_C = fit.predict(candidate_CK)
    exact = {"rtol": DATA["tolerance"]}
    np.testing.assert_allclose(linear_coefficients(weight_SK, target_S), wanted["coef"], **exact)
    np.testing.assert_allclose(fit.predict(weight_SK), wanted["train_pred"], **exact)
    np.testing.assert_allclose(predicted_C, wanted["candidate_pred"], **exact)
    assert np.argsort(predicted_C, kind="stable").tolist() == wanted["order_asc"]
    best_K = average_best(candidate_CK, predicted_C, given["k"])
    np.testing.assert_allclose(best_K, wanted["optimal_mixture_mean_of_top_k"], **exact)


def test_linear_held_out_predictions_equal_normal_equations_without_the_run_s_fold():
    weight_SK = mixtures(12)
    target_S = np.random.default_rng(1).uniform(2, 3, 12)
    swarm = Swarm(weight_SK, target_S, "linear")
    found = held_out_predictions(swarm, 4, num_rounds=99, rng=np.random.default_rng(2))
    folds = np.array_split(np.random.default_rng(2).permutation(12), 4)
    for fold in folds:
        rest = [s for s in range(12) if s not in fold]
        gram, right = weight_SK[rest].T @ weight_SK[rest], weight_SK[rest].T @ target_S[rest]
        np.testing.assert_allclose(found.predicted_S[fold], weight_SK[fold] @ np.linalg.solve(gram, right), **FLOAT64)
    assert (found.rounds, found.deviation_S) == (1, None)


def test_boosting_stops_at_the_round_that_predicts_held_out_runs_best():
    target_S = np.random.default_rng(1).normal(size=40)  # nothing to learn, so that more rounds are worse
    swarm = Swarm(mixtures(40), target_S, "gradient_boosting")
    found = held_out_predictions(swarm, 4, num_rounds=300, rng=np.random.default_rng(2))
    at_limit = held_out_predictions(swarm, 4, num_rounds=found.rounds, rng=np.random.default_rng(2))
    assert found.rounds == at_limit.rounds < 300
    np.testing.assert_array_equal(found.predicted_S, at_limit.predicted_S)


@pytest.mark.parametrize("regressor", REGRESSORS)
def test_a_held_out_run_is_predicted_without_its_own_target(regressor):
    weight_SK = mixtures(30)
    target_S = law(weight_SK) + np.random.default_rng(1).normal(0, 0.05, 30)
    changed_S = target_S.copy()
    changed_S[7] = 100.0
    first, second = (
        held_out_predictions(Swarm(weight_SK, y_S, regressor), 15, num_rounds=1, rng=np.random.default_rng(0)).predicted_S
        for y_S in (target_S, changed_S)
    )
    assert first[7] == second[7]
    assert (first != second).sum() > 15


@pytest.mark.parametrize("regressor", REGRESSORS)
def test_a_held_out_run_is_predicted_without_the_target_of_its_twin(regressor):
    weight_SK = mixtures(30)
    weight_SK[21] = weight_SK[7]
    target_S = law(weight_SK) + np.random.default_rng(1).normal(0, 0.05, 30)
    changed_S = target_S.copy()
    changed_S[[7, 21]] = 100.0
    first, second = (
        held_out_predictions(Swarm(weight_SK, y_S, regressor), 5, num_rounds=1, rng=np.random.default_rng(0)).predicted_S
        for y_S in (target_S, changed_S)
    )
    np.testing.assert_array_equal(first[[7, 21]], second[[7, 21]])
    assert np.isfinite(first).all()


def scikit(weight_SK, target_S):
    """The kernel in scikit-learn's own words."""
    kernel = (
        ConstantKernel(1.0) * Matern([1.0] * weight_SK.shape[1], (1e-2, 1e2), nu=2.5)
        + ConstantKernel(1.0) * DotProduct(1.0)
        + WhiteKernel(1.0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GaussianProcessRegressor(kernel, normalize_y=True).fit(weight_SK**0.5, target_S)


def test_the_gaussian_process_is_scikit_learn_s_on_square_roots_of_shares():
    weight_SK, at_CK = mixtures(40), mixtures(9000, seed=1)
    target_S = law(weight_SK) + np.random.default_rng(1).normal(0, 0.02, 40)
    fit, wanted = fit_surrogate(Swarm(weight_SK, target_S, "gaussian_process"), num_rounds=1), scikit(weight_SK, target_S)
    np.testing.assert_allclose(fit.predict(at_CK), wanted.predict(at_CK**0.5), **FLOAT64)
    _, of_run_C = wanted.predict(at_CK**0.5, return_std=True)
    np.testing.assert_allclose(fit.deviation(at_CK), of_run_C, rtol=1e-6)


def test_widened_deviations_hold_the_runs_that_were_held_out():
    target_S = np.array([1.0, 2.0, 3.0, 4.0])
    narrow = HeldOut(target_S + np.array([0.1, -0.3, 0.2, 0.4]), np.full(4, 0.1), 1)
    assert narrow.widening(target_S) == pytest.approx(np.sqrt((1 + 9 + 4 + 16) / 4))
    assert HeldOut(target_S, np.full(4, 0.1), 1).widening(target_S) == 1
    assert HeldOut(target_S + 1, None, 1).widening(target_S) == 1


def test_a_run_lies_within_its_interval_about_as_often_as_said():
    inside = []
    for seed in range(4):
        weight_SK, at_CK = mixtures(30, seed=seed), mixtures(200, seed=seed + 100)
        rng = np.random.default_rng(seed)
        swarm = Swarm(weight_SK, law(weight_SK) + rng.normal(0, 0.05, 30), "gaussian_process")
        held_out = held_out_predictions(swarm, 5, num_rounds=1, rng=rng)
        fit = fit_surrogate(swarm, num_rounds=1)
        deviation_C = held_out.widening(swarm.target_S) * fit.deviation(at_CK)
        inside.append(np.abs(fit.predict(at_CK) - law(at_CK) - rng.normal(0, 0.05, 200)) < 1.96 * deviation_C)
    assert np.mean(inside) > 0.9


def test_a_domain_that_does_not_matter_is_no_warning():
    weight_SK = mixtures(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_surrogate(Swarm(weight_SK, weight_SK[:, 0], "gaussian_process"), num_rounds=1)


@pytest.mark.parametrize("regressor", REGRESSORS)
def test_equal_targets_are_predicted_everywhere(regressor):
    fit = fit_surrogate(Swarm(mixtures(20), np.full(20, 2.5), regressor), num_rounds=10)
    np.testing.assert_allclose(fit.predict(mixtures(50, seed=1)), 2.5, rtol=1e-6)
