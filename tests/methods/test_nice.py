"""NICE's scoring on reward gradients, against the given policy gradient and against loops written from the paper."""

import math

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.signals import Need
from dataflex_tools.methods.nice import Nice, NiceSettings
from tests.helpers import FLOAT64, vector
from tests.methods.builders import cosine, vectors

DATA = vector("nice_policy_gradient")


def select(train, target, group, weight=(1.0,), has_labels=None, **settings):
    signals = vectors(("gradient", "reward_gradient"), train, target, group, weight, has_labels)
    return Nice(NiceSettings(**settings)).select(signals, rng=np.random.default_rng(0))


def naive_reward_gradient(theta, sequences, rewards, baseline=0.0):
    """grad of -sum_s (r_s - b) log pi(y_s) for a policy that draws each token from softmax(theta)."""
    total = sum(math.exp(x) for x in theta)
    out = [0.0] * len(theta)
    for tokens, reward in zip(sequences, rewards, strict=True):
        for token in tokens:
            for j in range(len(theta)):
                out[j] += (reward - baseline) * (math.exp(theta[j]) / total - (j == token))
    return out


def naive_nice(train, target, group, weight):
    scores = []
    for i in range(len(train[0])):
        per_task = []
        for task in sorted(set(group)):
            members = [j for j, t in enumerate(group) if t == task]
            pairs = list(zip(weight, train, target, strict=True))
            per_task.append(sum(w * cosine(a[i], b[j]) for w, a, b in pairs for j in members) / len(members))
        scores.append(max(per_task))
    return scores


def test_the_reference_reward_gradient_is_the_given_one():
    given, wanted = DATA["inputs"], DATA["expected"]
    found = naive_reward_gradient(given["theta"], given["sequences"], given["rewards"])
    np.testing.assert_allclose(found, wanted["vanilla_sum_official"], **FLOAT64)
    baseline = np.mean(given["rewards"])
    found = naive_reward_gradient(given["theta"], given["sequences"], given["rewards"], baseline)
    np.testing.assert_allclose(np.array(found) / 4, wanted["mean_reward_baseline_variant"], **FLOAT64)


@pytest.mark.parametrize("key", ["vanilla_sum_official", "mc_mean_dataflex"])
def test_scores_are_cosines_with_the_given_reward_gradient_summed_or_averaged(key):
    train = np.random.default_rng(0).normal(size=(1, 8, 3))
    wanted = [cosine(row, DATA["expected"]["vanilla_sum_official"]) for row in train[0]]
    np.testing.assert_allclose(select(train, [[DATA["expected"][key]]], [0]).score_N, wanted, **FLOAT64)


def test_a_sample_whose_training_raises_the_reward_has_a_positive_score():
    given = DATA["inputs"]
    h = np.array(DATA["expected"]["vanilla_sum_official"])
    gradient = naive_reward_gradient(given["theta"], [[0, 0]], [1.0])  # the loss gradient of the sample "token 0 twice"
    stepped = np.array(given["theta"]) - 1e-3 * np.array(gradient)

    def expected_reward(theta):
        log_pi = np.array(theta) - np.log(np.exp(theta).sum())
        return sum(r * log_pi[s].sum() for s, r in zip(given["sequences"], given["rewards"], strict=True))

    gain = expected_reward(stepped) - expected_reward(given["theta"])
    score = select([[gradient]], [[h]], [0]).score_N[0]
    assert np.sign(score) == np.sign(gain) != 0


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_loops_of_the_paper_for_unequal_subtasks(seed):
    rng = np.random.default_rng(seed)
    train, target = rng.normal(size=(3, 11, 5)), rng.normal(size=(3, 6, 5))
    train[1, 4] = 0
    target[2, 3] = 0  # all rewards equal the baseline: no direction
    group, weight = [0, 1, 1, 0, 1, 1], [0.5, 0.3, 0.2]
    plan = select(train, target, group, weight)
    np.testing.assert_allclose(plan.score_N, naive_nice(train, target, group, weight), **FLOAT64)
    np.testing.assert_array_equal(plan.score_N, np.maximum(plan.detail["score_task0"], plan.detail["score_task1"]))


@pytest.mark.parametrize("aggregate", ["mean_of_cosines", "cosine_of_mean"])
def test_zero_reward_gradients_score_zero(aggregate):
    plan = select(np.random.default_rng(0).normal(size=(1, 4, 3)), np.zeros((1, 2, 3)), [0, 0], aggregate=aggregate)
    np.testing.assert_array_equal(plan.score_N, np.zeros(4))


def test_a_zero_training_gradient_scores_zero():
    train = np.random.default_rng(0).normal(size=(1, 4, 3))
    train[0, 2] = 0
    assert select(train, np.ones((1, 2, 3)), [0, 0]).score_N[2] == 0


def test_rows_without_labels_are_never_selected():
    plan = select(np.ones((1, 3, 2)), np.ones((1, 1, 2)), [0], has_labels=[True, False, True])
    np.testing.assert_array_equal(np.isfinite(plan.score_N), [True, False, True])


def test_it_shares_the_pool_gradients_of_less():
    pool, target = Nice(NiceSettings(adam="less_official")).needs()
    assert pool == Need("gradient", "pool", {"adam": "less_official"}, at_checkpoints=True)
    assert target == Need("reward_gradient", "target", {"adam": "none"}, at_checkpoints=True)


@pytest.mark.parametrize(
    ("settings", "message"), [({"adam": "none"}, "adam is 'none'"), ({"aggregate": "sum"}, "aggregate")]
)
def test_unknown_conventions_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        NiceSettings(**settings)
