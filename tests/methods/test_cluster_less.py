"""Cluster-LESS against the given numbers and loops; only gradients of representatives are asked for and used."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import Budget, select_rows
from dataflex_tools.core.signals import ArrayRows, Signals
from dataflex_tools.methods import cluster_less
from dataflex_tools.methods.cluster_less import ClusterLess, ClusterLessSettings
from dataflex_tools.ops.clusters import Clusters
from tests.helpers import FLOAT64, vector
from tests.methods.builders import cosine, samples
from tests.ops.plain_rows import PlainRows

GRADIENT = ("gradient", "pool")


def unit(raw):
    return raw / np.linalg.norm(raw, axis=-1, keepdims=True)


def signals_of(embedding_NH, train_CND, target_CMD, group_M, weight_C=(1.0,), has_labels=None):
    pool = samples(len(embedding_NH), has_labels=has_labels)
    rows = {
        ("embedding", "pool"): [ArrayRows(embedding_NH)],
        ("gradient", "target"): [ArrayRows(np.asarray(x)) for x in target_CMD],
    }
    if train_CND is not None:
        rows[GRADIENT] = train_CND
    return Signals(pool, samples(len(group_M), group_M), rows, checkpoint_weight_C=np.asarray(weight_C))


def random_signals(seed=0, num=90, has_labels=None):
    rng = np.random.default_rng(seed)
    embedding, target = rng.normal(size=(num, 4)), rng.normal(size=(2, 5, 6))
    train = [unit(rng.normal(size=(num, 6))) for _ in range(2)]
    group = [0, 1, 1, 0, 1]

    def given(train_C):
        return signals_of(embedding, train_C, target, group, (0.7, 0.3), has_labels)

    return given, train, target, group


def select(method, signals):
    return method.select(signals, rng=np.random.default_rng(0))


def test_scores_are_the_published_numbers(monkeypatch):
    data = vector("cluster_less")
    given, wanted = data["inputs"], data["expected"]
    found = Clusters(np.array(given["cluster_ids"]), np.zeros(6), 3, {})
    monkeypatch.setattr(cluster_less, "k_means", lambda *_, **__: found)
    monkeypatch.setattr(cluster_less, "representatives", lambda *_, **__: np.array(given["representatives"]))
    train = [PlainRows(given["unit_features_of_all_samples"])]
    signals = signals_of(np.ones((6, 2)), train, [given["unit_val_features"]], [0, 0])
    plan = select(ClusterLess(ClusterLessSettings()), signals)
    np.testing.assert_allclose(plan.score_N, wanted["sample_scores"], **FLOAT64)
    picked = select_rows(plan.score_N, np.ones(6), Budget(num_samples=given["num_samples"]))
    assert picked.tolist() == wanted["selected_lowest_index_tie_break"]


@pytest.mark.parametrize("pick", ["random", "nearest", "mixed"])
def test_scores_equal_the_loops(pick):
    given, train, target, group = random_signals()
    method = ClusterLess(ClusterLessSettings(rows_per_cluster=9, num_representatives=3, pick=pick))
    chosen = set(method.rows_needed(given(None))[GRADIENT].tolist())
    plan = select(method, given([PlainRows(x, 13) for x in train]))
    cluster_N = plan.detail["cluster"]
    for row in range(90):
        members = [i for i in range(90) if cluster_N[i] == cluster_N[row] and i in chosen]
        per_task = [0.0, 0.0]
        for weight, features, targets in zip((0.7, 0.3), train, target, strict=True):
            mean = sum(features[i] for i in members) / len(members)
            for task in (0, 1):
                rows = [j for j in range(5) if group[j] == task]
                per_task[task] += weight * sum(cosine(mean, targets[j]) for j in rows) / len(rows)
        assert plan.score_N[row] == pytest.approx(max(per_task), rel=1e-9)
    assert plan.facts["clusters"]["clusters"] == len(set(cluster_N.tolist())) == 10
    assert plan.facts["representatives"] == len(chosen)


def test_gradients_are_asked_for_representatives_only():
    has_labels = np.arange(90) % 6 > 0
    given, *_ = random_signals(has_labels=has_labels)
    method = ClusterLess(ClusterLessSettings(rows_per_cluster=15, num_representatives=2))
    needed = method.rows_needed(given(None))
    assert list(needed) == [GRADIENT]
    rows = needed[GRADIENT]
    assert 5 <= len(rows) <= 2 * 5  # 75 labelled rows, 15 a cluster
    assert (np.diff(rows) > 0).all()
    assert has_labels[rows].all()
    assert [(need.kind, need.side) for need in method.needs() if need.of_chosen_rows] == list(needed)


def test_gradients_of_other_rows_change_nothing():
    given, train, *_ = random_signals()
    method = ClusterLess(ClusterLessSettings(rows_per_cluster=9, num_representatives=3))
    others = set(range(90)) - set(method.rows_needed(given(None))[GRADIENT].tolist())
    few = select(method, given([PlainRows(x, 13, absent=others) for x in train]))
    noise = [np.where(np.isin(np.arange(90), list(others))[:, None], 9.0, x) for x in train]
    np.testing.assert_array_equal(few.score_N, select(method, given([PlainRows(x, 7) for x in noise])).score_N)


def test_a_restarted_run_asks_for_the_same_rows_and_scores_the_same():
    given, train, *_ = random_signals()
    rows, scores = [], []
    for _ in range(2):
        method = ClusterLess(ClusterLessSettings(rows_per_cluster=9))
        rows.append(method.rows_needed(given(None))[GRADIENT])
        fresh = ClusterLess(ClusterLessSettings(rows_per_cluster=9))  # select in another process
        scores.append(select(fresh, given([PlainRows(x) for x in train])).score_N)
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(*scores)


def test_one_run_clusters_once(monkeypatch):
    calls, original = [], cluster_less.k_means
    monkeypatch.setattr(cluster_less, "k_means", lambda *a, **k: calls.append(1) or original(*a, **k))
    given, train, *_ = random_signals()
    first = given(None)
    second = Signals(
        first.pool,
        first.target,
        {**first.rows, GRADIENT: [PlainRows(x) for x in train]},
        checkpoint_weight_C=first.checkpoint_weight_C,
    )
    method = ClusterLess(ClusterLessSettings(rows_per_cluster=9))
    method.rows_needed(first)
    select(method, second)
    assert len(calls) == 1


def test_a_cluster_without_a_direction_scores_zero():
    given, train, *_ = random_signals()
    method = ClusterLess(ClusterLessSettings(rows_per_cluster=45, num_representatives=2))
    plan = select(method, given([PlainRows(np.zeros_like(x)) for x in train]))
    assert plan.score_N.tolist() == [0] * 90
    plan = select(method, given([PlainRows(x, absent=range(90)) for x in train]))
    assert plan.score_N.tolist() == [0] * 90


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pick": "middle"}, "pick is 'middle', wanted one of random, nearest, farthest, mixed"),
        ({"num_representatives": 0}, "num_representatives is 0, wanted at least 1"),
        ({"rows_per_cluster": 0}, "rows_per_cluster is 0, wanted at least 1"),
        ({"adam": "sgd"}, "adam is 'sgd', wanted one of optimizer_exact"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ClusterLessSettings(**settings)
