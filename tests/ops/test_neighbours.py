"""Neighbours against sorted distances in float64: exact ones, and approximate ones that may be worse but never missing."""

import sys

import faiss
import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.ops import neighbours, stream
from dataflex_tools.ops.neighbours import SearchSettings, nearest
from tests.helpers import FLOAT64
from tests.ops.plain_rows import PlainRows

# N pool rows, M queries, K neighbours, D columns

IVF = SearchSettings(index="ivf", effort=1)
HNSW = SearchSettings(index="hnsw", effort=1)


def naive(value_ND, query_MD, count, allowed):
    row_MK, distance_MK = [], []
    for query in query_MD:
        pairs = sorted((float(np.sqrt(((query - value_ND[i]) ** 2).sum())), int(i)) for i in allowed)[:count]
        row_MK.append([i for _, i in pairs])
        distance_MK.append([d for d, _ in pairs])
    return np.array(row_MK), np.array(distance_MK)


def search(rows, query_MD, count, settings=None, allowed_N=None, seed=0):
    allowed_N = np.ones(len(rows), bool) if allowed_N is None else allowed_N
    settings = settings or SearchSettings()
    return nearest(rows, query_MD, count, allowed_N=allowed_N, search=settings, rng=np.random.default_rng(seed))


def data(num=300, num_queries=7, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)), rng.normal(size=(num_queries, dim))


@pytest.mark.parametrize("count", [1, 2, 40, 280, 300, 999])
@pytest.mark.parametrize("block", [1, 17, 300])
def test_exact_neighbours_are_those_of_sorted_distances(monkeypatch, count, block):
    monkeypatch.setattr(stream, "PIECE_BYTES", 1000)
    value_ND, query_MD = data()
    rows = PlainRows(value_ND, block, order=np.random.default_rng(1).permutation(300))
    found = search(rows, query_MD, count)
    row_MK, distance_MK = naive(value_ND, query_MD, count, range(300))
    np.testing.assert_array_equal(found.row_MK, row_MK)
    np.testing.assert_allclose(found.distance_MK, distance_MK, **FLOAT64)
    assert found.facts["recall"] == 1
    assert found.facts["index"] == "flat"
    assert found.facts["neighbours"] == min(count, 300)


def test_rows_that_are_not_allowed_or_not_measured_are_no_neighbours():
    value_ND, query_MD = data(50)
    allowed_N = np.arange(50) % 3 > 0
    found = search(PlainRows(value_ND, 8, absent=[1, 2, 4]), query_MD, 99, allowed_N=allowed_N)
    wanted = [i for i in range(50) if allowed_N[i] and i not in (1, 2, 4)]
    np.testing.assert_array_equal(found.row_MK, naive(value_ND, query_MD, 99, wanted)[0])


def test_equal_rows_come_by_row_and_at_distance_exactly_zero():
    query_MD = np.full((1, 64), 0.125)
    value_ND = np.tile(query_MD, (9, 1)).astype(np.float32)
    found = search(PlainRows(value_ND, 2, order=[8, 3, 0, 1, 5, 7, 2, 4, 6]), query_MD, 4)
    assert found.row_MK.tolist() == [[0, 1, 2, 3]]
    assert found.distance_MK.tolist() == [[0, 0, 0, 0]]


def test_near_duplicates_are_ordered_where_float32_products_cannot_tell_them_apart():
    # |q|^2 + |b|^2 - 2 q.b in float32 is off by about 1e-7; these squared distances are 1e-8 and less
    rng = np.random.default_rng(0)
    query_MD = rng.normal(size=(30, 64)).astype(np.float32)
    query_MD /= np.linalg.norm(query_MD, axis=1, keepdims=True)
    step = rng.permutation(12) * 1e-5
    value_ND = (query_MD[:1] + step[:, None] * np.eye(64)[0]).astype(np.float32)
    found = search(PlainRows(value_ND), query_MD, 12)
    np.testing.assert_array_equal(found.row_MK[0], np.argsort(step))


@pytest.mark.parametrize("settings", [IVF, HNSW])
def test_an_approximate_index_that_comes_back_short_is_filled_up_exactly(settings):
    value_ND, query_MD = data(600)
    found = search(PlainRows(value_ND, 100), query_MD, 400, settings)
    assert found.row_MK.shape == (7, 400)
    assert found.row_MK.min() >= 0
    assert all(len(set(row)) == 400 for row in found.row_MK.tolist())
    assert found.facts["index"] == settings.index
    if settings is IVF:  # one of 15 lists never holds 400 of 600 rows
        assert found.facts["filled_queries"] == 7
        assert found.facts["recall"] == 1
        np.testing.assert_array_equal(found.row_MK, naive(value_ND, query_MD, 400, range(600))[0])


def test_a_graph_that_does_not_reach_all_rows_is_filled_up_too():
    value_ND, query_MD = data(80)
    found = search(PlainRows(np.repeat(value_ND[:4], 20, axis=0)), query_MD, 80, HNSW)
    assert sorted(found.row_MK[0].tolist()) == list(range(80))


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_recall_is_the_share_of_true_neighbours_found(index):
    value_ND, query_MD = data(3000, 40, dim=16)
    settings = SearchSettings(index=index, effort=1, num_checked=40)
    found = search(PlainRows(value_ND, 500), query_MD, 20, settings)
    true_MK = naive(value_ND, query_MD, 20, range(3000))[0]
    shared = [len(set(a) & set(b)) / 20 for a, b in zip(found.row_MK.tolist(), true_MK.tolist(), strict=True)]
    assert found.facts["recall"] == pytest.approx(np.mean(shared))
    assert found.facts["recall_queries"] == 40
    assert (np.diff(found.distance_MK, axis=1) >= 0).all()


def test_more_effort_finds_more_and_all_lists_find_everything():
    value_ND, query_MD = data(3000, 20, dim=16)
    recalls = [
        search(PlainRows(value_ND), query_MD, 20, SearchSettings(index="ivf", effort=effort)).facts["recall"]
        for effort in (1, 10, 10_000)
    ]
    assert recalls[0] < recalls[1] < recalls[2] == 1


def test_a_pool_up_to_the_given_size_is_searched_exactly():
    value_ND, query_MD = data()
    for size, index in ((299, "ivf"), (300, "flat"), (301, "flat")):
        settings = SearchSettings(index="ivf", exact_up_to=size)
        assert search(PlainRows(value_ND), query_MD, 3, settings).facts["index"] == index


def test_the_same_seed_gives_the_same_approximate_neighbours():
    value_ND, query_MD = data(1000)
    first, second = (search(PlainRows(value_ND), query_MD, 9, SearchSettings(index="ivf", effort=2)) for _ in range(2))
    np.testing.assert_array_equal(first.row_MK, second.row_MK)
    assert first.facts == second.facts


def test_an_exact_search_reads_the_pool_twice_and_holds_one_piece(monkeypatch):
    monkeypatch.setattr(stream, "PIECE_BYTES", 4 * 5 * 30)
    sizes = []
    original = faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda q, b, k: sizes.append(len(b)) or original(q, b, k))
    value_ND, query_MD = data()
    rows = PlainRows(value_ND, 10, dtype=np.float32)
    search(rows, query_MD, 3)
    assert rows.num_passes == 2
    assert max(sizes) == 30
    assert sum(sizes) == 300


def test_a_gpu_is_used_where_faiss_has_one_and_its_limit_allows(monkeypatch):
    calls = []

    def knn_gpu(resources, query_MD, base_BD, count):
        calls.append(resources)
        return faiss.knn(query_MD, base_BD, count)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    value_ND, query_MD = data()
    assert search(PlainRows(value_ND), query_MD, 3).facts["device"] == "gpu"
    assert calls == ["resources"]
    monkeypatch.setattr(neighbours, "_GPU_MAX_NEIGHBOURS", 10)
    assert search(PlainRows(value_ND), query_MD, 30).facts["device"] == "cpu"


def test_without_faiss_the_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    value_ND, query_MD = data()
    with pytest.raises(ConfigError, match=r"needs faiss, which is not installed: pip install 'flextools\[cpu\]'.*\[gpu\]"):
        search(PlainRows(value_ND), query_MD, 3)


def test_a_pool_without_neighbours_is_an_error():
    value_ND, query_MD = data(20)
    with pytest.raises(DataError, match="none of 20 pool rows can be a neighbour: none has a label"):
        search(PlainRows(value_ND), query_MD, 3, allowed_N=np.zeros(20, bool))
    with pytest.raises(DataError, match="none of 20 pool rows can be a neighbour: none was measured"):
        search(PlainRows(value_ND, absent=range(20)), query_MD, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": "annoy"}, "search.index is 'annoy', wanted one of flat, ivf, hnsw"),
        ({"index": "ivf", "effort": 0}, "search.effort is 0, wanted at least 1"),
        ({"index": "ivf", "num_checked": 0}, "search.num_checked is 0, wanted at least 1"),
        ({"index": "ivf", "exact_up_to": -1}, "search.exact_up_to is -1"),
        ({"effort": 8}, "have no effect with search.index=flat"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SearchSettings(**settings)
