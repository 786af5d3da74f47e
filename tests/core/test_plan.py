"""A budget buys what it says, best first, and refuses what does not exist."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import Budget, Selection, select_rows

SCORE = np.array([0.1, 0.9, -np.inf, 0.9, 0.5])
TOKENS = np.array([10, 20, 30, 40, 50])


@pytest.mark.parametrize(
    ("budget", "rows"),
    [
        ({"num_samples": 3}, [1, 3, 4]),
        ({"num_samples": 4}, [1, 3, 4, 0]),
        ({"fraction": 0.4}, [1, 3]),
        ({"fraction": 0.01}, [1]),
        ({"num_tokens": 60}, [1, 3]),
        ({"num_tokens": 109}, [1, 3]),
        ({"num_tokens": 110}, [1, 3, 4]),
        ({"fraction": 0.4, "unit": "tokens"}, [1, 3]),
    ],
)
def test_the_best_rows_within_the_budget_are_taken(budget, rows):
    assert select_rows(SCORE, TOKENS, Budget(**budget)).tolist() == rows


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"num_samples": 5}, "asks for 5 samples, 4 of 5 rows"),
        ({"fraction": 1.0}, "asks for 5 samples"),
        ({"num_tokens": 121}, "asks for 121 tokens, the pool has 120"),
        ({"num_tokens": 19}, "less than the 20 of the best sample"),
    ],
)
def test_more_than_exists_is_an_error(budget, message):
    with pytest.raises(ConfigError, match=message):
        select_rows(SCORE, TOKENS, Budget(**budget))


@pytest.mark.parametrize(
    "budget",
    [
        {}, {"fraction": 0.0}, {"fraction": 1.01}, {"fraction": -0.1}, {"num_samples": 0}, {"num_tokens": -1},
        {"fraction": 0.1, "num_samples": 2}, {"num_samples": 2, "unit": "tokens"}, {"fraction": 0.1, "unit": "rows"},
    ],
)  # fmt: skip
def test_a_budget_that_means_nothing_is_refused(budget):
    with pytest.raises(ConfigError, match="budget"):
        Budget(**budget)


def test_a_nan_score_is_refused():
    with pytest.raises(ConfigError, match="1 scores are NaN"):
        Selection(np.array([1.0, np.nan]))


@pytest.mark.parametrize(("fraction", "num", "count"), [(0.29, 100, 29), (0.05, 100, 5), (0.05, 99, 4), (1 / 3, 3, 1)])
def test_a_fraction_takes_the_whole_number_below(fraction, num, count):
    assert len(select_rows(np.zeros(num), np.ones(num, int), Budget(fraction=fraction))) == count


COPIES = np.array([0, 1, 0, 1, 4, 5])  # rows 0 and 2 are one content, 1 and 3 another
ALIKE = np.array([0.1, 0.9, 0.2, 0.9, 0.5, -np.inf])


@pytest.mark.parametrize(
    ("budget", "rows"),
    [
        ({"num_samples": 3}, [1, 4, 2]),  # the best copy stands for its content, ties to the lowest row
        ({"fraction": 0.5}, [1, 4]),  # of four contents
        ({"fraction": 0.75}, [1, 4, 2]),
        ({"num_tokens": 30}, [1, 4, 2]),
        ({"fraction": 0.5, "unit": "tokens"}, [1, 4]),  # of 40 tokens, not of 60
    ],
)
def test_each_content_is_taken_and_counted_once(budget, rows):
    found = select_rows(ALIKE, np.full(6, 10), Budget(**budget), content_N=COPIES)
    assert found.tolist() == rows


def test_more_than_the_different_samples_is_refused_with_their_number():
    with pytest.raises(ConfigError, match="asks for 4 samples, 3 of 4 different samples can be selected"):
        select_rows(ALIKE, np.full(6, 10), Budget(num_samples=4), content_N=COPIES)


def test_without_copies_a_pick_is_what_it_was():
    score_N = np.random.default_rng(0).normal(size=50)
    budget, rows = Budget(fraction=0.3), np.arange(50)
    plain = select_rows(score_N, np.full(50, 7), budget)
    assert select_rows(score_N, np.full(50, 7), budget, content_N=rows).tolist() == plain.tolist()
