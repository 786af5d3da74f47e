"""Static weights: what the user gave, whatever its order and scale, and nothing that was not said."""

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods.static import Static, StaticSettings
from tests.helpers import FLOAT64
from tests.methods.domains import domains, mix

THREE = domains([10, 20, 70])  # wiki, code, math


def test_weights_go_by_name_not_by_place():
    mixture = mix(Static, THREE, weights={"math": 0.5, "wiki": 0.3, "code": 0.2})
    assert mixture.names == ("wiki", "code", "math")
    np.testing.assert_allclose(mixture.weight_SK, [[0.3, 0.2, 0.5]], **FLOAT64)
    assert mixture.facts == {}


def test_weights_that_do_not_sum_to_1_are_scaled_and_their_sum_is_said():
    mixture = mix(Static, THREE, weights={"wiki": 54.1, "code": 28.7, "math": 17.3})
    np.testing.assert_allclose(mixture.weight_SK[0], np.array([54.1, 28.7, 17.3]) / 100.1, **FLOAT64)
    assert mixture.facts == {"given_sum": pytest.approx(100.1)}


@pytest.mark.parametrize(("third", "is_said"), [(1 / 3, False), (0.333333, False), (0.333, True)])
def test_a_sum_off_by_rounding_to_six_digits_is_not_worth_a_word(third, is_said):
    assert ("given_sum" in mix(Static, THREE, weights=dict.fromkeys(THREE.names, third)).facts) is is_said


def test_a_domain_not_named_gets_0_and_is_said():
    mixture = mix(Static, THREE, weights={"code": 1.0})
    np.testing.assert_array_equal(mixture.weight_SK, [[0, 1, 0]])
    assert mixture.facts == {"not_named": ["wiki", "math"]}


def test_a_domain_given_0_is_not_said_again():
    assert mix(Static, THREE, weights={"code": 1, "wiki": 0, "math": 0}).facts == {}


def test_uniform_gives_each_domain_the_same_whatever_its_size():
    np.testing.assert_allclose(mix(Static, THREE).weight_SK, np.full((1, 3), 1 / 3), **FLOAT64)


def test_a_name_that_is_no_domain_is_an_error_with_the_nearest():
    with pytest.raises(
        ConfigError, match="static: weights names 'wikki', which is no domain of the data; did you mean 'wiki'"
    ):
        mix(Static, THREE, weights={"wikki": 1.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"wiki": -0.1, "code": 1.1}, "weight of 'wiki' is -0.1, wanted a number of 0 or more"),
     ({"wiki": float("nan")}, "weight of 'wiki' is nan"),
     ({"wiki": float("inf")}, "weight of 'wiki' is inf"),
     ({"wiki": 0.0}, "no domain has a weight above 0"),
     ({}, "no domain has a weight above 0"),
     ("unifrom", "weights is 'unifrom', wanted 'uniform' or a weight by domain name")],
)  # fmt: skip
def test_weights_that_are_no_weights_are_an_error_before_any_data_is_read(weights, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(StaticSettings, {"weights": weights}, where="mixer 'static'")


def test_settings_come_back_from_their_json():
    settings = StaticSettings(weights={"code": 2.0})
    assert from_mapping(StaticSettings, to_mapping(settings), where="here") == settings
