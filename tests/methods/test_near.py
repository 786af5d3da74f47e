"""NEAR against loops over sorted distances."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import Budget, select_rows
from dataflex_tools.methods.near import Near, NearSettings
from dataflex_tools.ops.neighbours import SearchSettings
from tests.methods.builders import vectors

EMBEDDINGS = ("embedding", "embedding")


def naive_near(pool_ND, target_MD, count, allowed):
    unit = [x / np.linalg.norm(x) for x in pool_ND]
    lists = []
    for query in target_MD:
        query = query / np.linalg.norm(query)
        pairs = sorted((float(np.sqrt(((query - unit[i]) ** 2).sum())), i) for i in allowed)
        lists.append([i for _, i in pairs[:count]])
    order = []
    for k in range(min(count, len(allowed))):
        for neighbours in lists:
            if neighbours[k] not in order:
                order.append(neighbours[k])
    return order


def plan_of(pool_ND, target_MD, has_labels=None, **settings):
    signals = vectors(EMBEDDINGS, [pool_ND], [target_MD], [0] * len(target_MD), has_labels_N=has_labels)
    return Near(NearSettings(**settings)).select(signals, rng=np.random.default_rng(0))


def order_of(plan):
    return select_rows(plan.score_N, np.ones(len(plan.score_N)), Budget(num_samples=int(np.isfinite(plan.score_N).sum())))


@pytest.mark.parametrize("count", [1, 4, 50, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_is_the_walk_over_the_lists(count, seed):
    rng = np.random.default_rng(seed)
    pool_ND, target_MD = rng.normal(size=(50, 4)), rng.normal(size=(6, 4))
    has_labels = np.arange(50) % 5 > 0
    plan = plan_of(pool_ND, target_MD, has_labels, num_neighbours=count)
    assert order_of(plan).tolist() == naive_near(pool_ND, target_MD, count, np.flatnonzero(has_labels).tolist())
    assert plan.facts["search"]["recall"] == 1
    assert plan.facts["search"]["queries"] == 6


def test_more_than_the_lists_hold_cannot_be_selected():
    rng = np.random.default_rng(0)
    plan = plan_of(rng.normal(size=(50, 4)), rng.normal(size=(2, 4)), num_neighbours=3)
    listed = int(np.isfinite(plan.score_N).sum())
    assert 3 <= listed == plan.facts["listed_rows"] <= 6
    with pytest.raises(ConfigError, match=f"budget asks for 7 samples, {listed} of 50 rows can be selected"):
        select_rows(plan.score_N, np.ones(50), Budget(num_samples=7))


def test_an_approximate_search_writes_its_recall_down():
    rng = np.random.default_rng(0)
    plan = plan_of(
        rng.normal(size=(2000, 8)), rng.normal(size=(9, 8)), num_neighbours=30, search=SearchSettings(index="ivf", effort=2)
    )
    assert plan.facts["search"]["index"] == "ivf"
    assert 0 < plan.facts["search"]["recall"] < 1
    assert plan.score_N.max() == 0


def test_a_list_of_no_neighbours_is_refused():
    with pytest.raises(ConfigError, match="near: num_neighbours is 0, wanted at least 1"):
        NearSettings(num_neighbours=0)
