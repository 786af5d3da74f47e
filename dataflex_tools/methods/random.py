"""Random: every subset of a size is equally likely. The control that each other method has to beat.

Uniform sampling without replacement; a random order, of which any budget takes the first rows.
Departs from DataFlex's random selector, which may draw with replacement: here a row is taken at most once,
and of rows with the same content one.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Signals
from dataflex_tools.methods.base import Selector

# N pool samples


@dataclass(frozen=True, kw_only=True)
class RandomSettings:
    """Nothing to set: the seed of the score stage is the only input."""


class Random(Selector):
    """A random order of the pool; score N - 1 - place, so that the budget takes a prefix."""

    Settings = RandomSettings
    paper = "control"
    cost = "none"
    scores_copies_alike = True

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Scores are a permutation of 0..N-1; rows without labels get -inf, and copies the score of the first of them."""
        score_N = rng.permutation(len(signals.pool)).astype(np.float64)
        if signals.pool.copy_of_N is not None:
            score_N = score_N[signals.pool.copy_of_N]  # a sample that stands there twice is no likelier
        return Selection(np.where(signals.pool.has_labels_N, score_N, -np.inf))
