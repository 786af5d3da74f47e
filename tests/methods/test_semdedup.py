"""SemDeDup against the given numbers and loops over pairs."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import stable_order
from dataflex_tools.core.signals import ArrayRows, Signals
from dataflex_tools.methods import semdedup
from dataflex_tools.methods.semdedup import Semdedup, SemdedupSettings
from tests.helpers import FLOAT64, vector
from tests.methods.builders import cosine, samples


def select(embedding_ND, has_labels=None, **settings):
    pool = samples(len(embedding_ND), has_labels=has_labels)
    signals = Signals(pool, rows={("embedding", "pool"): [ArrayRows(np.asarray(embedding_ND, float))]})
    return Semdedup(SemdedupSettings(**settings)).select(signals, rng=np.random.default_rng(0))


def kept(plan):
    return np.flatnonzero(np.isfinite(plan.score_N)).tolist()


def copies(num=60, num_groups=20, seed=0):
    """Rows that come in near-copies."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_groups, 5))[rng.integers(num_groups, size=num)] + 0.05 * rng.normal(size=(num, 5))


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.15])
def test_kept_rows_are_those_published(eps):
    data = vector("semdedup")
    rows = data["inputs"]["embeddings_unit"]
    official = select(rows, eps=eps, keep=data["inputs"]["which_to_keep"])
    assert kept(official) == data["expected"]["result"][f"eps={eps}"]["kept"]
    order, cosines = data["expected"]["order_hard_first"], data["expected"]["max_sim_to_earlier"]
    np.testing.assert_allclose(official.detail["cosine"][order], cosines, **FLOAT64)
    assert kept(select(rows, eps=eps, variant="greedy")) == data["expected"]["greedy_variant_kept"][f"eps={eps}"]


@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize("variant", ["official", "greedy"])
@pytest.mark.parametrize("held_bytes", [1, 2**29])
def test_kept_rows_equal_the_loop_over_pairs(monkeypatch, variant, keep, held_bytes):
    monkeypatch.setattr(semdedup, "_HELD_BYTES", held_bytes)
    embedding_ND, has_labels = copies(), np.arange(60) % 7 > 0
    plan = select(embedding_ND, has_labels, eps=0.01, variant=variant, keep=keep, rows_per_cluster=20)
    cluster_N = plan.detail["cluster"]
    wanted, removed = {}, 0
    for k in range(plan.facts["clusters"]["clusters"]):
        members = [i for i in range(60) if cluster_N[i] == k]
        centre = sum(embedding_ND[i] / np.linalg.norm(embedding_ND[i]) for i in members)
        sign = 1 if keep == "hard" else -1
        order = sorted(members, key=lambda i, c=centre: (sign * cosine(embedding_ND[i], c), i))
        before = []
        for i in order:
            nearest = max([0.0, *(cosine(embedding_ND[i], embedding_ND[j]) for j in before)])
            is_kept = nearest <= 0.99
            wanted[i] = 1 - nearest if is_kept else -np.inf
            removed += not is_kept
            if variant == "official" or is_kept:
                before.append(i)
    score_N = np.array([wanted.get(i, -np.inf) for i in range(60)])
    np.testing.assert_allclose(plan.score_N, score_N, **FLOAT64)
    assert (plan.facts["kept_rows"], plan.facts["removed_rows"]) == (np.isfinite(score_N).sum(), removed)
    assert removed > 5


def test_a_budget_of_kept_rows_is_a_lower_threshold():
    embedding_ND = copies()
    strict, loose = (select(embedding_ND, eps=eps) for eps in (0.2, 0.001))
    num_kept = len(kept(strict))
    assert sorted(stable_order(loose.score_N)[:num_kept].tolist()) == kept(strict)


def test_greedy_keeps_all_that_official_keeps():
    embedding_ND = copies(200, 30)
    assert set(kept(select(embedding_ND, eps=0.02))) <= set(kept(select(embedding_ND, eps=0.02, variant="greedy")))


@pytest.mark.parametrize("variant", ["official", "greedy"])
@pytest.mark.parametrize("keep", ["hard", "random"])
def test_of_copies_exactly_one_is_kept(variant, keep):
    plan = select(np.repeat(np.eye(3), 5, axis=0), variant=variant, keep=keep)
    assert np.bincount(np.array(kept(plan)) // 5).tolist() == [1, 1, 1]
    if keep == "hard":
        assert all(row % 5 == 0 for row in kept(plan))  # ties: the lowest row stays


def test_rows_without_labels_neither_stay_nor_remove_others():
    plan = select(np.ones((4, 3)), has_labels=np.array([False, True, True, False]))
    assert kept(plan) == [1]
    assert plan.facts["removed_rows"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps is 0.0, wanted more than 0"),
        ({"variant": "fast"}, "variant is 'fast', wanted one of official, greedy"),
        ({"keep": "none"}, "keep is 'none', wanted one of hard, easy, random"),
        ({"rows_per_cluster": 0}, "rows_per_cluster is 0, wanted at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SemdedupSettings(**settings)
