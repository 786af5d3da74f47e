"""The order of domains: against a walk with fractions, and its laws by counting."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflex_tools.ops.interleave import Interleaving, whole_weights

SLIMPAJAMA = [54.1, 28.7, 4.2, 3.7, 3.4, 3.1, 2.8]
ROUNDING = 1e-3  # shares are cut off at 2^-62: by 2^-12 at 2^50 items, per level of the tree


def random_weights(seed: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kinds = [rng.random(size), rng.exponential(size=size), 10 ** -rng.uniform(0, 4, size), rng.integers(1, 4, size)]
    return np.asarray(kinds[seed % 4], dtype=np.float64)


def order_of(weight_K: np.ndarray) -> Interleaving:
    return Interleaving(whole_weights(weight_K))


def running_counts(weight_K: np.ndarray, num_items: int) -> np.ndarray:
    """Counts after 0, 1, ... items, (num_items + 1, K), by counting codes."""
    code_B, _ = order_of(weight_K).at(np.arange(num_items))
    count_BK = np.zeros((num_items + 1, len(weight_K)), dtype=np.int64)
    count_BK[1:] = np.cumsum(code_B[:, None] == np.arange(len(weight_K)), axis=0)
    return count_BK


def walked(order: Interleaving, whole: list[int], first: int, num_items: int) -> list[tuple[int, int]]:
    """Naive: hand the items from node to node, each with a tally; before `first`, tallies come from the formula."""
    names = [code for code, weight in enumerate(whole) if weight]
    weights, tallies = [whole[code] for code in names], {}
    for left, right in order._pairs:
        weights.append(weights[left] + weights[right])
    shares = [Fraction(weights[left] * 2**62 // (weights[left] + weights[right]), 2**62) for left, right in order._pairs]

    def given_left(node: int, items: int) -> int:
        return (items * shares[node - len(names)] + Fraction(1, 2)).__floor__()

    def set_tallies(node: int, items: int) -> None:
        tallies[node] = items
        if node >= len(names):
            left, right = order._pairs[node - len(names)]
            set_tallies(left, given_left(node, items))
            set_tallies(right, items - given_left(node, items))

    root = len(weights) - 1
    set_tallies(root, first)
    found = []
    for _ in range(num_items):
        node = root
        while node >= len(names):
            tallies[node] += 1
            left, right = order._pairs[node - len(names)]
            node = left if given_left(node, tallies[node]) > tallies[left] else right
        found.append((names[node], tallies[node]))
        tallies[node] += 1
    return found


@pytest.mark.parametrize("first", [0, 1, 10**6, 10**12, 2**50 - 3])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_order_is_that_of_items_handed_down_one_by_one(size: int, first: int) -> None:
    whole = whole_weights(random_weights(size, size))
    order = Interleaving(whole)
    code_B, ordinal_B = order.at(np.arange(first, first + 300))
    assert list(zip(code_B.tolist(), ordinal_B.tolist(), strict=True)) == walked(order, whole, first, 300)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12))
def test_counts_stay_within_the_bound_after_every_item(seed: int, size: int) -> None:
    weight_K = random_weights(seed, size)
    bound_K, count_BK = order_of(weight_K).bound_K, running_counts(weight_K, 2000)
    off_BK = np.abs(count_BK - np.arange(2001)[:, None] * (weight_K / weight_K.sum()))
    assert (off_BK.max(axis=0) <= bound_K + ROUNDING).all()


@settings(deadline=None, max_examples=60)
@given(weights=st.lists(st.floats(1e-9, 1), min_size=1, max_size=4))
def test_up_to_four_domains_are_bound_to_less_than_one_item(weights: list[float]) -> None:
    assert order_of(np.array(weights)).bound_K.max() < 1


@pytest.mark.parametrize("weights", [SLIMPAJAMA, [1.0] * 20, [2.0**-k for k in range(6)], [0.9, 0.05, 0.03, 0.01, 0.01]])
def test_common_mixtures_are_bound_to_less_than_one_item(weights: list[float]) -> None:
    assert order_of(np.array(weights)).bound_K.max() < 1


@pytest.mark.parametrize("size", [8, 20, 60, 200])
def test_many_random_weights_are_bound_to_little_more_than_one_item(size: int) -> None:
    # 1.15 is the largest found in some thousands of weights like these
    assert max(order_of(random_weights(seed, size)).bound_K.max() for seed in range(12)) < 1.2


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0.001, 0.999), start=st.integers(0, 3000), length=st.integers(0, 3000))
def test_any_window_of_two_domains_is_within_one_item(share: float, start: int, length: int) -> None:
    count_BK = running_counts(np.array([share, 1 - share]), 6000)
    got_K = count_BK[start + length] - count_BK[start]
    assert np.abs(got_K - length * np.array([share, 1 - share])).max() < 1


def test_any_window_of_many_domains_is_within_twice_the_bound() -> None:
    weight_K = random_weights(5, 15)
    bound_K, count_BK = order_of(weight_K).bound_K, running_counts(weight_K, 1500)
    drift_BK = count_BK - np.arange(1501)[:, None] * (weight_K / weight_K.sum())
    # the worst window is between the largest and the smallest drift
    assert (drift_BK.max(axis=0) - drift_BK.min(axis=0) <= 2 * bound_K + ROUNDING).all()


@pytest.mark.parametrize("position", [10**12, 2**50])
def test_counts_follow_the_weights_far_out(position: int) -> None:
    weight_K = random_weights(2, 20)
    order = order_of(weight_K)
    exact = [Fraction(weight) for weight in weight_K.tolist()]
    for shift in range(50):
        count_K = order.counts(position + shift)
        assert count_K.sum() == position + shift
        for code, weight in enumerate(exact):
            wanted = (position + shift) * weight / sum(exact)
            assert abs(int(count_K[code]) - wanted) <= order.bound_K[code] + ROUNDING


def test_counts_and_places_agree() -> None:
    order = order_of(random_weights(1, 9))
    for position in [0, 5, 10**9, 2**49]:
        (code,), (ordinal,) = order.at(np.array([position]))
        before_K, after_K = order.counts(position), order.counts(position + 1)
        assert (after_K - before_K).tolist() == [int(k == code) for k in range(9)]
        assert before_K[code] == ordinal


def test_a_domain_of_weight_zero_never_comes() -> None:
    order = order_of(np.array([0.0, 0.3, 0.0, 0.7]))
    assert set(order.at(np.arange(1000))[0].tolist()) == {1, 3}
    assert order.counts(1000).tolist() == [0, 300, 0, 700]
    assert order.bound_K[[0, 2]].tolist() == [0, 0]


def test_equal_weights_take_turns() -> None:
    code_B, _ = order_of(np.ones(8)).at(np.arange(80))
    for turn in code_B.reshape(10, 8):
        assert sorted(turn.tolist()) == list(range(8))


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any),
    owed=st.lists(st.floats(-2, 2), min_size=9, max_size=9),
)
def test_whole_counts_are_met_whatever_is_owed(counts: list[int], owed: list[float]) -> None:
    order = Interleaving(counts, owed[: len(counts)])
    for rounds in (1, 2, 10**9):
        assert order.counts(rounds * sum(counts)).tolist() == [rounds * count for count in counts]


def test_what_is_owed_comes_early() -> None:
    whole = whole_weights(np.array([0.1, 0.9]))
    first = [int(np.flatnonzero(Interleaving(whole, [owed, -owed]).at(np.arange(20))[0] == 0)[0]) for owed in (-0.4, 0, 0.4)]
    assert first == sorted(first, reverse=True)
    assert first[0] > first[2]


def test_whole_weights_keep_every_bit() -> None:
    weight_K = np.array([0.1, 1 / 3, 0.0, 1e-3, 1e-300])
    whole = whole_weights(weight_K)
    assert whole[2] == 0
    assert whole[4] == 1  # too small to tell, but not lost
    assert Fraction(whole[0], whole[1]) == Fraction(0.1) / Fraction(1 / 3)
    assert 2**61 <= max(whole) < 2**62
