"""Delta loss: draw mostly from a window of samples sorted by how much the warm-up lowered their loss.

The delta-loss selector of DataFlex (OpenDCAI, delta_loss_selector.py, commit 3c13e37;
https://github.com/OpenDCAI/DataFlex), which has no paper of its own. There the window slides during training, from the
largest drops to the smallest; offline it stands at one place of that path, halfway by default (this project's choice).
Checked by the numbers of tests/vectors/delta_loss_selector.json: windows from its code, probabilities from its formula.
Departs from it: both losses come from warm-up checkpoints, the first and the last; equal drops are sorted by row; samples
without a loss have probability 0 (there their drop is infinite or NaN); a window without samples is an error unless
`when_empty="dataflex"` asks for its uniform draw; the order is drawn once and every budget takes a prefix of it.
"""

import math
from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.plan import Selection, stable_order
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector
from dataflex_tools.ops.draw import draw_scores

# N pool samples

WHEN_EMPTY = ("error", "dataflex")


@dataclass(frozen=True, kw_only=True)
class DeltaLossSettings:
    """`update` of `updates`: where on its path the window stands, 0 at the largest drops (DataFlex: update index - 1 and
    update_times - 1). `window`: its share of the pool. `steepness`: of the logistic path. `outside`: weight of a sample
    outside, 1 inside. `when_empty`: what a window without samples is, an error or `dataflex` (uniform)."""

    update: int = 1
    updates: int = 2
    window: float = 0.2
    steepness: float = 10.0
    outside: float = 0.025
    when_empty: str = "error"

    def __post_init__(self) -> None:
        require(self.updates >= 1, f"delta_loss: updates is {self.updates}, wanted at least 1")
        require(0 <= self.update <= self.updates, f"delta_loss: update is {self.update}, wanted 0 to {self.updates}")
        require(0 < self.window <= 1, f"delta_loss: window is {self.window}, wanted a value in (0, 1]")
        require(self.steepness > 0, f"delta_loss: steepness is {self.steepness}, wanted more than 0")
        require(0 <= self.outside < 1, f"delta_loss: outside is {self.outside}, wanted a value in [0, 1)")
        require(
            self.when_empty in WHEN_EMPTY,
            f"delta_loss: when_empty is {self.when_empty!r}, wanted one of {', '.join(WHEN_EMPTY)}",
        )


class DeltaLoss(Selector):
    """A random order drawn without replacement; `probability` in `detail` is that of the first draw."""

    Settings = DeltaLossSettings
    paper = "none; DataFlex, https://github.com/OpenDCAI/DataFlex"
    cost = "warm-up LoRA training; one forward per pool sample and checkpoint"
    ranks_all_rows = False  # with outside=0

    def needs(self) -> tuple[Need, ...]:
        """Mean loss of the pool at every warm-up checkpoint; the first and the last are used."""
        return (Need("loss", "pool", at_checkpoints=True),)

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Draw the order. Raises ConfigError if there is one checkpoint, or no sample in the window."""
        loss_C = [columns["loss"].astype(np.float64) for columns in signals.columns["loss", "pool"]]
        if len(loss_C) < 2:
            raise ConfigError(f"delta_loss compares 2 warm-up checkpoints, found {len(loss_C)}; train at least 2 epochs")
        drop_N = np.where(signals.pool.has_labels_N, loss_C[0] - loss_C[-1], np.nan)
        probability_N = self._probability(drop_N)
        return Selection(draw_scores(probability_N, rng=rng), {"probability": probability_N, "delta_loss": drop_N})

    def _probability(self, drop_N: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(np.isfinite(drop_N))
        if len(rows) == 0:
            raise DataError(f"delta_loss: none of {len(drop_N):,} pool samples has a finite loss at both checkpoints")
        rows = rows[stable_order(drop_N[rows])]
        num_fallen = int((drop_N[rows] >= 0).sum())  # the first negative drop ends the window
        start, end = _window(len(rows), self.settings)
        if self.settings.when_empty == "error" and start >= min(end, num_fallen):
            raise ConfigError(
                f"delta_loss: the window is places {start:,} to {end:,} of {len(rows):,} samples sorted by loss drop, and "
                f"only the first {num_fallen:,} have no higher loss than before; lower update ({self.settings.update} of "
                f"{self.settings.updates}), widen window ({self.settings.window}), or when_empty=dataflex for a uniform draw"
            )
        weight_N = np.zeros(len(drop_N))
        weight_N[rows] = self.settings.outside
        weight_N[rows[start : min(end, num_fallen)]] = 1.0
        return np.asarray(weight_N / weight_N.sum())


def _window(num_samples: int, settings: DeltaLossSettings) -> tuple[int, int]:
    """Start and end of the window, end excluded; the logistic path never reaches either end of the pool."""
    place = 1 / (1 + math.exp(-settings.steepness * (settings.update / settings.updates - 0.5)))
    size = settings.window * num_samples
    return int(place * (num_samples - size)), int(place * (num_samples - size) + size)
