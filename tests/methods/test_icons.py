"""ICONS against loops written from the paper and against votes counted by hand."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import stable_order
from dataflex_tools.methods.icons import Icons, IconsSettings
from tests.helpers import FLOAT64
from tests.methods.builders import cosine, vectors


def select(train, target, group, weight=(1.0,), has_labels=None, **settings):
    signals = vectors(("gradient", "gradient"), train, target, group, weight, has_labels)
    return Icons(IconsSettings(**settings)).select(signals, rng=np.random.default_rng(0))


def naive_icons(train, target, group, weight, top):
    """Votes and mean influence per row, in loops."""
    num, tasks = len(train[0]), sorted(set(group))
    influence = [[0.0] * len(tasks) for _ in range(num)]
    for i in range(num):
        for k, task in enumerate(tasks):
            members = [j for j, t in enumerate(group) if t == task]
            for w, a, b in zip(weight, train, target, strict=True):
                influence[i][k] += w * sum(cosine(a[i], b[j]) for j in members) / len(members)
    votes = [0] * num
    for k in range(len(tasks)):
        values = sorted(row[k] for row in influence)
        place = (1 - top) * (num - 1)
        below = int(place)
        above = min(below + 1, num - 1)
        threshold = values[below] + (place - below) * (values[above] - values[below])
        for i in range(num):
            votes[i] += influence[i][k] >= threshold
    return votes, [sum(row) / len(tasks) for row in influence]


@pytest.mark.parametrize("seed", range(5))
def test_votes_and_order_equal_the_loops_of_the_paper(seed):
    rng = np.random.default_rng(seed)
    train, target = rng.normal(size=(2, 23, 6)), rng.normal(size=(2, 7, 6))
    train[0, 4] = 0
    group, weight, top = [0, 2, 1, 0, 2, 2, 1], [0.6, 0.4], [0.2, 0.35, 0.5, 0.1, 0.27][seed]
    plan = select(train, target, group, weight, top=top)
    votes, mean = naive_icons(train, target, group, weight, top)
    np.testing.assert_array_equal(plan.detail["votes"], votes)
    np.testing.assert_allclose(plan.detail["mean_influence"], mean, **FLOAT64)
    wanted = sorted(range(23), key=lambda i: (-votes[i], -mean[i], i))
    assert stable_order(plan.score_N).tolist() == wanted


# Rows point at task 0, at task 1, between both, and away from both; cosines with the two axes can be read off
HAND = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]])
AXES = np.array([[[1.0, 0.0], [0.0, 1.0]]])


def test_a_row_good_for_both_tasks_beats_the_best_of_one():
    plan = select(HAND, AXES, [0, 1], top=0.34)  # threshold between the second and the third of four
    assert plan.detail["votes"].tolist() == [1, 1, 2, 0]
    assert stable_order(plan.score_N).tolist() == [2, 0, 1, 3]
    assert plan.detail["influence_task0"][0] == 1


def test_a_row_at_the_threshold_has_the_vote():
    train = np.array([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    plan = select(train, np.array([[[1.0, 0.0]]]), [0], top=0.2)
    assert plan.detail["votes"].tolist() == [1, 1, 1, 0, 0]


def test_fewer_votes_never_win_whatever_the_mean_influence():
    # The first row is the median of both tasks with a mean cosine of -0.71, the others lead one task with a mean of -0.22
    plan = select(np.array([[[-1.0, -1.0], [1.0, -2.0], [-2.0, 1.0]]]), AXES, [0, 1], top=0.5)
    assert plan.detail["votes"].tolist() == [2, 1, 1]
    assert stable_order(plan.score_N)[0] == 0


def test_equal_rows_tie_and_the_lowest_is_taken():
    plan = select(np.ones((1, 5, 2)), AXES, [0, 1])
    assert stable_order(plan.score_N).tolist() == [0, 1, 2, 3, 4]


def test_rows_without_labels_are_never_selected_and_do_not_move_the_threshold():
    rng = np.random.default_rng(0)
    train, target = rng.normal(size=(1, 10, 4)), rng.normal(size=(1, 3, 4))
    without = select(train, target, [0, 1, 1])
    stranger = np.concatenate([train, np.tile(target[:, :1], (1, 6, 1))], axis=1)
    plan = select(stranger, target, [0, 1, 1], has_labels=[True] * 10 + [False] * 6)
    np.testing.assert_allclose(plan.score_N[:10], without.score_N, **FLOAT64)
    np.testing.assert_array_equal(plan.score_N[10:], -np.inf)


@pytest.mark.parametrize(
    ("settings", "message"), [({"top": 0}, "top is 0"), ({"top": 1}, "top is 1"), ({"adam": "sgd"}, "adam is 'sgd'")]
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        IconsSettings(**settings)
