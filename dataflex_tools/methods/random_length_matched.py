"""Length-matched random: a random pick with the same length histogram as another artifact's selection, at every budget.

Long samples train more tokens per pick, and influence scores favour certain lengths; a gain that this control shows too
is a gain of length, not of content (length as a confounder of LESS is discussed in Xia et al. 2024,
https://arxiv.org/abs/2402.04333, section 2). The construction is this project's own.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import Selection, best_copies
from dataflex_tools.core.signals import Signals
from dataflex_tools.methods.base import Selector

# N pool samples


@dataclass(frozen=True, kw_only=True)
class RandomLengthMatchedSettings:
    """`num_bins`: length bins of about N / num_bins samples each; more match closer and repeat more rows."""

    num_bins: int = 50

    def __post_init__(self) -> None:
        require(self.num_bins >= 1, f"num_bins is {self.num_bins}, wanted at least 1")


class RandomLengthMatched(Selector):
    """Scores of the reference, shuffled among samples of about the same length.

    The k best rows then hold exactly as many samples of each length bin as the reference's k best, for every k.
    """

    Settings = RandomLengthMatchedSettings
    paper = "control"
    cost = "none"
    uses_reference = True
    scores_copies_alike = True

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Permute the reference's scores inside each length bin. Raises ConfigError without a reference."""
        if signals.reference_score_N is None:
            raise ConfigError("random_length_matched needs the artifact to imitate: --reference artifacts/less")
        score_N = np.asarray(signals.reference_score_N, dtype=np.float64).copy()
        row_N = np.arange(len(score_N))
        copy_of_N = signals.pool.copy_of_N
        best_N = row_N if copy_of_N is None else best_copies(score_N, copy_of_N)  # the rows that a selection counts
        open_N = np.flatnonzero(signals.pool.has_labels_N & np.isfinite(score_N) & (best_N == row_N))
        for bin_rows in _length_bins(signals.pool.num_tokens_N[open_N], self.settings.num_bins):
            rows = open_N[bin_rows]
            score_N[rows] = score_N[rng.permutation(rows)]
        score_N[~signals.pool.has_labels_N] = -np.inf
        return Selection(score_N[best_N])


def _length_bins(num_tokens_N: np.ndarray, num_bins: int) -> list[np.ndarray]:
    """Positions in bins of nearly equal count by length; equal lengths are never parted."""
    order = np.argsort(num_tokens_N, kind="stable")
    edges = num_tokens_N[order][(np.arange(1, num_bins) * len(order)) // num_bins]
    bin_N = np.searchsorted(np.unique(edges), num_tokens_N, side="right")
    return [np.flatnonzero(bin_N == b) for b in np.unique(bin_N)]
