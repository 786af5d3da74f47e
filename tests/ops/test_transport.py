"""The assignment of TSDS against the given numbers and against its heap written as in the paper."""

import heapq

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops import transport
from dataflex_tools.ops.transport import assign, kernel_density
from tests.helpers import FLOAT64, vector

DATA = vector("tsds_assignment")


def naive_assign(distance, rows, density, num_rows, alpha, scale):
    num, length = len(distance), len(distance[0])
    weight = [[1 / rho for rho in row] for row in density]
    heap = [(weight[j][0], 0, j) for j in range(num)]
    heapq.heapify(heap)
    cost, last, spread = [0.0] * num, [0] * num, None
    while heap:
        filled, k, j = heapq.heappop(heap)
        spread = filled
        cost[j] = distance[j][k + 1] * filled - sum(distance[j][i] * weight[j][i] for i in range(k + 1))
        if alpha / scale * sum(cost) >= (1 - alpha) * num:
            break
        last[j] = k
        if k < length - 2:
            heapq.heappush(heap, (filled + weight[j][k + 1], k + 1, j))
    probability = [0.0] * num_rows
    for j in range(num):
        left = 1 / num
        for k in range(last[j] + 1):
            amount = min(left, weight[j][k] / (num * spread))
            probability[rows[j][k]] += amount
            left -= amount
        probability[rows[j][last[j] + 1]] += left
    return probability, spread, last


def check_hand(given, density, expected):
    for name, wanted in expected.items():
        alpha, scale = (float(part.split("=")[1]) for part in name.split(","))
        plan = assign(
            np.array(given["top_dists"]), np.array(given["top_indices"]), density, num_rows=8, alpha=alpha, scale=scale
        )
        assert plan.spread == pytest.approx(wanted["s"], rel=1e-9)
        assert plan.last_M.tolist() == wanted["last_k"], name
        np.testing.assert_allclose(plan.probability_N, wanted["probs"], **FLOAT64)


def test_hand_lists_give_the_published_numbers():
    given = DATA["inputs"]["hand"]
    check_hand(given, np.array(given["top_kdes"]), DATA["expected"]["hand"])


def test_hand_lists_without_densities_give_the_published_numbers():
    check_hand(DATA["inputs"]["hand_kde1"], np.ones((2, 4)), DATA["expected"]["hand_kde1"])


def test_a_neighbour_gets_no_more_than_is_left_where_the_official_code_fails():
    given, edge, wanted = DATA["inputs"]["hand"], DATA["inputs"]["edge"], DATA["expected"]["edge"]
    lists = np.array(given["top_dists"]), np.array(given["top_indices"]), np.array(edge["top_kdes"])
    plan = assign(*lists, num_rows=8, alpha=edge["alpha"], scale=edge["C"])
    np.testing.assert_allclose(plan.probability_N, wanted["probs"], **FLOAT64)
    assert plan.spread == pytest.approx(wanted["s"])


@pytest.mark.parametrize("alpha", [0, 0.2, 0.5, 0.8, 0.95, 1])
@pytest.mark.parametrize("seed", range(4))
def test_the_assignment_equals_the_heap_of_the_paper(alpha, seed):
    rng = np.random.default_rng(seed)
    distance = np.sort(rng.uniform(0, 4, size=(5, 9)), axis=1)
    rows = np.array([rng.permutation(30)[:9] for _ in range(5)])
    density = rng.uniform(1, 4, size=(5, 9))
    plan = assign(distance, rows, density, num_rows=30, alpha=alpha, scale=2.0)
    probability, spread, last = naive_assign(distance.tolist(), rows.tolist(), density.tolist(), 30, alpha, 2.0)
    np.testing.assert_allclose(plan.probability_N, probability, **FLOAT64)
    assert plan.spread == pytest.approx(spread)
    assert plan.last_M.tolist() == last
    assert plan.probability_N.sum() == pytest.approx(1, abs=1e-12)
    assert plan.num_saturated == last.count(7)


def test_rounding_leaves_no_mass_on_rows_that_get_none():
    distance, rows = np.tile([0.0, 1, 2, 3], (3, 1)), np.arange(12).reshape(3, 4)
    plan = assign(distance, rows, np.full((3, 4), 1.7), num_rows=12, alpha=0.0, scale=1.0)
    assert ((plan.probability_N == 0) | (plan.probability_N > 1e-9)).all()
    assert plan.probability_N.reshape(3, 4)[:, 3].tolist() == [0, 0, 0]


def test_two_neighbours_are_the_least():
    with pytest.raises(ConfigError, match="at least 2 neighbours of each target sample, found 1"):
        assign(np.ones((2, 1)), np.zeros((2, 1), int), np.ones((2, 1)), num_rows=3, alpha=0.5, scale=5.0)
    plan = assign(np.array([[1.0, 2.0]]), np.array([[2, 0]]), np.ones((1, 2)), num_rows=3, alpha=0.5, scale=5.0)
    assert plan.probability_N.tolist() == [0, 0, 1]


@pytest.mark.parametrize("block_bytes", [1, 8 * 40 * 7, 2**26])
@pytest.mark.parametrize("count", [1, 5, 40, 99])
def test_densities_equal_the_loop(monkeypatch, block_bytes, count):
    monkeypatch.setattr(transport, "PIECE_BYTES", block_bytes)
    value_UD = np.random.default_rng(0).normal(size=(40, 3))
    wanted = []
    for a in value_UD:
        kernel = sorted((max(0.0, 1 - float(((a - b) ** 2).sum()) / 1.5**2) for b in value_UD), reverse=True)
        wanted.append(sum(kernel[:count]))
    np.testing.assert_allclose(kernel_density(value_UD, sigma=1.5, num_neighbours=count), wanted, **FLOAT64)


def test_density_is_never_below_one():
    value_UD = np.random.default_rng(0).normal(size=(50, 700)).astype(np.float32) * 3
    assert kernel_density(value_UD, sigma=1e-6, num_neighbours=9).min() >= 1
    assert kernel_density(value_UD, sigma=0, num_neighbours=9).tolist() == [1] * 50
