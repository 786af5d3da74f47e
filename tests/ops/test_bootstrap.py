"""The paired bootstrap: as written with loops, seeded, and as often right as it says."""

import numpy as np
import pytest

from dataflex_tools.ops import bootstrap
from dataflex_tools.ops.bootstrap import paired_bootstrap
from tests.helpers import FLOAT64


def interval(first, second, *, seed=0, **settings):
    return paired_bootstrap(np.asarray(first), np.asarray(second), rng=np.random.default_rng(seed), **settings)


def test_interval_is_the_loop_over_resamples():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=7), rng.normal(size=7)
    draws = np.random.default_rng(0).integers(7, size=(500, 7))
    means = sorted(sum(first[i] - second[i] for i in draw) / 7 for draw in draws)
    found = interval(first, second, num_resamples=500, level=0.9)
    np.testing.assert_allclose(found.mean, sum(first - second) / 7, **FLOAT64)
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.05, 0.95]), **FLOAT64)
    assert (found.level, found.num_pairs) == (0.9, 7)


def test_same_seed_same_interval_whatever_the_blocks(monkeypatch):
    first, second = np.random.default_rng(1).normal(size=(2, 37))
    whole = interval(first, second, num_resamples=400)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    assert interval(first, second, num_resamples=400) == whole
    assert interval(first, second, num_resamples=400, seed=1) != whole


def test_what_pairs_share_does_not_widen_the_interval():
    rng = np.random.default_rng(2)
    gain, shared = rng.normal(0.1, 0.01, size=50), rng.normal(scale=10, size=50)
    found, alone = interval(gain + shared, shared), interval(gain, np.zeros(50))
    np.testing.assert_allclose([found.low, found.high], [alone.low, alone.high], rtol=1e-6)
    assert found.excludes_zero
    assert not interval(shared, np.zeros(50)).excludes_zero


def test_swapping_the_two_mirrors_the_interval():
    first, second = np.random.default_rng(3).normal(size=(2, 20))
    there, back = interval(first, second), interval(second, first)
    np.testing.assert_allclose([-back.high, -back.low], [there.low, there.high], **FLOAT64)


def test_coverage_is_near_the_level_for_many_pairs():
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        found = paired_bootstrap(rng.normal(1, 1, size=60), np.zeros(60), rng=rng, num_resamples=400)
        hits += found.low <= 1 <= found.high
    # 300 trials at 0.95: standard deviation 0.013; the percentile interval of 60 pairs is about 0.01 too narrow
    assert hits / 300 == pytest.approx(0.94, abs=0.04)


def test_equal_results_have_an_interval_of_zero():
    found = interval([1.0, 2.0], [1.0, 2.0])
    assert (found.mean, found.low, found.high, found.excludes_zero) == (0, 0, 0, False)


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        ([1.0], [2.0], {}, "2 or more"),
        ([1.0, 2.0], [2.0], {}, "same number"),
        ([1.0, np.nan], [2.0, 1.0], {}, "not finite"),
        ([1.0, 2.0], [2.0, 1.0], {"level": 1.0}, "level 1.0"),
        ([1.0, 2.0], [2.0, 1.0], {"num_resamples": 0}, "0 resamples"),
    ],
)
def test_unusable_input_is_refused(first, second, settings, message):
    with pytest.raises(ValueError, match=message):
        interval(first, second, **settings)
