"""The loss selector against the given probabilities and against loops written from its formula."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.plan import stable_order
from dataflex_tools.methods.loss import Loss, LossSettings
from tests.helpers import FLOAT64, vector
from tests.methods.builders import losses


def select(loss, has_labels=None, seed=0, **settings):
    signals = losses(has_labels, loss=[loss])
    return Loss(LossSettings(**settings)).select(signals, rng=np.random.default_rng(seed))


def naive_probability(loss, focus, factor, temperature, low, high):
    finite = sorted(x for x in loss if np.isfinite(x))

    def quantile(q):
        place = q * (len(finite) - 1)
        below = int(place)
        above = min(below + 1, len(finite) - 1)
        return finite[below] + (place - below) * (finite[above] - finite[below])

    q1, q2, weights = quantile(low), quantile(high), []
    for x in loss:
        bucket = "low" if x <= q1 else "medium" if x <= q2 else "high"
        weights.append(((factor if bucket == focus else 1) ** (1 / temperature)) if np.isfinite(x) else 0.0)
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("focus", ["low", "medium", "high"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_probabilities_are_the_given_ones_but_for_the_missing_sample(focus, temperature):
    data = vector("loss_selector")
    loss = [float(x) for x in data["inputs"]["losses"]]
    found = select(loss, focus=focus, temperature=temperature).detail["probability"]
    wanted = np.array(data["expected"]["probs"][f"{focus}_T{temperature}"])
    wanted[~np.isfinite(loss)] = 0  # DataFlex gives it (1e-12) ** (1/T)
    # the 1e-12 that DataFlex adds to each weight moves these by less
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_equal_the_loops_of_the_formula(seed):
    rng = np.random.default_rng(seed)
    loss = rng.gamma(2.0, size=37)
    loss[[3, 8]] = np.nan, np.inf
    focus = ["low", "medium", "high", "high"][seed]
    plan = select(loss, focus=focus, focus_weight=3.0, temperature=1.5, quantiles=(0.2, 0.7))
    np.testing.assert_allclose(plan.detail["probability"], naive_probability(loss, focus, 3.0, 1.5, 0.2, 0.7), **FLOAT64)


def test_the_focus_is_drawn_as_often_as_its_probability_says():
    loss = np.arange(9.0)
    first = [stable_order(select(loss, seed=seed).score_N)[0] for seed in range(2000)]
    # 3 of 9 samples of weight 5 against 6 of weight 1; five standard deviations of 2000 draws
    assert abs(np.mean(np.array(first) >= 6) - 15 / 21) < 5 * (15 / 21 * 6 / 21 / 2000) ** 0.5


def test_samples_without_labels_or_loss_are_never_drawn_and_do_not_move_the_quantiles():
    loss = np.array([1.0, 2.0, 3.0, 90.0, np.nan, np.inf])
    plan = select(loss, has_labels=[True, True, True, False, True, True])
    np.testing.assert_array_equal(plan.score_N[3:], -np.inf)
    np.testing.assert_allclose(plan.detail["probability"], [1 / 7, 1 / 7, 5 / 7, 0, 0, 0])


@pytest.mark.parametrize("focus", ["medium", "high"])
def test_equal_losses_leave_the_focus_empty_which_is_an_error_or_uniform_by_name(focus):
    with pytest.raises(ConfigError, match=f"no sample is in bucket '{focus}' .low: up to 2 nats.*when_empty=dataflex"):
        select(np.full(5, 2.0), focus=focus)
    plan = select(np.full(5, 2.0), focus=focus, when_empty="dataflex")
    np.testing.assert_array_equal(plan.detail["probability"], np.full(5, 0.2))


def test_equal_losses_are_all_low():
    np.testing.assert_array_equal(select(np.full(4, 2.0), focus="low").detail["probability"], np.full(4, 0.25))


def test_no_loss_at_all_is_an_error():
    with pytest.raises(DataError, match="none of 3 pool samples has a finite loss"):
        select(np.full(3, np.nan))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focus": "hard"}, "focus is 'hard', wanted one of low, medium, high"),
        ({"quantiles": (0.7, 0.3)}, "quantiles are 0.7 and 0.3"),
        ({"focus_weight": 0}, "focus_weight is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"when_empty": "ignore"}, "when_empty is 'ignore'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LossSettings(**settings)
