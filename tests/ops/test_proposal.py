"""The search for a mixture: what it finds of a known law, what it may not exceed, what it says of itself."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.proposal import Known, SearchSettings, propose
from dataflex_tools.ops.surrogates import REGRESSORS, Swarm, fit_surrogate, held_out_predictions
from dataflex_tools.ops.swarm import divergence
from tests.helpers import FLOAT64

# S runs

NAMES = ("chat", "code", "math", "wiki")
PRIOR = np.array([0.1, 0.2, 0.1, 0.6])
TOKENS = np.array([100, 200, 100, 600])
OPTIMUM = np.array([0.25, 0.15, 0.4, 0.2])
SMALL = {"num_candidates": 900, "num_best": 16, "num_rounds": 60, "num_folds": 4}
KNOWN = Known(NAMES, PRIOR, TOKENS)

every_regressor = pytest.mark.parametrize("regressor", REGRESSORS)


def bowl(weight_SK):
    """Least at the optimum: 2 there."""
    return 2 + ((np.sqrt(weight_SK) - np.sqrt(OPTIMUM)) ** 2).sum(axis=1)


def swarm(num=60, response=bowl, noise=0.01, seed=0, regressor="gaussian_process"):
    rng = np.random.default_rng(seed)
    weight_SK = rng.dirichlet(np.ones(4), num)
    return Swarm(weight_SK, response(weight_SK) + noise * rng.normal(size=num), regressor)


def proposed(runs, known=KNOWN, higher_is_better=False, **settings):
    search = SearchSettings(**{**SMALL, "regressor": runs.regressor, **settings})
    rng = np.random.default_rng(1)
    return propose(runs, known, search, rng=rng, higher_is_better=higher_is_better)


def test_the_known_optimum_is_found():
    found = proposed(swarm())
    assert bowl(found.weight_K[None])[0] < 2.003  # natural: 2.18, the best run: 2.01
    np.testing.assert_allclose(found.weight_K, OPTIMUM, atol=0.06)
    assert found.facts["spearman"] > 0.95


@every_regressor
@pytest.mark.parametrize("settings", [{}, {"kl": 0.1}, {"target_tokens": 2000}, {"max_upsampling": 1.5}])
def test_what_is_found_is_predicted_to_be_no_worse_than_natural(regressor, settings):
    runs = [
        swarm(regressor=regressor),
        swarm(regressor=regressor, response=lambda weight_SK: divergence(weight_SK, PRIOR)),
        swarm(24, regressor=regressor, noise=1.0, seed=3),
    ]
    for each in runs:
        facts = proposed(each, **settings).facts
        assert facts["predicted"] <= facts["predicted_natural"]


@every_regressor
def test_natural_is_kept_and_said_where_nothing_is_predicted_to_be_better(regressor):
    runs = swarm(regressor=regressor, response=lambda weight_SK: np.ones(len(weight_SK)), noise=0)
    found = proposed(runs)
    np.testing.assert_array_equal(found.weight_K, PRIOR)
    assert "natural one, which is kept" in found.facts["warning"]
    assert found.facts["predicted"] == found.facts["predicted_natural"]
    assert "warning" not in proposed(swarm(regressor=regressor)).facts


def test_an_optimum_at_natural_is_natural_or_all_but():
    runs = swarm(200, response=lambda weight_SK: ((weight_SK - PRIOR) ** 2).sum(axis=1), noise=0.02)
    np.testing.assert_allclose(proposed(runs).weight_K, PRIOR, atol=0.08)


@every_regressor
def test_no_domain_is_passed_over_more_often_than_allowed(regressor):
    runs = swarm(regressor=regressor)
    for target_tokens, repetition in ((2000, 4.0), (2000, 2.5), (3000, 3.5)):
        found = proposed(runs, target_tokens=target_tokens, repetition=repetition)
        passes_K = found.weight_K * target_tokens / TOKENS
        assert (passes_K <= repetition * (1 + 1e-12)).all()
    assert proposed(runs).weight_K[2] * 3000 / 100 > 3.5  # it would have had more


@every_regressor
def test_no_share_is_above_what_some_run_had_or_so_many_natural_ones(regressor):
    runs = swarm(regressor=regressor)
    runs.weight_SK[:, 2] = np.minimum(runs.weight_SK[:, 2], 0.2)
    runs.weight_SK[:] /= runs.weight_SK.sum(axis=1, keepdims=True)
    most_K = runs.weight_SK.max(axis=0)
    assert (proposed(runs).weight_K <= most_K + 1e-12).all()
    assert (proposed(runs, max_upsampling=1.2).weight_K <= 1.2 * PRIOR + 1e-12).all()


def test_kl_draws_towards_natural_and_is_paid_for_by_the_target():
    runs = swarm()
    found = [proposed(runs, kl=kl) for kl in (0.0, 0.05, 0.5, 1e4)]
    distance = [divergence(one.weight_K[None], PRIOR)[0] for one in found]
    assert distance == sorted(distance, reverse=True)
    assert distance[0] > distance[1] > distance[2] > 0
    assert distance[3] == 0
    predicted = [one.facts["predicted"] for one in found]
    assert predicted == sorted(predicted)


def test_kl_finds_the_least_of_the_sum_on_a_grid():
    runs = swarm()
    fit = fit_surrogate(runs, num_rounds=1)
    found_K = proposed(runs, kl=0.1).weight_K
    ticks = np.arange(0, 1.001, 0.05)
    grid_CK = np.array([(a, b, c, abs(1 - a - b - c)) for a in ticks for b in ticks for c in ticks if a + b + c <= 1 + 1e-9])
    value_C = fit.predict(grid_CK) + 0.1 * divergence(grid_CK, PRIOR)
    own = fit.predict(found_K[None])[0] + 0.1 * divergence(found_K[None], PRIOR)[0]
    assert own <= value_C.min() + 1e-9


def test_the_mixture_without_its_constraints_is_told_beside_it():
    runs = swarm()
    free = proposed(runs)
    assert "unconstrained" not in free.facts
    for settings in ({"kl": 0.1}, {"target_tokens": 3000}):
        told = proposed(runs, **settings).facts["unconstrained"]
        np.testing.assert_allclose(list(told["weights"].values()), free.weight_K, **FLOAT64)
        assert list(told["weights"]) == list(NAMES)
        np.testing.assert_allclose(told["predicted"], free.facts["predicted"], **FLOAT64)


@every_regressor
def test_out_of_fold_facts_are_those_of_the_held_out_runs(regressor):
    runs = swarm(noise=0.1, regressor=regressor)
    found = proposed(runs)
    held_out = held_out_predictions(runs, 4, num_rounds=60, rng=np.random.default_rng(1))
    held_out_S, own_S = held_out.predicted_S, fit_surrogate(runs, num_rounds=held_out.rounds).predict(runs.weight_SK)
    facts = found.facts
    np.testing.assert_allclose(found.held_out_S, held_out_S, **FLOAT64)
    np.testing.assert_allclose(facts["rmse"], np.sqrt(np.mean((held_out_S - runs.target_S) ** 2)), **FLOAT64)
    chosen, liked = int(held_out_S.argmin()), int(own_S.argmin())
    np.testing.assert_allclose(facts["regret"], runs.target_S[chosen] - runs.target_S.min(), **FLOAT64)
    np.testing.assert_allclose(facts["optimism"], own_S[liked] - held_out_S[liked], **FLOAT64)
    best = int(runs.target_S.argmin())
    assert facts["best_run"] == {"run": best, "target": runs.target_S[best]}
    low, high = facts["predicted_interval"]
    assert low < facts["predicted"] < high


@every_regressor
def test_a_metric_to_raise_is_the_loss_with_its_sign_turned(regressor):
    runs = swarm(regressor=regressor)
    loss = proposed(runs)
    gain = proposed(Swarm(runs.weight_SK, -runs.target_S, regressor), higher_is_better=True)
    np.testing.assert_array_equal(gain.weight_K, loss.weight_K)
    assert gain.facts["predicted"] == -loss.facts["predicted"]
    assert gain.facts["best_run"]["target"] == -loss.facts["best_run"]["target"]
    assert gain.facts["predicted"] >= gain.facts["predicted_natural"]
    for key in ("spearman", "rmse", "regret"):
        assert gain.facts[key] == loss.facts[key]
    np.testing.assert_array_equal(gain.held_out_S, -loss.held_out_S)


def test_more_tokens_than_all_passes_hold_are_an_error():
    with pytest.raises(ConfigError, match=r"target_tokens is 5,000, and 4 passes over all domains are 4,000 tokens"):
        proposed(swarm(), target_tokens=5000)
    found = proposed(swarm(), target_tokens=4000)
    np.testing.assert_allclose(found.weight_K, PRIOR, **FLOAT64)  # every domain is needed to the last token


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regressor": "boosting"}, "regressor is 'boosting'; known: gaussian_process, gradient_boosting"),
        ({"max_upsampling": 1.0}, "max_upsampling is 1.0, wanted more than 1"),
        ({"num_folds": 1}, "num_folds is 1, wanted at least 2"),
        ({"num_candidates": 100}, "num_candidates is 100, wanted at least 128"),
        ({"kl": -0.1}, "kl is -0.1, wanted 0 or more"),
        ({"kl": float("nan")}, "kl is nan"),
        ({"target_tokens": 0}, "target_tokens is 0"),
        ({"repetition": 2.0}, "repetition has no effect without target_tokens"),
        ({"repetition": 0.0, "target_tokens": 10}, "repetition is 0.0"),
    ],
)
def test_settings_out_of_range_are_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        SearchSettings(**settings)
