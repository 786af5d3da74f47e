"""Multiplicative updates of domain weights: exponentiated gradient with smoothing, the step that most mixers share."""

import numpy as np

# K domains


def exponentiated(weight_K: np.ndarray, score_K: np.ndarray, *, eta: float = 1.0, smoothing: float = 0.0) -> np.ndarray:
    """(1 - c) softmax(log w + eta s) + c / K with c = `smoothing`, (K,) float64, sums to 1.

    `weight_K`: non-negative, not all 0, of any scale; a weight of 0 is 0 before smoothing. `score_K`: finite; only
    differences between scores matter, and no size of them overflows.
    """
    weight_K, score_K = np.asarray(weight_K, dtype=np.float64), np.asarray(score_K, dtype=np.float64)
    log_K = np.log(weight_K, out=np.full(len(weight_K), -np.inf), where=weight_K > 0) + eta * score_K
    raised_K = np.exp(log_K - log_K.max())  # the largest is 1
    return np.asarray((1 - smoothing) * raised_K / raised_K.sum() + smoothing / len(weight_K))
