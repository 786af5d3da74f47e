"""The swarm's draw against loops of the published rules, and fits to its losses against plain solutions."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.swarm import (
    Swarm,
    average_best,
    candidates,
    draw_swarm,
    held_out_predictions,
    linear_coefficients,
    predict,
    rounded,
    within_bound,
)
from tests.helpers import FLOAT64, vector

PRIOR = np.array([0.6, 0.25, 0.1, 0.05])
DRAW = {"exponent": 0.5, "strengths": (0.1, 5.0), "max_upsampling": 15.0, "min_share": 2e-4}
DATA = vector("regmix_linear")


def draw(num=300, seed=0, prior=PRIOR, **changes):
    return draw_swarm(prior, num, **{**DRAW, **changes}, rng=np.random.default_rng(seed))


def naive_rounded(rows, min_share):
    """Shares below the least to 0, the others scaled and rounded to multiples of it, row by row."""
    result = []
    for row in rows:
        kept = [share if share >= min_share else 0.0 for share in row]
        if sum(kept) > 0:
            result.append([round(share / sum(kept) / min_share) for share in kept])
    return result


def test_mixtures_are_proportions_and_no_two_are_alike():
    weight_SK = draw()
    assert weight_SK.shape == (300, 4)
    assert (weight_SK >= 0).all()
    np.testing.assert_allclose(weight_SK.sum(axis=1), 1, **FLOAT64)
    assert len(np.unique(weight_SK, axis=0)) == 300


@pytest.mark.parametrize("max_upsampling", [1.5, 4.0])
def test_no_share_is_above_its_bound(max_upsampling):
    weight_SK = draw(50, max_upsampling=max_upsampling)
    # rounding to min_share and scaling back may each add half of it
    assert (weight_SK <= np.minimum(max_upsampling * PRIOR, 1) + 2e-4).all()


@pytest.mark.parametrize("min_share", [2e-4, 0.03])
def test_a_share_is_0_or_at_least_the_least(min_share):
    weight_SK = draw(100, min_share=min_share)
    positive = weight_SK[weight_SK > 0]
    # rows sum to 1 only after rounding of each of their 4 shares
    assert positive.min() >= min_share * (1 - 2 * min_share)
    assert (weight_SK == 0).any()


def test_rounding_equals_the_loop():
    rows = np.random.default_rng(0).dirichlet(PRIOR, 50)
    np.testing.assert_array_equal(rounded(rows, 0.03), naive_rounded(rows, 0.03))


def test_a_row_of_nothing_but_crumbs_is_left_out():
    assert rounded(np.full((1, 4), 0.25), 0.3).shape == (0, 4)


def test_shares_at_their_bound_stay_and_above_it_go():
    rows = np.array([[0.5, 0.5], [0.5 + 1e-9, 0.5 - 1e-9]])
    np.testing.assert_array_equal(within_bound(rows, np.array([0.25, 0.75]), max_upsampling=2), rows[:1])


def test_the_draw_lies_around_the_tempered_prior():
    mean = draw(2000, max_upsampling=1000).mean(axis=0)
    wanted = PRIOR**0.5 / (PRIOR**0.5).sum()
    # distinct ones only, so that corners, which low strengths repeat, count once: near, not at the tempered prior
    assert np.abs(mean - wanted).max() < 0.05
    assert np.abs(mean - wanted).max() < np.abs(mean - PRIOR).max()


def test_the_same_seed_draws_the_same_and_another_does_not():
    np.testing.assert_array_equal(draw(), draw())
    assert not np.array_equal(draw(), draw(seed=1))


def test_a_larger_swarm_keeps_the_mixtures_of_a_smaller_one():
    np.testing.assert_array_equal(draw(20), draw(50)[:20])


def test_more_mixtures_than_there_are_is_an_error():
    with pytest.raises(
        ConfigError, match=r"different mixtures came out of 51,200 draws, 300 were asked for; lower num_runs"
    ):
        draw(prior=np.array([0.5, 0.5]), min_share=0.1)


def test_candidates_keep_the_bound_of_the_runs():
    candidate_CK = candidates(PRIOR, 5000, max_upsampling=3, rng=np.random.default_rng(0))
    assert 0 < len(candidate_CK) < 5000
    assert (candidate_CK <= np.minimum(3 * PRIOR, 1)).all()


def test_the_linear_fit_and_what_it_predicts_are_the_given_numbers():
    given, wanted = DATA["inputs"], DATA["expected"]
    weight_SK, target_S = np.array(given["train_mixtures"]), np.array(given["train_losses"])
    swarm, candidate_CK = Swarm(weight_SK, target_S, "linear"), np.array(given["candidates"])
    predicted_C = predict(swarm, candidate_CK, num_rounds=1)
    exact = {"rtol": DATA["tolerance"]}
    np.testing.assert_allclose(linear_coefficients(weight_SK, target_S), wanted["coef"], **exact)
    np.testing.assert_allclose(predict(swarm, weight_SK, num_rounds=1), wanted["train_pred"], **exact)
    np.testing.assert_allclose(predicted_C, wanted["candidate_pred"], **exact)
    assert np.argsort(predicted_C, kind="stable").tolist() == wanted["order_asc"]
    best_K = average_best(candidate_CK, predicted_C, given["k"])
    np.testing.assert_allclose(best_K, wanted["optimal_mixture_mean_of_top_k"], **exact)


def test_equal_predictions_are_taken_in_the_order_of_the_draw():
    np.testing.assert_array_equal(average_best(np.eye(3), np.array([1.0, 0.5, 0.5]), 1), [0, 1, 0])


def test_linear_held_out_predictions_equal_normal_equations_without_the_run_s_fold():
    weight_SK = draw(12)
    target_S = np.random.default_rng(1).uniform(2, 3, 12)
    held_out_S, rounds = held_out_predictions(
        Swarm(weight_SK, target_S, "linear"), 4, num_rounds=99, rng=np.random.default_rng(2)
    )
    folds = np.array_split(np.random.default_rng(2).permutation(12), 4)
    for fold in folds:
        rest = [s for s in range(12) if s not in fold]
        gram, right = weight_SK[rest].T @ weight_SK[rest], weight_SK[rest].T @ target_S[rest]
        np.testing.assert_allclose(held_out_S[fold], weight_SK[fold] @ np.linalg.solve(gram, right), **FLOAT64)
    assert rounds == 1


def test_boosting_stops_at_the_round_that_predicts_held_out_runs_best():
    weight_SK, rng = draw(40), np.random.default_rng(1)
    target_S = rng.normal(size=40)  # nothing to learn, so that more rounds are worse
    swarm = Swarm(weight_SK, target_S, "gradient_boosting")
    held_out_S, rounds = held_out_predictions(swarm, 4, num_rounds=300, rng=np.random.default_rng(2))
    at_limit_S, limit = held_out_predictions(swarm, 4, num_rounds=rounds, rng=np.random.default_rng(2))
    assert rounds == limit < 300
    np.testing.assert_array_equal(held_out_S, at_limit_S)


def test_a_held_out_run_is_predicted_without_its_own_loss():
    weight_SK = draw(30)
    target_S = np.random.default_rng(1).uniform(2, 3, 30)
    changed_S = target_S.copy()
    changed_S[7] = 100.0
    for regressor in ("linear", "gradient_boosting"):
        held_out = [
            held_out_predictions(Swarm(weight_SK, y, regressor), 30, num_rounds=1, rng=np.random.default_rng(0))[0]
            for y in (target_S, changed_S)
        ]
        assert held_out[0][7] == held_out[1][7]
        assert (held_out[0] != held_out[1]).sum() > 15
