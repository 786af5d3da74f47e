"""Plans: what a method decides. The select facet is a score per row; a budget turns it into rows at train time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """Score of each pool row, higher is better, (N,) float64; -inf means never. `detail` holds further columns, (N,).

    `facts` are JSON values a reader of the artifact should know of how it was decided, e.g. {"recall": 0.98}.
    """

    score_N: np.ndarray
    detail: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if np.isnan(self.score_N).any():
            raise ConfigError(f"{int(np.isnan(self.score_N).sum())} scores are NaN; a method must exclude with -inf")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much to take: exactly one of a fraction in (0, 1], a number of samples, or a number of tokens.

    `unit` says of what the fraction is: all pool samples, or all pool tokens.
    """

    alternatives: ClassVar = ("fraction", "num_samples", "num_tokens")

    fraction: float | None = None
    num_samples: int | None = None
    num_tokens: int | None = None
    unit: str = "samples"

    def __post_init__(self) -> None:
        given = [name for name in self.alternatives if getattr(self, name) is not None]
        wanted = "give exactly one of --fraction, --num-samples, --num-tokens (budget.fraction, ...)"
        require(len(given) == 1, f"budget: found {' and '.join(given) or 'none'}; {wanted}")
        require(self.unit in ("samples", "tokens"), f"budget.unit is {self.unit!r}, wanted 'samples' or 'tokens'")
        require(self.unit == "samples" or self.fraction is not None, "budget.unit has no effect without budget.fraction")
        if self.fraction is not None:
            require(0 < self.fraction <= 1, f"budget.fraction is {self.fraction}, wanted a value in (0, 1]")
        for name in ("num_samples", "num_tokens"):
            value = getattr(self, name)
            require(value is None or value > 0, f"budget.{name} is {value}, wanted a positive number")


RECOMMENDED = Budget(fraction=0.05)  # what LESS's authors train on


def stable_order(score_N: np.ndarray) -> np.ndarray:
    """Rows from the highest score to the lowest, (N,) int64; ties go to the lowest row."""
    return np.argsort(-np.asarray(score_N, dtype=np.float64), kind="stable").astype(np.int64)


def best_copies(score_N: np.ndarray, content_N: np.ndarray) -> np.ndarray:
    """Of each row the best-scored row of the same content, ties to the lowest, (N,) int64; equal codes are one content."""
    order = stable_order(score_N)
    _, first_K, code_N = np.unique(np.asarray(content_N)[order], return_index=True, return_inverse=True)
    best_N = np.empty_like(order)
    best_N[order] = order[first_K[code_N]]
    return best_N


def select_rows(
    score_N: np.ndarray, num_tokens_N: np.ndarray, budget: Budget, *, content_N: np.ndarray | None = None
) -> np.ndarray:
    """The rows a budget buys, best first, (k,) int64.

    A fraction of samples takes int(fraction * N), at least one; a token budget takes rows from the best on while the
    sum stays within it. With `content_N` each content is taken and counted once, by its best row, and N is the number of
    contents. Raises ConfigError if more is asked than rows with a finite score exist.
    """
    order = stable_order(score_N)
    if content_N is not None:
        order = order[best_copies(score_N, content_N)[order] == order]
    total, pool_tokens = len(order), np.asarray(num_tokens_N)[order].sum()
    order = order[np.isfinite(np.asarray(score_N)[order])]
    if budget.num_tokens is not None or budget.unit == "tokens":
        limit = budget.num_tokens or int(budget.fraction * pool_tokens)  # type: ignore[operator]
        if budget.num_tokens is not None and limit > num_tokens_N[order].sum():
            most = int(num_tokens_N[order].sum())
            raise ConfigError(f"budget asks for {limit:,} tokens, the pool has {most:,}; ask for at most {most:,}")
        count = int(np.searchsorted(np.cumsum(num_tokens_N[order]), limit, side="right"))
        if count == 0:
            best = int(num_tokens_N[order[0]])
            raise ConfigError(f"a budget of {limit:,} tokens is less than the {best:,} of the best sample; ask for more")
        return np.asarray(order[:count])
    # int() as in LESS's write_selected_data; the epsilon keeps 0.29 * 100 at 29
    wanted = budget.num_samples or max(1, int(budget.fraction * total + 1e-9))  # type: ignore[operator]
    if wanted > len(order):
        kind = "rows" if total == len(score_N) else "different samples"
        raise ConfigError(
            f"budget asks for {wanted:,} samples, {len(order):,} of {total:,} {kind} can be selected; ask for at most "
            f"{len(order):,}"
        )
    return np.asarray(order[:wanted])
