"""Whether the weights that a training went through say something, and whether they had come to rest."""

from collections.abc import Sequence

import numpy as np

# K domains, S states of a trajectory

# half the sum of differences to the plan, of the second half of the states and of the last one
_DRIFT = 0.1
_SWING = 0.2
_EVEN = 0.01  # within one percent of the same weight for all


def unsettled(names: Sequence[str], weight_SK: np.ndarray, plan_K: np.ndarray) -> str:
    """How the last weights differ from the `plan_K` that is taken from them, "" if by little."""
    late_K, last_K = weight_SK[-max(1, len(weight_SK) // 2) :].mean(axis=0), weight_SK[-1]
    drift, swing = (float(np.abs(weight_K - plan_K).sum() / 2) for weight_K in (late_K, last_K))
    if drift <= _DRIFT and swing <= _SWING:
        return ""
    worst = int(np.abs(last_K - plan_K).argmax())
    return (
        f"the weights have not settled: {names[worst]!r} had {last_K[worst]:.1%} after the last of {len(weight_SK) - 1:,} "
        f"updates, {late_K[worst]:.1%} on average over the second half and {plan_K[worst]:.1%} in the plan"
    )


def is_uniform(weight_K: np.ndarray) -> bool:
    """Whether several domains have the same weight to a hundredth of it."""
    return len(weight_K) > 1 and bool(np.abs(len(weight_K) * weight_K - 1).max() <= _EVEN)
