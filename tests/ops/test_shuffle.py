"""Permutations of many ranges at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflex_tools.core import rng
from dataflex_tools.ops.shuffle import permuted_each, spread_each

SIZES = [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 255, 256, 257, 1000, 1024, 1025]


def full(size: int, key: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.arange(size), np.full(size, size), np.full(size, key, dtype=np.uint64)


@pytest.mark.parametrize("size", [*SIZES, 2**31, 2**40 + 1])
def test_each_is_the_permutation_of_core(size: int) -> None:
    index_B = np.unique(np.linspace(0, size - 1, 300).astype(np.int64))
    key = rng.key_of(7, size)
    found_B = permuted_each(index_B, np.full(len(index_B), size), np.full(len(index_B), key, dtype=np.uint64))
    np.testing.assert_array_equal(found_B, rng.permuted(index_B, size, key))


def test_ranges_do_not_touch_each_other() -> None:
    parts = [full(size, rng.key_of(1, size)) for size in SIZES]
    together = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    for shuffle in (permuted_each, spread_each):
        np.testing.assert_array_equal(shuffle(*together), np.concatenate([shuffle(*part) for part in parts]))


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_spread_is_a_permutation(size: int, key: int) -> None:
    np.testing.assert_array_equal(np.sort(spread_each(*full(size, key))), np.arange(size))


def spread_by_hand(size: int, key: int) -> list[int]:
    """Naive: hand the indices from range to halved range, each with a tally."""
    given: dict[tuple[int, int], list[int]] = {}
    found = []
    for _ in range(size):
        first, length = 0, size
        while length > 1:
            half, tally = length // 2, given.setdefault((first, length), [0, 0])
            mixed = int(rng.scramble(np.array([first << 32 | length], dtype=np.uint64) ^ np.uint64(key))[0])
            tally[0] += 1
            if (tally[0] * half + (mixed >> 33) % length) // length > tally[1]:
                tally[1] += 1
                length = half
            else:
                first, length = first + half, length - half
        found.append(first)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_spread_is_that_of_indices_handed_down_one_by_one(size: int) -> None:
    assert spread_each(*full(size, 12345)).tolist() == spread_by_hand(size, 12345)


def test_spread_visits_every_stretch_in_proportion() -> None:
    # 10 halvings lie between the whole and a stretch of 1/16, at both of its ends; measured: 1.4
    seen_B = spread_each(*full(10_000, 99))
    for stretch in range(16):
        inside_B = np.cumsum(seen_B // 625 == stretch)
        assert np.abs(inside_B - np.arange(1, 10_001) / 16).max() < 4


def test_orders_differ_by_key_and_are_not_sorted() -> None:
    one, other = (spread_each(*full(100, key)) for key in (1, 2))
    assert not np.array_equal(one, other)
    assert np.abs(np.corrcoef(one, np.arange(100))[0, 1]) < 0.3
