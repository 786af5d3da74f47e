"""Zeroth-order scores against the given numbers and against loops written from the formula."""

import numpy as np
import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.plan import stable_order
from dataflex_tools.methods.zeroth import Zeroth, ZerothSettings
from tests.helpers import FLOAT64, vector
from tests.methods.builders import vectors

# Two-point differences of losses near 1 with eps 1e-3 keep about 12 digits; the vector states 1e-6
DIFFERENCE = {"rtol": 1e-6, "atol": 1e-9}
DATA = vector("zeroth_spsa")


def select(train_NQ, target_MQ, has_labels=None):
    signals = vectors(("zeroth", "zeroth"), [train_NQ], [target_MQ], [0] * len(target_MQ), has_labels_N=has_labels)
    return Zeroth(ZerothSettings()).select(signals, rng=np.random.default_rng(0))


def derivatives(points, directions):
    """Two-point derivatives of the vector's quadratic loss, (points, directions)."""
    given = DATA["inputs"]
    matrix, theta, eps = np.array(given["A"]), np.array(given["theta"]), given["eps"]

    def loss(at, z):
        return 0.5 * (at - z) @ matrix @ (at - z)

    return np.array(
        [
            [(loss(theta + eps * np.array(xi), np.array(z)) - loss(theta - eps * np.array(xi), np.array(z))) / (2 * eps)
             for xi in directions]
            for z in points
        ]
    )  # fmt: skip


def naive_scores(train_NQ, target_MQ):
    scores = []
    for p in train_NQ:
        total = 0.0
        for v in target_MQ:
            total += sum(a * b for a, b in zip(p, v, strict=True)) / len(p)
        scores.append(total / len(target_MQ))
    return scores


@pytest.mark.parametrize(
    ("directions", "score", "order"),
    [([DATA["inputs"]["xi"]], "score", "order_desc"),
     (DATA["inputs"]["xi_multi"], "score_with_4_directions", "order_with_4_directions")],
)  # fmt: skip
def test_scores_are_the_given_numbers(directions, score, order):
    train, target = (derivatives(DATA["inputs"][key], directions) for key in ("train_points", "val_points"))
    plan = select(train, target)
    np.testing.assert_allclose(plan.score_N, DATA["expected"][score], **DIFFERENCE)
    assert stable_order(plan.score_N).tolist() == DATA["expected"][order]


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_loops_of_the_formula_at_any_length(seed):
    rng = np.random.default_rng(seed)
    train, target = rng.normal(size=(9, 5)) * 10.0 ** rng.integers(-3, 4, size=(9, 1)), rng.normal(size=(4, 5))
    train[2] = 0
    np.testing.assert_allclose(select(train, target).score_N, naive_scores(train, target), **FLOAT64)


def test_one_direction_orders_the_pool_by_its_derivative_up_or_down():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(12, 1))
    for target in (np.array([[0.3], [2.0]]), np.array([[-5.0], [1.0]])):
        wanted = stable_order(train[:, 0] * np.sign(target.mean()))
        np.testing.assert_array_equal(stable_order(select(train, target).score_N), wanted)


def test_many_directions_approach_the_inner_product_of_the_gradients():
    rng = np.random.default_rng(0)
    gradients, wanted = rng.normal(size=(6, 8)), rng.normal(size=8)
    xi = rng.normal(size=(8, 20_000))
    error = select(gradients @ xi, (wanted @ xi)[None]).score_N - gradients @ wanted
    # variance (|g|^2 |v|^2 + (g.v)^2) / q of a product of two Gaussians
    spread = np.sqrt(((gradients**2).sum(1) * (wanted**2).sum() + (gradients @ wanted) ** 2) / 20_000)
    assert (np.abs(error) < 5 * spread).all()


def test_rows_without_labels_are_never_selected():
    plan = select(np.ones((3, 2)), np.ones((1, 2)), has_labels=[True, False, True])
    np.testing.assert_array_equal(plan.score_N, [1, -np.inf, 1])


def test_unlike_numbers_of_directions_are_an_error():
    with pytest.raises(DataError, match="2 directions on the pool and 3 on the target"):
        select(np.ones((3, 2)), np.ones((1, 3)))
