"""RDS+ against a loop in which each query picks its best free sample."""

import numpy as np
import pytest

from dataflex_tools.core.plan import stable_order
from dataflex_tools.methods.rds import Rds, RdsSettings
from tests.methods.builders import cosine, vectors

EMBEDDINGS = ("embedding", "embedding")


def naive_rds(pool_ND, target_MD, allowed):
    free, order = list(allowed), []
    while free:
        query = target_MD[len(order) % len(target_MD)]
        best = max(free, key=lambda i: (cosine(pool_ND[i], query), -i))
        order.append(best)
        free.remove(best)
    return order


def plan_of(pool_ND, target_MD, has_labels=None, group=None):
    group = [0] * len(target_MD) if group is None else group
    signals = vectors(EMBEDDINGS, [pool_ND], [target_MD], group, has_labels_N=has_labels)
    return Rds(RdsSettings()).select(signals, rng=np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(5))
def test_the_order_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    pool_ND, target_MD = rng.normal(size=(40, 5)), rng.normal(size=(7, 5))
    has_labels = rng.random(40) > 0.2
    plan = plan_of(pool_ND, target_MD, has_labels)
    allowed = np.flatnonzero(has_labels)
    order = stable_order(plan.score_N)[: len(allowed)]
    assert order.tolist() == naive_rds(pool_ND.tolist(), target_MD.tolist(), allowed.tolist())
    assert (plan.score_N[~has_labels] == -np.inf).all()


def test_each_query_picks_once_a_round_whatever_its_subtask():
    pool_ND, target_MD = np.eye(6), np.eye(6)[[4, 2, 5]]
    plan = plan_of(pool_ND, target_MD, group=[0, 1, 0])
    assert stable_order(plan.score_N)[:3].tolist() == [4, 2, 5]


def test_length_does_not_matter_but_direction_does():
    rng = np.random.default_rng(0)
    pool_ND, target_MD = rng.normal(size=(20, 3)), rng.normal(size=(2, 3))
    scaled_ND = pool_ND * rng.uniform(0.1, 9, size=(20, 1))
    np.testing.assert_array_equal(plan_of(pool_ND, target_MD).score_N, plan_of(scaled_ND, target_MD).score_N)


def test_it_asks_for_means_weighted_by_position():
    assert [(need.kind, need.side, dict(need.settings)) for need in Rds(RdsSettings()).needs()] == [
        ("embedding", "pool", {"pooling": "weighted_mean"}),
        ("embedding", "target", {"pooling": "weighted_mean"}),
    ]
