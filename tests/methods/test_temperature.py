"""Temperature sampling against the given numbers, a loop, and its two ends."""

import json

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods.temperature import Temperature, TemperatureSettings
from tests.helpers import FLOAT64, vector
from tests.methods.domains import domains, mix

DATA = vector("sampling_distributions")


@pytest.mark.parametrize("key", DATA["expected"]["temperature"])
def test_proportions_are_the_given_numbers(key):
    mixture = mix(Temperature, domains(DATA["inputs"]["sizes"]), tau=float(key.removeprefix("tau=")))
    np.testing.assert_allclose(mixture.weight_SK[0], DATA["expected"]["temperature"][key], **FLOAT64)


@pytest.mark.parametrize("seed", range(4))
def test_proportions_equal_the_loop_of_the_formula(seed):
    rng = np.random.default_rng(seed)
    sizes, tau = rng.integers(1, 10**6, 6), rng.uniform(0.3, 8)
    raised = [int(n) ** (1 / tau) for n in sizes]
    wanted = [value / sum(raised) for value in raised]
    np.testing.assert_allclose(mix(Temperature, domains(sizes), tau=tau).weight_SK[0], wanted, **FLOAT64)


@pytest.mark.parametrize("tau", ["inf", float("inf"), 1e12])
def test_an_infinite_temperature_is_uniform(tau):
    np.testing.assert_allclose(mix(Temperature, domains([1, 10**9]), tau=tau).weight_SK, [[0.5, 0.5]], **FLOAT64)


def test_a_temperature_near_0_gives_the_largest_domain_all():
    np.testing.assert_array_equal(mix(Temperature, domains([10**12, 10**15]), tau=1e-3).weight_SK, [[0, 1]])


def test_a_higher_temperature_is_flatter():
    given = domains([5, 50, 500])
    entropies = [mix(Temperature, given, tau=tau).entropy for tau in (0.5, 1, 2, 5, "inf")]
    assert entropies == sorted(entropies)
    assert len(set(entropies)) == 5


def test_an_infinite_temperature_is_stored_as_json_and_comes_back():
    settings = from_mapping(TemperatureSettings, {"tau": float("inf")}, where="here")
    text = json.dumps(to_mapping(settings), allow_nan=False)
    assert from_mapping(TemperatureSettings, json.loads(text), where="here") == settings


@pytest.mark.parametrize("tau", [0, -1, float("nan"), float("-inf")])
def test_a_temperature_that_is_none_is_an_error(tau):
    with pytest.raises(ConfigError, match=f"tau is {tau}, wanted a number above 0, or inf for uniform"):
        TemperatureSettings(tau=tau)
