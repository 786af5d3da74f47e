"""UniMax against the given numbers and against a search that knows nothing of its order."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods.unimax import Unimax, UnimaxSettings
from tests.helpers import FLOAT64, vector
from tests.methods.domains import domains, mix

DATA = vector("sampling_distributions")


def naive(sizes, budget, max_epochs):
    """The level at which all that lies under it, domains capped, uses the budget; found by halving."""
    low, high = 0.0, budget
    for _ in range(200):
        level = (low + high) / 2
        used = sum(min(level, max_epochs * n) for n in sizes)
        low, high = (level, high) if used < budget else (low, level)
    return [min(high, max_epochs * n) for n in sizes]


@pytest.mark.parametrize("key", DATA["expected"]["unimax"])
def test_proportions_and_epochs_are_the_given_numbers(key):
    budget, max_epochs = (float(part.split("=")[1]) for part in key.split(","))
    sizes, wanted = DATA["inputs"]["sizes"], DATA["expected"]["unimax"][key]
    mixture = mix(Unimax, domains(sizes), max_epochs=max_epochs, budget=int(budget))
    filled = [epochs * size for epochs, size in zip(mixture.facts["epochs"].values(), sizes, strict=True)]
    np.testing.assert_allclose(filled, wanted["budget"], **FLOAT64)
    np.testing.assert_allclose(mixture.weight_SK[0], wanted["p"], **FLOAT64)
    np.testing.assert_allclose(list(mixture.facts["epochs"].values()), wanted["epochs"], **FLOAT64)


@pytest.mark.parametrize("seed", range(6))
def test_the_allocation_is_one_level_for_all_that_are_not_capped(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 1000, 6)
    budget, max_epochs = int(rng.uniform(0.1, 5) * sizes.sum()), float(rng.uniform(0.2, 6))
    mixture = mix(Unimax, domains(sizes.tolist()), max_epochs=max_epochs, budget=budget)
    filled = np.array(list(mixture.facts["epochs"].values())) * sizes
    np.testing.assert_allclose(filled, naive(sizes, budget, max_epochs), **FLOAT64)


def test_no_domain_is_repeated_more_than_asked_and_the_capped_are_said():
    mixture = mix(Unimax, domains([1000, 10, 100, 400]), max_epochs=2, budget=600)
    assert mixture.facts["capped"] == ["code"]
    assert max(mixture.facts["epochs"].values()) == 2
    assert "unused" not in mixture.facts


def test_without_a_budget_it_is_what_all_domains_have():
    given = domains([1000, 10, 100, 400])
    with_budget = mix(Unimax, given, budget=1510)
    np.testing.assert_array_equal(mix(Unimax, given).weight_SK, with_budget.weight_SK)
    assert mix(Unimax, given).facts == with_budget.facts


def test_a_budget_beyond_all_epochs_gives_natural_shares_and_says_what_is_unused():
    mixture = mix(Unimax, domains([30, 10]), max_epochs=2, budget=100)
    np.testing.assert_allclose(mixture.weight_SK, [[0.75, 0.25]], **FLOAT64)
    assert mixture.facts["unused"] == 20
    assert mixture.facts["capped"] == ["wiki", "code"]


def test_equal_domains_get_the_same():
    np.testing.assert_allclose(mix(Unimax, domains([50, 50, 50]), budget=70).weight_SK, np.full((1, 3), 1 / 3), **FLOAT64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_epochs": 0}, "max_epochs is 0, wanted a finite number above 0"),
     ({"max_epochs": float("nan")}, "max_epochs is nan"),
     ({"max_epochs": float("inf")}, "max_epochs is inf"),
     ({"budget": 0}, "budget is 0, wanted tokens, more than 0"),
     ({"budget": -5}, "budget is -5")],
)  # fmt: skip
def test_settings_out_of_range_are_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        UnimaxSettings(**settings)
