"""LESS against the given numbers and against loops written from the paper."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import Budget, select_rows
from dataflex_tools.core.signals import ArrayRows, Samples, Signals
from dataflex_tools.methods.less import Less, LessSettings
from tests.helpers import FLOAT64, vector

# C checkpoints, N pool samples, M target samples, D features, G subtasks


def signals_from(train_CND, target_CMD, group_M, weight_C, has_labels_N=None) -> Signals:
    num = len(train_CND[0])
    has_labels_N = np.ones(num, bool) if has_labels_N is None else has_labels_N
    names = tuple(f"task{g}" for g in range(max(group_M) + 1))
    num_target = len(group_M)
    pool = Samples(np.full(num, 10), has_labels_N, np.zeros(num, int), ("pool",))
    target = Samples(np.full(num_target, 10), np.ones(num_target, bool), np.asarray(group_M), names)
    rows = {
        ("gradient", "pool"): [ArrayRows(np.asarray(x, float)) for x in train_CND],
        ("gradient", "target"): [ArrayRows(np.asarray(x, float)) for x in target_CMD],
    }
    return Signals(pool, target, rows, checkpoint_weight_C=np.asarray(weight_C))


def vector_signals():
    data = vector("less_scores")
    given, wanted = data["inputs"], data["expected"]
    train_C, target_C = [], []
    projection = np.array(given["projection"])
    for grads, m, v, target in zip(given["train_grads"], given["adam_m"], given["adam_v"], given["val_grads"], strict=True):
        g, m, v = np.array(grads), np.array(m), np.array(v)
        m_next = given["beta1"] * m + (1 - given["beta1"]) * g
        v_next = given["beta2"] * v + (1 - given["beta2"]) * g * g
        train_C.append(m_next / np.sqrt(v_next + given["eps"]) @ projection)
        target_C.append(np.array(target) @ projection)
    weight_C = np.array(given["checkpoint_lr"]) / np.sum(given["checkpoint_lr"])
    return signals_from(train_C, target_C, [0, 0, 1, 1], weight_C), wanted


def naive_less(train_CND, target_CMD, group_M, weight_C):
    score_N = []
    for i in range(len(train_CND[0])):
        per_task = []
        for task in sorted(set(group_M)):
            total, members = 0.0, [j for j, t in enumerate(group_M) if t == task]
            for weight, train, target in zip(weight_C, train_CND, target_CMD, strict=True):
                for j in members:
                    a, b = train[i], target[j]
                    cosine = sum(x * y for x, y in zip(a, b, strict=True))
                    cosine /= max(sum(x * x for x in a) ** 0.5, 1e-12) * max(sum(y * y for y in b) ** 0.5, 1e-12)
                    total += weight * cosine / len(members)
            per_task.append(total)
        score_N.append(max(per_task))
    return np.array(score_N)


def test_scores_are_the_official_numbers():
    signals, wanted = vector_signals()
    plan = Less(LessSettings()).select(signals, rng=np.random.default_rng(0))
    np.testing.assert_allclose(plan.score_N, wanted["final_max_over_subtasks"], **FLOAT64)
    per_task = np.stack([plan.detail["score_task0"], plan.detail["score_task1"]], axis=1)
    np.testing.assert_allclose(per_task, wanted["per_subtask_mean"], **FLOAT64)
    picked = select_rows(plan.score_N, np.full(4, 10), Budget(fraction=0.5))
    assert picked.tolist() == wanted["selected_top_k"]


def test_cosine_of_mean_is_the_papers_variant():
    signals, wanted = vector_signals()
    plan = Less(LessSettings(aggregate="cosine_of_mean")).select(signals, rng=np.random.default_rng(0))
    np.testing.assert_allclose(plan.score_N, wanted["variant_paper_final"], **FLOAT64)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_loops_of_the_paper_for_unequal_subtasks(seed):
    rng = np.random.default_rng(seed)
    train, target = rng.normal(size=(3, 11, 6)), rng.normal(size=(3, 7, 6))
    train[1, 4] = 0  # a zero gradient has cosine 0, not NaN
    group = np.array([0, 2, 1, 0, 2, 2, 1])
    weight = np.array([0.5, 0.3, 0.2])
    plan = Less(LessSettings()).select(signals_from(train, target, group, weight), rng=rng)
    np.testing.assert_allclose(plan.score_N, naive_less(train, target, group.tolist(), weight), **FLOAT64)


def test_rows_without_labels_are_never_selected():
    rng = np.random.default_rng(0)
    has_labels = np.array([True, False, True, True])
    signals = signals_from(rng.normal(size=(1, 4, 3)), rng.normal(size=(1, 2, 3)), [0, 0], [1.0], has_labels)
    plan = Less(LessSettings()).select(signals, rng=rng)
    assert plan.score_N[1] == -np.inf
    assert np.isfinite(plan.score_N[has_labels]).all()


def test_equal_samples_tie_and_the_lowest_row_is_taken():
    rng = np.random.default_rng(0)
    train = np.tile(rng.normal(size=3), (1, 6, 1))
    plan = Less(LessSettings()).select(signals_from(train, rng.normal(size=(1, 1, 3)), [0], [1.0]), rng=rng)
    assert select_rows(plan.score_N, np.full(6, 10), Budget(num_samples=3)).tolist() == [0, 1, 2]


def test_an_unknown_convention_is_refused_by_name():
    with pytest.raises(ConfigError, match="adam is 'sgd', wanted one of optimizer_exact"):
        LessSettings(adam="sgd")
