"""Directions are normal, independent, and the same however and wherever they are drawn."""

import numpy as np
import torch

from dataflex_tools.ops import directions
from dataflex_tools.ops.directions import gaussian_direction

CPU = torch.device("cpu")


def drawn(size=20_001, *, seed=0, number=0, name="layer.weight"):
    return gaussian_direction(size, seed=seed, number=number, name=name, device=CPU).numpy().astype(np.float64)


def test_elements_are_standard_normal():
    x = drawn(200_000)
    assert np.isfinite(x).all()
    # five standard errors of each moment of 200,000 normal numbers
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * (variance / len(x)) ** 0.5
    for bound, share in ((1, 0.158655), (2, 0.022750), (3, 0.001350)):
        for tail in ((x > bound).mean(), (x < -bound).mean()):
            assert abs(tail - share) < 5 * (share / len(x)) ** 0.5


def test_directions_of_other_seeds_numbers_names_and_halves_are_unrelated():
    base = drawn()
    others = [drawn(seed=1), drawn(number=1), drawn(name="layer.bias")]
    half = 10_001
    pairs = [(base, other) for other in others] + [(base[: half - 1], base[half:]), (base[:-1], base[1:])]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / len(one) ** 0.5
        assert abs(np.corrcoef(one**2, other**2)[0, 1]) < 5 / len(one) ** 0.5


def test_a_direction_does_not_depend_on_the_size_of_blocks(monkeypatch):
    whole = drawn(1001)
    monkeypatch.setattr(directions, "_BLOCK_WORDS", 7)
    np.testing.assert_array_equal(drawn(1001), whole)


def test_small_sizes_have_their_length():
    assert [len(drawn(size)) for size in (1, 2, 3)] == [1, 2, 3]


def test_torch_s_own_generator_is_not_touched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn()
    assert torch.equal(torch.rand(3), expected)
