"""A swarm of runs: mixtures drawn from Dirichlet distributions, and the search for one that is better than all of them.

The draw of the runs is that of mixture_config/synthesize_mixture.py of sail-sg/regmix, https://arxiv.org/abs/2407.01492.
"""

from collections.abc import Callable

import numpy as np

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.shares import tempered

# S runs, K domains, C candidates or drawn mixtures, G groups of them, E exchanges

Objective = Callable[[np.ndarray], np.ndarray]  # (C, K) mixtures to (C,), lower is better
_NUM_STRENGTHS = 15  # as in sail-sg/regmix, like the next
_NUM_DRAWS = 51_200  # there 100 for each of 512 runs; one number for all, so that fewer runs are the first of more
_CANDIDATE_STRENGTHS = (1.0, 200.0)
_CANDIDATE_EXPONENTS = (1.0, 0.5, 0.25)
_FIRST_STEP = 0.128
_LAST_STEP = 0.001
_SUM_TOLERANCE = 1e-9
_LEAST_GAIN = 1e-12  # of the objective: less is rounding


def draw_swarm(
    prior_K: np.ndarray,
    num_runs: int,
    *,
    exponent: float,
    strengths: tuple[float, float],
    max_upsampling: float,
    min_share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Different mixtures drawn around prior ** exponent, (num_runs, K); rows sum to 1. Fewer are the first of more.

    Each has one of 15 strengths between the two, log-spaced. A draw with a share above `max_upsampling` * prior is left out;
    shares are then rounded as in `rounded`. Raises ConfigError if fewer than `num_runs` different ones come out.
    """
    base_K = tempered(prior_K, exponent)
    strength_G = np.geomspace(*strengths, _NUM_STRENGTHS)
    count_G = rng.multinomial(_NUM_DRAWS, np.full(_NUM_STRENGTHS, 1 / _NUM_STRENGTHS))
    drawn = [rng.dirichlet(base_K * strength, count) for strength, count in zip(strength_G, count_G, strict=True)]
    kept_CK = within_bound(np.concatenate(drawn), np.minimum(max_upsampling * prior_K, 1))
    unique_CK = np.unique(rounded(kept_CK, min_share), axis=0)
    if len(unique_CK) < num_runs:
        raise ConfigError(
            f"{len(unique_CK)} different mixtures came out of {_NUM_DRAWS:,} draws, {num_runs} were asked for; lower "
            "num_runs or min_share, or raise max_upsampling"
        )
    chosen_SK = unique_CK[rng.permutation(len(unique_CK))[:num_runs]]
    return np.asarray(chosen_SK / chosen_SK.sum(axis=1, keepdims=True))


def within_bound(weight_CK: np.ndarray, bound_K: np.ndarray) -> np.ndarray:
    """The rows without a share above its bound."""
    return np.asarray(weight_CK[(weight_CK <= bound_K).all(axis=1)])


def rounded(weight_CK: np.ndarray, min_share: float) -> np.ndarray:
    """Shares in units of `min_share`, (C, K) int64: those below it are 0, the others scaled to sum to 1 and rounded.

    Rows sum to about 1 / min_share. Rows whose shares are all below it are left out.
    """
    weight_CK = np.where(weight_CK < min_share, 0.0, weight_CK)
    weight_CK = weight_CK[weight_CK.any(axis=1)]
    return np.asarray(np.rint(weight_CK / weight_CK.sum(axis=1, keepdims=True) / min_share).astype(np.int64))


def candidates(prior_K: np.ndarray, num: int, *, rng: np.random.Generator) -> np.ndarray:
    """`num` mixtures from all over the simplex, (num, K); rows sum to 1.

    Drawn around prior ** 1, 1/2 and 1/4 in turn, with each of 15 total strengths from 1 to 200. Dirichlet(prior), whose
    strength is 1, would leave most of a mixture to a few domains: right where one domain's loss counts, not for a mean.
    """
    strengths = np.geomspace(*_CANDIDATE_STRENGTHS, _NUM_STRENGTHS)
    around = [tempered(prior_K, exponent) * strength for exponent in _CANDIDATE_EXPONENTS for strength in strengths]
    count_G = [len(part) for part in np.array_split(np.arange(num), len(around))]
    return np.concatenate([rng.dirichlet(alpha_K, count) for alpha_K, count in zip(around, count_G, strict=True)])


def upper_bounds(prior_K: np.ndarray, weight_SK: np.ndarray, *, max_upsampling: float) -> np.ndarray:
    """Largest share of each domain that a fit can speak of, (K,): `max_upsampling` natural ones, and what some run had.

    It is never below the natural share.
    """
    seen_K = np.maximum(weight_SK.max(axis=0), prior_K)
    return np.asarray(np.minimum(np.minimum(max_upsampling * prior_K, 1), seen_K))


def bounded(weight_CK: np.ndarray, bound_K: np.ndarray) -> np.ndarray:
    """The rows within their bounds: what a bound cuts off is spread over the other domains of the row in proportion.

    Rows whose domains cannot hold 1 go; rows within their bounds stay as they are. As `ops.proportions.fill`, for many.
    """
    is_over_C = (weight_CK > bound_K).any(axis=1)
    over_CK = weight_CK[is_over_C]
    is_full_CK = np.zeros(over_CK.shape, dtype=bool)
    for _ in bound_K:
        open_CK = np.where(is_full_CK, 0.0, over_CK)
        rest_C = 1 - np.where(is_full_CK, bound_K, 0.0).sum(axis=1)
        open_C = open_CK.sum(axis=1)
        scale_C = np.divide(rest_C, open_C, out=np.zeros(len(open_C)), where=open_C > 0)
        level_CK = np.where(is_full_CK, bound_K, open_CK * scale_C[:, None])
        if not (is_new_CK := level_CK > bound_K).any():
            break
        is_full_CK |= is_new_CK
    result_CK = weight_CK.copy()
    result_CK[is_over_C] = np.minimum(level_CK, bound_K)
    return np.asarray(result_CK[np.abs(result_CK.sum(axis=1) - 1) < _SUM_TOLERANCE])


def average_best(candidate_CK: np.ndarray, value_C: np.ndarray, num_best: int) -> np.ndarray:
    """Mean of the candidates of lowest value, (K,); ties to the first."""
    return np.asarray(candidate_CK[np.argsort(value_C, kind="stable")[:num_best]].mean(axis=0))


def refine(objective: Objective, start_K: np.ndarray, bound_K: np.ndarray) -> np.ndarray:
    """A mixture from which no exchange of a share between two domains lowers the objective, (K,), found from `start_K`.

    Each time the exchange that lowers it most is made; the share is halved, from 0.128 to 0.001, when none does. A domain
    gives no more than it has and takes no more than `bound_K` allows.
    """
    weight_K = start_K
    value = float(objective(start_K[None])[0])
    step = _FIRST_STEP
    while step > _LAST_STEP / 2:
        moved_EK = _exchanged(weight_K, step, bound_K)
        value_E = objective(moved_EK)
        best = int(np.argmin(value_E))
        if value_E[best] < lower(value):
            weight_K = moved_EK[best]
            value = float(value_E[best])
        else:
            step /= 2
    return weight_K


def lower(value: float) -> float:
    """What is lower than a value by more than rounding."""
    return value - _LEAST_GAIN * max(1.0, abs(value))


def divergence(weight_CK: np.ndarray, prior_K: np.ndarray) -> np.ndarray:
    """KL(weight || prior) of each row, nats, (C,); 0 log 0 is 0, and the prior is positive."""
    ratio_CK = np.where(weight_CK > 0, weight_CK / prior_K, 1.0)
    return np.asarray((weight_CK * np.log(ratio_CK)).sum(axis=1))


def _exchanged(weight_K: np.ndarray, step: float, bound_K: np.ndarray) -> np.ndarray:
    """The mixtures with `step`, or what is possible of it, moved from one domain to another, (K * (K - 1), K)."""
    give, take = np.nonzero(~np.eye(len(weight_K), dtype=bool))
    amount_E = np.minimum(np.minimum(step, weight_K[give]), np.maximum(bound_K - weight_K, 0)[take])
    moved_EK = np.repeat(weight_K[None], len(give), axis=0)
    moved_EK[np.arange(len(give)), give] -= amount_E
    moved_EK[np.arange(len(give)), take] += amount_E
    return moved_EK
