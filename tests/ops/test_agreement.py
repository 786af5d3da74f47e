"""Overlap, rank correlation and histograms against loops, and against hand numbers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex_tools.ops.agreement import average_ranks, doubling_edges, histogram, overlap, spearman
from tests.helpers import FLOAT64


def naive_ranks(values):
    """Mean of the places 1..N that equal values take."""
    ordered = sorted(values)
    return [np.mean([place for place, other in enumerate(ordered, 1) if other == value]) for value in values]


def naive_pearson(a, b):
    a, b = [x - sum(a) / len(a) for x in a], [x - sum(b) / len(b) for x in b]
    top = sum(x * y for x, y in zip(a, b, strict=True))
    return top / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def test_overlap_by_hand():
    found = overlap(np.array([5, 1, 2, 9]), np.array([2, 5, 7]))
    assert (found.num_shared, found.jaccard, found.share) == (2, 2 / 5, 2 / 3)


def test_overlap_of_a_pick_with_itself_and_with_a_disjoint_one():
    a = np.array([3, 1])
    assert (overlap(a, a[::-1]).jaccard, overlap(a, a).share) == (1, 1)
    assert overlap(a, np.array([2, 4])).jaccard == 0
    with pytest.raises(ValueError, match="empty"):
        overlap(a, np.array([], dtype=np.int64))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30))
def test_ranks_are_the_mean_places_of_equal_values(values):
    np.testing.assert_array_equal(average_ranks(np.array(values, dtype=float)), naive_ranks(values))


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_is_pearson_of_ranks(levels):
    rng = np.random.default_rng(1)
    a = rng.integers(levels, size=60).astype(float)
    b = a + rng.integers(levels, size=60)
    assert spearman(a, b) == pytest.approx(naive_pearson(naive_ranks(a), naive_ranks(b)), rel=1e-12)
    from scipy.stats import spearmanr

    np.testing.assert_allclose(spearman(a, b), spearmanr(a, b).statistic, **FLOAT64)


def test_spearman_sees_order_alone():
    a = np.array([0.1, 0.5, 0.2, 0.9])
    assert spearman(a, np.exp(50 * a)) == 1
    assert spearman(a, -a) == -1


@pytest.mark.parametrize("pair", [([1.0], [2.0]), ([], []), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_undefined_correlation_is_none(pair):
    assert spearman(*map(np.array, pair)) is None


@pytest.mark.parametrize(
    ("smallest", "largest", "edges"),
    [(5, 40, [4, 8, 16, 32, 64]), (0, 1, [0, 1, 2]), (8, 8, [8, 16]), (7, 8, [4, 8, 16]), (0, 0, [0, 1]), (1, 1, [1, 2])],
)
def test_edges_double_and_hold_both_ends(smallest, largest, edges):
    np.testing.assert_array_equal(doubling_edges(smallest, largest), edges)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_histogram_counts_each_value_once(values):
    edges = doubling_edges(min(values), max(values))
    expected = [sum(low <= v < high for v in values) for low, high in itertools.pairwise(edges)]
    np.testing.assert_array_equal(histogram(np.array(values), edges), expected)
    assert sum(expected) == len(values)
    assert expected[0] > 0
    assert expected[-1] > 0


def test_value_outside_all_bins_is_an_error():
    with pytest.raises(ValueError, match=r"outside \[4, 8\)"):
        histogram(np.array([8]), np.array([4, 8]))
