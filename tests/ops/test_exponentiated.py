"""The multiplicative update of domain weights."""

import math

import numpy as np
import pytest

from dataflex_tools.ops.exponentiated import exponentiated
from tests.helpers import FLOAT64


def naive(weight, score, eta, smoothing):
    raised = [w * math.exp(eta * s) for w, s in zip(weight, score, strict=True)]
    return [(1 - smoothing) * r / sum(raised) + smoothing / len(weight) for r in raised]


@pytest.mark.parametrize("seed", range(5))
def test_it_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    weight_K, score_K = rng.random(6), rng.normal(size=6)
    for eta, smoothing in ((1.0, 0.0), (0.1, 1e-3), (10.0, 0.05), (2.0, 1.0)):
        found_K = exponentiated(weight_K, score_K, eta=eta, smoothing=smoothing)
        np.testing.assert_allclose(found_K, naive(weight_K, score_K, eta, smoothing), **FLOAT64)


def test_only_differences_of_scores_and_ratios_of_weights_matter():
    weight_K, score_K = np.array([0.2, 0.3, 0.5]), np.array([1.0, 2.0, 0.5])
    moved_K = exponentiated(weight_K * 7, score_K + 100, eta=2.0, smoothing=0.1)
    np.testing.assert_allclose(moved_K, exponentiated(weight_K, score_K, eta=2.0, smoothing=0.1), **FLOAT64)


@pytest.mark.parametrize("size", [20.0, 1e4, 1e300])
def test_no_score_overflows(size):
    with np.errstate(all="raise", under="ignore"):
        weight_K = exponentiated(np.array([0.1, 0.1, 0.8]), np.array([0.0, size, -size]), smoothing=0.03)
    np.testing.assert_allclose(weight_K, [0.01, 0.98, 0.01], rtol=1e-6)


def test_a_weight_of_0_is_0_before_smoothing():
    with np.errstate(all="raise"):
        np.testing.assert_allclose(exponentiated(np.array([0.0, 1, 1]), np.array([50.0, 1, 1])), [0, 0.5, 0.5], **FLOAT64)
        smoothed_K = exponentiated(np.array([0.0, 1, 1]), np.array([50.0, 1, 1]), smoothing=0.3)
    np.testing.assert_allclose(smoothed_K, [0.1, 0.45, 0.45], **FLOAT64)
