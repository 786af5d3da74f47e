"""k-means against its loops, for every algorithm the same laws; representatives and their directions."""

import sys

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.ops import clusters as clusters_module
from dataflex_tools.ops import representatives as representatives_module
from dataflex_tools.ops import stream
from dataflex_tools.ops.clusters import Clusters, ClusterSettings, k_means
from dataflex_tools.ops.representatives import cluster_directions, representatives
from tests.helpers import FLOAT64
from tests.ops.plain_rows import PlainRows

# N pool rows, K clusters, D columns

ALGORITHMS = ["lloyd", "minibatch", "faiss"]


def unit(raw):
    return raw / np.linalg.norm(raw, axis=-1, keepdims=True)


def groups(num_groups=4, size=20, dim=6, seed=0):
    """Tight groups of unit rows far from each other, mixed up, and which group each belongs to."""
    rng = np.random.default_rng(seed)
    group_N = rng.permutation(np.repeat(np.arange(num_groups), size))
    return unit(np.eye(dim)[group_N] + 0.02 * rng.normal(size=(len(group_N), dim))), group_N


def cluster(rows, algorithm, *, size=20, is_spherical=True, allowed_N=None, seed=0, num_iterations=20):
    allowed_N = np.ones(len(rows), bool) if allowed_N is None else allowed_N
    settings = ClusterSettings(algorithm=algorithm, num_iterations=num_iterations)
    return k_means(
        rows,
        settings,
        rows_per_cluster=size,
        allowed_N=allowed_N,
        is_spherical=is_spherical,
        rng=np.random.default_rng(seed),
    )


def naive_lloyd(value_ND, centre_KD, num_iterations, is_spherical):
    for _ in range(num_iterations):
        nearest = [min(range(len(centre_KD)), key=lambda k: ((x - centre_KD[k]) ** 2).sum()) for x in value_ND]
        centre_KD = np.array([value_ND[np.array(nearest) == k].mean(axis=0) for k in range(len(centre_KD))])
        centre_KD = unit(centre_KD) if is_spherical else centre_KD
    return [min(range(len(centre_KD)), key=lambda k: ((x - centre_KD[k]) ** 2).sum()) for x in value_ND], centre_KD


@pytest.mark.parametrize("is_spherical", [True, False])
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_lloyd_equals_the_loop(is_spherical, num_iterations):
    value_ND = unit(np.random.default_rng(3).normal(size=(90, 3)))
    found = cluster(PlainRows(value_ND, 7), "lloyd", size=20, is_spherical=is_spherical, num_iterations=num_iterations)
    first_KD = value_ND[np.sort(np.random.default_rng(0).choice(90, 5, replace=False))]
    wanted, centre_KD = naive_lloyd(value_ND, first_KD, num_iterations, is_spherical)
    assert found.cluster_N.tolist() == wanted
    cosine = [x @ unit(centre_KD[k]) for x, k in zip(value_ND, wanted, strict=True)]
    np.testing.assert_allclose(found.cosine_N, cosine, **FLOAT64)


@pytest.mark.parametrize("is_spherical", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rows_that_lie_together_are_clustered_together(algorithm, is_spherical, monkeypatch):
    monkeypatch.setattr(stream, "PIECE_BYTES", 8 * 6 * 30)
    value_ND, group_N = groups()
    # some start has two centres in one group; one of ten finds all four
    best = max(
        (cluster(PlainRows(value_ND, 11), algorithm, is_spherical=is_spherical, seed=seed) for seed in range(10)),
        key=lambda found: found.cosine_N.sum(),
    )
    pairs = set(zip(best.cluster_N.tolist(), group_N.tolist(), strict=True))
    assert len(pairs) == 4
    assert (best.cosine_N > 0.99).all()
    assert best.facts == {"algorithm": algorithm, "clusters": 4, "rows": 80}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rows_not_allowed_or_not_measured_are_in_no_cluster(algorithm):
    value_ND, _ = groups()
    allowed_N = np.arange(80) % 4 > 0
    found = cluster(PlainRows(value_ND, 9, absent=[1, 2]), algorithm, allowed_N=allowed_N)
    left_out = [i for i in range(80) if i % 4 == 0 or i in (1, 2)]
    assert np.flatnonzero(found.cluster_N < 0).tolist() == left_out
    members = found.members()
    assert len(members) == found.num_clusters == 3  # 58 rows, 20 a cluster
    assert sorted(np.concatenate(members).tolist()) == sorted(set(range(80)) - set(left_out))
    for k, row_B in enumerate(members):
        assert (found.cluster_N[row_B] == k).all()
        assert (np.diff(row_B) > 0).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_gives_the_same_clusters(algorithm):
    value_ND = unit(np.random.default_rng(0).normal(size=(200, 5)))
    first, second = (cluster(PlainRows(value_ND, 50), algorithm) for _ in range(2))
    np.testing.assert_array_equal(first.cluster_N, second.cluster_N)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equal_rows_and_more_clusters_than_distinct_rows_are_no_fault(algorithm, recwarn):
    found = cluster(PlainRows(np.tile(unit(np.ones((1, 3))), (12, 1))), algorithm, size=3)
    assert set(found.cluster_N.tolist()) <= set(range(4))
    assert len(set(found.cluster_N.tolist())) == 1
    assert not recwarn.list


def test_auto_streams_beyond_the_size_that_fits_in_memory(monkeypatch):
    value_ND, _ = groups()
    assert cluster(PlainRows(value_ND), "auto").facts["algorithm"] == "lloyd"
    monkeypatch.setattr(clusters_module, "_LLOYD_UP_TO", 79)
    assert cluster(PlainRows(value_ND), "auto").facts["algorithm"] == "minibatch"


def test_without_faiss_only_faiss_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    value_ND, _ = groups()
    cluster(PlainRows(value_ND), "lloyd")
    with pytest.raises(ConfigError, match=r"clusters.algorithm=faiss needs faiss.*flextools\[cpu\]"):
        cluster(PlainRows(value_ND), "faiss")


def test_wrong_settings_and_an_empty_pool_are_refused():
    with pytest.raises(ConfigError, match="clusters.algorithm is 'ward', wanted one of auto, lloyd"):
        ClusterSettings(algorithm="ward")
    with pytest.raises(ConfigError, match="clusters.num_iterations is 0"):
        ClusterSettings(num_iterations=0)
    with pytest.raises(DataError, match="none of 3 pool rows can be clustered"):
        cluster(PlainRows(np.eye(3)), "lloyd", allowed_N=np.zeros(3, bool))


CLUSTERS = Clusters(np.array([0, 0, 0, 0, 0, 1, -1, 2]), np.array([0.5, 0.9, 0.1, 0.9, 0.3, 1, -1, 1]), 4, {})


@pytest.mark.parametrize(("pick", "wanted"), [("nearest", [1, 3, 0]), ("farthest", [2, 4, 0]), ("mixed", [1, 3, 2])])
def test_representatives_are_picked_by_their_place_in_the_cluster(pick, wanted):
    row_R = representatives(CLUSTERS, 3, pick=pick, rng=np.random.default_rng(0))
    assert row_R.tolist() == [*wanted, 5, 7]


def test_random_representatives_are_distinct_and_each_equally_likely():
    rng, counts = np.random.default_rng(0), np.zeros(8)
    for _ in range(500):
        row_R = representatives(CLUSTERS, 3, pick="random", rng=rng)
        assert len(set(row_R.tolist())) == 5
        counts[row_R] += 1
    assert counts[[5, 6, 7]].tolist() == [500, 0, 500]
    assert abs(counts[:5] - 300).max() < 60  # 5 sigma of a binomial of 500 and 0.6


@pytest.mark.parametrize("piece_bytes", [1, 2**26])
def test_directions_are_unit_means_whatever_fits_in_memory(monkeypatch, piece_bytes):
    monkeypatch.setattr(representatives_module, "PIECE_BYTES", piece_bytes)
    value_ND = unit(np.random.default_rng(0).normal(size=(8, 4)))
    value_ND[1] = -value_ND[0]
    parts = list(cluster_directions(PlainRows(value_ND, 3, absent=[7]), CLUSTERS.cluster_N, np.array([0, 1, 5, 7]), 4))
    assert len(parts) == (4 if piece_bytes == 1 else 1)
    direction_KD = np.concatenate([unit_KD for _, unit_KD in parts])
    np.testing.assert_allclose(direction_KD, [np.zeros(4), value_ND[5], np.zeros(4), np.zeros(4)], **FLOAT64)
