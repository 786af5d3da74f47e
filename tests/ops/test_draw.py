"""The k best scores are a draw of k rows without replacement, for every k."""

import itertools

import numpy as np
import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.plan import stable_order
from dataflex_tools.ops.draw import draw_scores

WEIGHT = np.array([0.5, 0.1, 0.0, 0.25, 0.15])
NUM_DRAWS = 20_000


def ordered_draw_probability(rows):
    """Probability that exactly these rows come out in this order, one draw after the other."""
    probability, left = 1.0, WEIGHT.sum()
    for row in rows:
        probability *= WEIGHT[row] / left
        left -= WEIGHT[row]
    return probability


@pytest.fixture(scope="module")
def orders():
    rng = np.random.default_rng(3)
    return np.stack([stable_order(draw_scores(WEIGHT, rng=rng)) for _ in range(NUM_DRAWS)])


def is_within_noise(count, probability):
    # five standard deviations of a binomial count; seeded, so it holds for good
    return abs(count - NUM_DRAWS * probability) <= 5 * (NUM_DRAWS * probability * (1 - probability)) ** 0.5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_each_prefix_has_the_probability_of_successive_draws(orders, k):
    for rows in itertools.permutations([0, 1, 3, 4], k):
        count = (orders[:, :k] == rows).all(axis=1).sum()
        assert is_within_noise(count, ordered_draw_probability(rows)), rows


def test_inclusion_at_a_budget_is_that_of_sequential_sampling(orders):
    for row in (0, 1, 3, 4):
        wanted = sum(ordered_draw_probability(r) for r in itertools.permutations([0, 1, 3, 4], 2) if row in r)
        assert is_within_noise((orders[:, :2] == row).any(axis=1).sum(), wanted)


def test_rows_of_probability_zero_are_never_drawn_and_all_others_can_be():
    score = draw_scores(np.array([0.0, 1e-300, 1.0, 0.0, 5e-324]), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(np.isfinite(score), [False, True, True, False, True])


def test_a_common_factor_of_the_weights_does_not_matter():
    order = [stable_order(draw_scores(WEIGHT * f, rng=np.random.default_rng(1))) for f in (1.0, 64.0)]
    np.testing.assert_array_equal(*order)


def test_the_noise_of_a_row_does_not_depend_on_the_other_weights():
    other = WEIGHT.copy()
    other[0] = 0.0
    first, second = (draw_scores(w, rng=np.random.default_rng(1)) for w in (WEIGHT, other))
    np.testing.assert_array_equal(first[1:], second[1:])


def test_all_weights_zero_is_an_error():
    with pytest.raises(DataError, match="none of 3 rows can be drawn"):
        draw_scores(np.zeros(3), rng=np.random.default_rng(0))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_weights_that_are_no_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match="negative or not finite"):
        draw_scores(np.array([1.0, bad]), rng=np.random.default_rng(0))
