"""From proportions to amounts: whole counts that sum to a total, and amounts that no domain has more of than it can give."""

import numpy as np

# K domains


def nearest_counts(amount_K: np.ndarray, total: int, *, limit_K: np.ndarray | None = None) -> np.ndarray:
    """Counts from 0 to `limit_K` that sum to `total`, (K,) int64, each near its amount; ties to the lowest index.

    Each gets the whole part of its amount; what is left goes one each to the largest remainders (Hamilton's method).
    Within one of the amounts where these lie between 0 and the limits and sum to `total`; else those that are too small
    or too large by the least are moved first.
    """
    limit_K = np.full(len(amount_K), total) if limit_K is None else np.minimum(limit_K, total).astype(np.int64)
    if total < 0 or (limit_K < 0).any() or limit_K.sum() < total:
        raise ValueError(f"nearest_counts: limits that sum to {limit_K.sum()} for a total of {total}")
    wanted_K = np.clip(np.asarray(amount_K, dtype=np.float64), 0, limit_K)
    count_K = np.floor(wanted_K).astype(np.int64)
    while (missing := total - int(count_K.sum())) != 0:
        step = 1 if missing > 0 else -1
        can_move_K = count_K < limit_K if missing > 0 else count_K > 0
        order_K = np.argsort(step * (count_K - wanted_K), kind="stable")
        count_K[order_K[can_move_K[order_K]][: abs(missing)]] += step
    return count_K


def fill(weight_K: np.ndarray, total: float, *, limit_K: np.ndarray) -> np.ndarray:
    """Amounts in proportion to `weight_K`, none above its limit, that sum to `total`, (K,) float64.

    What a limit cuts off is spread over the others in proportion, until all are at their limits: the amounts then sum to
    less than `total`. A domain of weight 0 gets nothing. Equal weights and limits of N epochs give UniMax's budgets (Chung
    et al. 2023, https://arxiv.org/abs/2304.09151, algorithm 1).
    """
    weight_K, limit_K = np.asarray(weight_K, dtype=np.float64), np.asarray(limit_K, dtype=np.float64)
    amount_K, is_open_K, rest = np.zeros(len(weight_K)), weight_K > 0, float(total)
    while is_open_K.any():
        level_K = np.where(is_open_K, weight_K / weight_K[is_open_K].sum() * rest, 0.0)
        is_over_K = is_open_K & (level_K >= limit_K)
        if not is_over_K.any():
            return np.asarray(np.where(is_open_K, level_K, amount_K))
        amount_K[is_over_K] = limit_K[is_over_K]
        is_open_K &= ~is_over_K
        rest = max(float(total - amount_K.sum()), 0.0)
    return amount_K
