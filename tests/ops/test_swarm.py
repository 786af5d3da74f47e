"""The draw of runs and of candidates against loops of their rules, and the search against plain ones."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.proportions import fill
from dataflex_tools.ops.swarm import (
    average_best,
    bounded,
    candidates,
    divergence,
    draw_swarm,
    refine,
    rounded,
    upper_bounds,
    within_bound,
)
from tests.helpers import FLOAT64

PRIOR = np.array([0.6, 0.25, 0.1, 0.05])
DRAW = {"exponent": 0.5, "strengths": (0.1, 5.0), "max_upsampling": 15.0, "min_share": 2e-4}


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
    np.testing.assert_array_equal(within_bound(rows, np.array([0.5, 1.0])), rows[:1])


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


def naive_candidates(prior, num, rng):
    """Each of 3 exponents and 15 strengths in turn, as evenly as `num` allows, the first ones more."""
    groups = []
    for exponent in (1, 0.5, 0.25):
        raised = [share**exponent for share in prior]
        for i in range(15):
            strength = 200 ** (i / 14)
            groups.append([strength * share / sum(raised) for share in raised])
    rows = []
    for number, alpha in enumerate(groups):
        for _ in range(num // 45 + (number < num % 45)):
            rows.append(rng.dirichlet(alpha))
    return rows


def test_candidates_are_those_of_the_loop():
    found_CK = candidates(PRIOR, 100, rng=np.random.default_rng(3))
    np.testing.assert_allclose(found_CK, naive_candidates(PRIOR, 100, np.random.default_rng(3)), **FLOAT64)


def entropy(weight_CK):
    positive_CK = np.where(weight_CK > 0, weight_CK, 1)
    return -(positive_CK * np.log(positive_CK)).sum(axis=1)


def test_candidates_lie_around_natural_not_only_in_corners():
    prior_K = np.random.default_rng(0).dirichlet(np.ones(17))
    natural = entropy(prior_K[None])[0]
    found_C = entropy(candidates(prior_K, 4500, rng=np.random.default_rng(0)))
    corners_C = entropy(np.random.default_rng(0).dirichlet(prior_K, 4500))
    assert (found_C > natural).mean() > 0.2
    assert (corners_C > natural).mean() < 0.001


def test_a_bound_is_what_some_run_had_and_never_below_natural():
    weight_SK = np.array([[0.9, 0.1, 0.0, 0.0], [0.2, 0.2, 0.6, 0.0]])
    np.testing.assert_allclose(upper_bounds(PRIOR, weight_SK, max_upsampling=15), [0.9, 0.25, 0.6, 0.05])
    np.testing.assert_allclose(upper_bounds(PRIOR, weight_SK, max_upsampling=3), [0.9, 0.25, 0.3, 0.05])


def test_what_a_bound_cuts_off_is_spread_as_for_one_row():
    rows = np.concatenate([np.random.default_rng(0).dirichlet(PRIOR, 300), np.eye(4)])
    bound_K = np.array([0.7, 0.4, 0.3, 0.05])
    wanted = [row if (row <= bound_K).all() else fill(row, 1.0, limit_K=bound_K) for row in rows]
    wanted = np.array([row for row in wanted if abs(sum(row) - 1) < 1e-9])
    found_CK = bounded(rows, bound_K)
    assert len(wanted) == 300  # a corner has nothing else to give to
    np.testing.assert_allclose(found_CK, wanted, **FLOAT64)
    assert (found_CK <= bound_K).all()


def test_a_row_within_its_bounds_stays_as_it_is():
    np.testing.assert_array_equal(bounded(PRIOR[None], PRIOR), PRIOR[None])


def test_equal_values_are_taken_in_the_order_of_the_draw():
    np.testing.assert_array_equal(average_best(np.eye(3), np.array([1.0, 0.5, 0.5]), 1), [0, 1, 0])


def test_divergence_equals_the_sum_over_domains_with_a_share():
    rows = np.array([[0.5, 0.5, 0.0, 0.0], PRIOR, [0.0, 0.0, 0.0, 1.0]])
    wanted = [0.5 * np.log(0.5 / 0.6) + 0.5 * np.log(0.5 / 0.25), 0.0, np.log(20)]
    np.testing.assert_allclose(divergence(rows, PRIOR), wanted, **FLOAT64)


OPTIMUM = np.array([0.3, 0.05, 0.25, 0.4])


def valley(weight_CK):
    """Curved and tilted, least at the optimum."""
    off_CK = weight_CK - OPTIMUM
    return (off_CK**2 * [1, 4, 2, 1]).sum(axis=1) + 0.5 * off_CK[:, 0] * off_CK[:, 2]


def naive_refined(objective, start, bound):
    """The best exchange of a share between two domains, again and again; half the share when there is none."""
    weight, value, step = list(start), objective(np.array([start]))[0], 0.128
    while step > 0.0009:
        best = None
        for give in range(len(weight)):
            for take in range(len(weight)):
                if give == take:
                    continue
                moved, amount = list(weight), min(step, weight[give], max(bound[take] - weight[take], 0))
                moved[give], moved[take] = moved[give] - amount, moved[take] + amount
                other = objective(np.array([moved]))[0]
                if best is None or other < best[0]:
                    best = (other, moved)
        if best[0] < value - 1e-12 * max(1, abs(value)):
            value, weight = best
        else:
            step /= 2
    return weight


@pytest.mark.parametrize("bound", [[1, 1, 1, 1], [1, 0.26, 0.2, 0.31]])
def test_refinement_is_that_of_the_loop_and_keeps_the_bounds(bound):
    found_K = refine(valley, PRIOR, np.array(bound, float))
    np.testing.assert_allclose(found_K, naive_refined(valley, PRIOR, bound), **FLOAT64)
    assert found_K.sum() == pytest.approx(1)
    assert (found_K >= 0).all()
    assert (found_K <= np.array(bound) + 1e-15).all()


def test_refinement_finds_the_optimum_to_its_last_step():
    found_K = refine(valley, PRIOR, np.ones(4))
    np.testing.assert_allclose(found_K, OPTIMUM, atol=0.002)


def test_refinement_of_a_plane_ends_in_a_corner_and_of_a_level_one_where_it_began():
    corner_K = refine(lambda weight_CK: weight_CK @ [3.0, 2.0, 1.0, 4.0], PRIOR, np.ones(4))
    np.testing.assert_allclose(corner_K, [0, 0, 1, 0], atol=1e-12)
    level_K = refine(lambda weight_CK: np.ones(len(weight_CK)), PRIOR, np.ones(4))
    np.testing.assert_array_equal(level_K, PRIOR)
