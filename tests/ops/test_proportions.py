"""Whole counts from proportions, and amounts under limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflex_tools.ops.proportions import fill, nearest_counts
from tests.helpers import FLOAT64, vector

WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda weights: sum(weights) > 0.01)


def test_counts_are_those_of_the_given_vector() -> None:
    given = vector("mixture_counts")
    for weights, total, expected in zip(
        given["inputs"]["proportions"],
        given["inputs"]["num_samples"],
        given["expected"]["largest_remainder"],
        strict=True,
    ):
        assert nearest_counts(np.array(weights) * total, total).tolist() == expected


def test_counts_of_natural_proportions_are_those_of_the_given_vector() -> None:
    given = vector("sampling_distributions")
    size_K = np.array(given["inputs"]["sizes"])
    counts = nearest_counts(size_K / size_K.sum() * 10, 10)
    assert counts.tolist() == given["expected"]["largest_remainder_counts_for_10_samples_tau1"]


@settings(deadline=None)
@given(weights=WEIGHTS, total=st.integers(0, 1000))
def test_counts_sum_to_the_total_and_are_within_one_of_the_shares(weights: list[float], total: int) -> None:
    weight_K = np.array(weights)
    count_K = nearest_counts(weight_K / weight_K.sum() * total, total)
    assert count_K.sum() == total
    assert np.abs(count_K - weight_K / weight_K.sum() * total).max() < 1 + FLOAT64["rtol"]


@settings(deadline=None)
@given(amounts=st.lists(st.floats(-3, 9), min_size=1, max_size=6), data=st.data())
def test_nearest_counts_keep_to_the_limits_and_the_total(amounts: list[float], data: st.DataObject) -> None:
    limits = data.draw(st.lists(st.integers(0, 9), min_size=len(amounts), max_size=len(amounts)))
    total = data.draw(st.integers(0, sum(limits)))
    count_K = nearest_counts(np.array(amounts), total, limit_K=np.array(limits))
    assert count_K.sum() == total
    assert (count_K >= 0).all()
    assert (count_K <= limits).all()


def test_counts_that_cannot_fill_the_total_are_refused() -> None:
    with pytest.raises(ValueError, match="limits that sum to 3 for a total of 4"):
        nearest_counts(np.ones(2), 4, limit_K=np.array([1, 2]))


@pytest.mark.parametrize("case", ["B=600,N=1", "B=600,N=2", "B=4000,N=1", "B=1200,N=4"])
def test_equal_weights_under_limits_of_epochs_are_unimax(case: str) -> None:
    given = vector("sampling_distributions")
    budget, epochs = (int(part.split("=")[1]) for part in case.split(","))
    size_K = np.array(given["inputs"]["sizes"])
    amount_K = fill(np.ones(len(size_K)), budget, limit_K=epochs * size_K)
    np.testing.assert_allclose(amount_K, given["expected"]["unimax"][case]["budget"], **FLOAT64)


def pour(weights: list[float], total: float, limits: list[float]) -> list[float]:
    """Naive: find the level at which the filled amounts sum to the total, by halving."""
    low, high = 0.0, 1e12
    for _ in range(300):
        level = (low + high) / 2
        filled = sum(min(limit, level * weight) for weight, limit in zip(weights, limits, strict=True))
        low, high = (level, high) if filled < total else (low, level)
    return [min(limit, high * weight) for weight, limit in zip(weights, limits, strict=True)]


@settings(deadline=None)
@given(data=st.data(), weights=st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0]), min_size=1, max_size=6))
def test_amounts_are_those_of_a_common_level(data: st.DataObject, weights: list[float]) -> None:
    limits = data.draw(st.lists(st.floats(0.5, 50), min_size=len(weights), max_size=len(weights)))
    room = sum(limit for limit, weight in zip(limits, weights, strict=True) if weight > 0)
    total = room * data.draw(st.floats(0.01, 1.5))
    amount_K = fill(np.array(weights), total, limit_K=np.array(limits))
    np.testing.assert_allclose(amount_K, pour(weights, total, limits), rtol=1e-6, atol=1e-6)  # of a halved level
    assert amount_K.sum() == pytest.approx(min(total, room))
