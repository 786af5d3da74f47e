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
