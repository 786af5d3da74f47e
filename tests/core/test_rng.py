"""Streams are named; permutations are computed and are permutations."""

import numpy as np
import pytest

from dataflex_tools.core.rng import generator, key_of, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_every_position_is_hit_once(size):
    np.testing.assert_array_equal(np.sort(permuted(np.arange(size), size, key_of(3, "order", 0))), np.arange(size))


def test_a_position_does_not_depend_on_what_else_is_asked():
    key = key_of(0, "order", 1)
    whole = permuted(np.arange(1000), 1000, key)
    np.testing.assert_array_equal(permuted(np.array([998, 3]), 1000, key), whole[[998, 3]])


def test_a_billion_rows_need_no_table():
    out = permuted(np.array([0, 10**9 - 1]), 10**9, key_of(0, "x"))
    assert ((out >= 0) & (out < 10**9)).all()


def test_places_are_uniform():
    # chi-square of where row 0 of 10 goes over 5000 keys; 9 degrees of freedom, 99.9 % point 27.9
    count = np.bincount([int(permuted(np.array([0]), 10, key_of(k, "u"))[0]) for k in range(5000)], minlength=10)
    assert ((count - 500) ** 2 / 500).sum() < 27.9


def test_an_index_outside_the_range_is_an_error():
    with pytest.raises(ValueError, match="outside"):
        permuted(np.array([5]), 5, 0)


def test_names_part_streams_and_repeat_them():
    assert generator(0, "a").random() == generator(0, "a").random()
    assert generator(0, "a").random() != generator(0, "b").random()
    assert key_of(0, "a", 1) != key_of(0, "a", 2)
