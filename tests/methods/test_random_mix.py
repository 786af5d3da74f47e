"""Random mixtures: a Dirichlet draw of the stated mean and spread, by name."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods.random_mix import RandomMix, RandomMixSettings
from tests.helpers import FLOAT64
from tests.methods.domains import domains

GIVEN = domains([600, 300, 100])
NUM_DRAWS = 4000


def draws(given=GIVEN, seed=0, num=NUM_DRAWS, **settings):
    method, rng = RandomMix(RandomMixSettings(**settings)), np.random.default_rng(seed)
    return np.array([method.mix(given, rng=rng).weight_SK[0] for _ in range(num)])


@pytest.mark.parametrize(("around", "mean"), [("natural", [0.6, 0.3, 0.1]), ("uniform", [1 / 3, 1 / 3, 1 / 3])])
@pytest.mark.parametrize("concentration", [0.5, 4.0])
def test_draws_have_the_mean_and_the_spread_of_their_dirichlet(around, mean, concentration):
    weight_CK, mean = draws(around=around, concentration=concentration), np.array(mean)
    variance = mean * (1 - mean) / (3 * concentration + 1)
    assert (np.abs(weight_CK.mean(axis=0) - mean) < 5 * np.sqrt(variance / NUM_DRAWS)).all()
    # the variance of a variance: a bounded variable's fourth moment is under its variance
    assert (np.abs(weight_CK.var(axis=0) - variance) < 5 * np.sqrt(variance / NUM_DRAWS)).all()


def test_around_uniform_a_concentration_of_1_makes_every_mixture_equally_likely():
    # of three domains a share below x then has probability 1 - (1 - x) ** 2
    weight_CK = draws(around="uniform")
    for x in (0.1, 0.3, 0.7):
        wanted = 1 - (1 - x) ** 2
        error = np.abs((weight_CK < x).mean(axis=0) - wanted)
        assert (error < 5 * np.sqrt(wanted * (1 - wanted) / NUM_DRAWS)).all()


def test_a_draw_belongs_to_the_names_not_to_their_order():
    turned = domains([100, 600, 300], names=("math", "wiki", "code"))
    np.testing.assert_allclose(draws(turned, num=3)[:, [1, 2, 0]], draws(num=3), **FLOAT64)


def test_another_seed_is_another_mixture():
    assert (draws(num=1) != draws(seed=1, num=1)).all()


def test_the_distance_is_how_much_weight_lies_elsewhere_than_in_the_mean():
    mixture = RandomMix(RandomMixSettings()).mix(GIVEN, rng=np.random.default_rng(0))
    moved = sum(max(0.0, weight - mean) for weight, mean in zip(mixture.weight_SK[0], (0.6, 0.3, 0.1), strict=True))
    np.testing.assert_allclose(mixture.facts["distance"], moved, **FLOAT64)


@pytest.mark.parametrize("concentration", [1e-6, 1e9])
def test_no_concentration_gives_nan(concentration):
    weight_CK = draws(num=50, concentration=concentration)
    np.testing.assert_allclose(weight_CK.sum(axis=1), 1, **FLOAT64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"around": "unifrom"}, "around is 'unifrom'; did you mean 'uniform'"),
     ({"concentration": 0}, "concentration is 0, wanted a finite number above 0"),
     ({"concentration": float("nan")}, "concentration is nan"),
     ({"concentration": float("inf")}, "concentration is inf")],
)  # fmt: skip
def test_settings_out_of_range_are_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        RandomMixSettings(**settings)
