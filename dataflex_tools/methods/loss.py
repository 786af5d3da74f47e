"""Loss: draw samples at random, those with a low, medium or high loss under the current model several times as often.

The loss selector of DataFlex (OpenDCAI, loss_selector.py, commit 3c13e37; https://github.com/OpenDCAI/DataFlex), which has
no paper of its own. Checked by the numbers of tests/vectors/loss_selector.json, computed independently from its formula.
Departs from it: a sample without a loss has probability 0 (there 1e-12 ** (1/T), drawn now and then); no 1e-12 is added to
the weights; a focus bucket without samples is an error unless `when_empty="dataflex"` asks for its uniform draw; the order
is drawn once and every budget takes a prefix of it.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.draw import draw_scores

# N pool samples

BUCKETS = ("low", "medium", "high")
WHEN_EMPTY = ("error", "dataflex")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """`focus`: the bucket drawn more often. `quantiles`: of the loss, where low ends and where high begins.
    `focus_weight`: weight of a sample in the focus bucket, 1 elsewhere. `temperature`: probability is proportional to
    weight ** (1 / temperature). `when_empty`: what a focus bucket without samples is, an error or `dataflex` (uniform)."""

    focus: str = "high"
    quantiles: tuple[float, float] = (0.33, 0.66)
    focus_weight: float = 5.0
    temperature: float = 1.0
    when_empty: str = "error"

    def __post_init__(self) -> None:
        require(self.focus in BUCKETS, f"loss: focus is {self.focus!r}, wanted one of {', '.join(BUCKETS)}")
        low, high = self.quantiles
        require(0 < low < high < 1, f"loss: quantiles are {low} and {high}, wanted 0 < low < high < 1")
        require(self.focus_weight > 0, f"loss: focus_weight is {self.focus_weight}, wanted more than 0")
        require(self.temperature > 0, f"loss: temperature is {self.temperature}, wanted more than 0")
        require(
            self.when_empty in WHEN_EMPTY,
            f"loss: when_empty is {self.when_empty!r}, wanted one of {', '.join(WHEN_EMPTY)}",
        )


class Loss(Selector):
    """A random order drawn without replacement; `probability` in `detail` is that of the first draw."""

    Settings = LossSettings
    paper = "none; DataFlex, https://github.com/OpenDCAI/DataFlex"
    cost = "one forward per pool sample"

    def needs(self) -> tuple[Need, ...]:
        """Mean loss of the pool."""
        return (Need("loss", "pool"),)

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Draw the order. Raises ConfigError if no sample is in the focus bucket, DataError if no sample has a loss."""
        (columns,) = signals.columns["loss", "pool"]
        loss_N = np.where(signals.pool.has_labels_N, columns["loss"].astype(np.float64), np.nan)
        probability_N = self._probability(loss_N)
        return Selection(draw_scores(probability_N, rng=rng), {"probability": probability_N, "loss": loss_N})

    def _probability(self, loss_N: np.ndarray) -> np.ndarray:
        has_loss_N = np.isfinite(loss_N)
        if not has_loss_N.any():
            raise DataError(f"loss: none of {len(loss_N):,} pool samples has a finite loss")
        low, high = np.quantile(loss_N[has_loss_N], self.settings.quantiles)
        bucket_N = (loss_N > low).astype(np.int64) + (loss_N > high)
        in_focus_N = has_loss_N & (bucket_N == BUCKETS.index(self.settings.focus))
        if self.settings.when_empty == "error" and not in_focus_N.any():
            raise ConfigError(
                f"loss: no sample is in bucket {self.settings.focus!r} (low: up to {low:.6g} nats, high: over {high:.6g}): "
                "too many losses are equal; choose another focus or other quantiles, or when_empty=dataflex (uniform draw)"
            )
        weight_N = np.where(in_focus_N, self.settings.focus_weight, 1.0) ** (1 / self.settings.temperature) * has_loss_N
        return np.asarray(weight_N / weight_N.sum())
