"""The delta-loss selector against the given windows and probabilities and against loops written from its formula."""

import math

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.methods.delta_loss import DeltaLoss, DeltaLossSettings, _window
from tests.helpers import FLOAT64, vector
from tests.methods.builders import losses

DATA = vector("delta_loss_selector")


def select(first, last, has_labels=None, **settings):
    signals = losses(has_labels, loss=[first, last])
    return DeltaLoss(DeltaLossSettings(**settings)).select(signals, rng=np.random.default_rng(0))


def naive_probability(first, last, update, updates, window, outside):
    drops = [(a - b, i) for i, (a, b) in enumerate(zip(first, last, strict=True)) if math.isfinite(a - b)]
    drops.sort(key=lambda pair: (-pair[0], pair[1]))
    n = len(drops)
    s = 1 / (1 + math.exp(-10 * (update / updates - 0.5)))
    start, end = int(s * (n - window * n)), int(s * (n - window * n) + window * n)
    for place, (drop, _) in enumerate(drops):
        if drop < 0:
            end = min(end, place)
            break
    weights = [0.0] * len(first)
    for place, (_, row) in enumerate(drops):
        weights[row] = 1.0 if start <= place < end else outside
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("case", DATA["expected"]["windows"])
def test_windows_are_those_of_the_public_code(case):
    settings = DeltaLossSettings(update=case["cur"], updates=case["times"], window=case["window_size"])
    assert _window(case["n"], settings) == (case["start"], case["end"])


@pytest.mark.parametrize(("update", "wanted"), [(1, DATA["expected"]), (2, DATA["expected"]["last_update_case"])])
def test_probabilities_are_the_given_ones(update, wanted):
    given = DATA["inputs"]
    plan = select(
        given["initial_losses"], given["current_losses"], window=given["window_size"], update=update, updates=given["times"]
    )
    np.testing.assert_allclose(plan.detail["probability"], wanted["probs"], **FLOAT64)
    np.testing.assert_allclose(plan.detail["delta_loss"], DATA["expected"]["delta"], **FLOAT64)


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_equal_the_loops_of_the_formula(seed):
    rng = np.random.default_rng(seed)
    first = rng.uniform(1, 3, size=41).round(1)  # rounded, so that drops tie
    last = (first - rng.uniform(-0.2, 0.8, size=41)).round(1)
    first[5], last[9] = np.nan, np.inf
    settings = {"update": seed, "updates": 5, "window": 0.25, "outside": 0.05}
    wanted = naive_probability(first, last, **settings)
    found = select(first, last, when_empty="dataflex", **settings)
    np.testing.assert_allclose(found.detail["probability"], wanted, **FLOAT64)


def test_the_first_and_the_last_of_many_checkpoints_are_compared():
    signals = losses(loss=[np.arange(5.0) + 5, np.full(5, np.nan), np.full(5, 3.0)])
    plan = DeltaLoss(DeltaLossSettings()).select(signals, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(plan.detail["delta_loss"], np.arange(5.0) + 2)


def test_the_window_holds_its_share_of_the_probability():
    plan = select(np.arange(1000.0), np.zeros(1000))
    probability = plan.detail["probability"]
    np.testing.assert_allclose(probability[probability == probability.max()].sum(), 0.2 / (0.2 + 0.025 * 0.8), rtol=1e-12)


def test_one_update_does_not_divide_by_zero():
    assert _window(10, DeltaLossSettings(update=0, updates=1)) == (0, 2)
    assert _window(10, DeltaLossSettings(update=1, updates=1)) == (7, 9)


def test_a_window_of_risen_losses_is_an_error_or_uniform_by_name():
    first, last = np.full(10, 2.0), np.linspace(1.9, 4.0, 10)
    with pytest.raises(ConfigError, match="places 4 to 6 of 10 samples.*only the first 1 have no higher loss than before"):
        select(first, last)
    plan = select(first, last, when_empty="dataflex")
    np.testing.assert_allclose(plan.detail["probability"], np.full(10, 0.1))


def test_equal_drops_are_sorted_by_row():
    plan = select(np.full(10, 2.0), np.full(10, 1.0), update=0)
    assert np.flatnonzero(plan.detail["probability"] == plan.detail["probability"].max()).tolist() == [0, 1]


def test_samples_without_labels_or_loss_are_never_drawn():
    first = np.array([3.0, np.inf, 3.0, 2.0, 2.5, np.nan])
    plan = select(first, np.ones(6), has_labels=[True, True, False, True, True, True], window=0.5)
    np.testing.assert_array_equal(np.isfinite(plan.score_N), [True, False, False, True, True, False])


def test_weight_zero_outside_leaves_only_the_window():
    plan = select(np.arange(10.0), np.zeros(10), outside=0)
    assert np.isfinite(plan.score_N).sum() == 2


def test_one_checkpoint_is_an_error_that_says_how_to_get_two():
    signals = losses(loss=[np.ones(3)])
    with pytest.raises(ConfigError, match="compares 2 warm-up checkpoints, found 1; train at least 2 epochs"):
        DeltaLoss(DeltaLossSettings()).select(signals, rng=np.random.default_rng(0))


def test_no_loss_at_all_is_an_error():
    with pytest.raises(DataError, match="none of 3 pool samples"):
        select(np.full(3, np.nan), np.ones(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "updates is 0, wanted at least 1"),
        ({"update": 3}, "update is 3, wanted 0 to 2"),
        ({"window": 0}, "window is 0"),
        ({"steepness": -1}, "steepness is -1"),
        ({"outside": 1}, "outside is 1"),
        ({"when_empty": "ignore"}, "when_empty is 'ignore'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DeltaLossSettings(**settings)
