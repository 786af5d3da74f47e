"""What every method declares, so that stages, `flextools methods` and the contract tests can treat all alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Side, Signals


class Selector(ABC):
    """Decides which samples to train on. Subclasses set the class attributes and write `select`.

    `Settings` is a frozen dataclass; `cost` says in words what must be measured; `paper` is author, year, link.
    """

    kind: ClassVar[str] = "selector"
    Settings: ClassVar[type]
    paper: ClassVar[str]
    cost: ClassVar[str]
    uses_target: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False  # imitates another artifact's scores
    ranks_all_rows: ClassVar[bool] = True  # False: some rows with labels may get -inf too

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def needs(self) -> tuple[Need, ...]:
        """The signals to measure before `select`; none by default."""
        return ()

    def rows_needed(self, signals: Signals) -> Mapping[tuple[str, Side], np.ndarray]:
        """Ascending rows to measure of each need that is `of_chosen_rows`, by (kind, side).

        Called once, by the main rank, when all other signals are there; `signals` holds those. `select` is then called on
        the same object with the same `Rows` and may find more rows measured than were asked for.
        """
        return {}

    @abstractmethod
    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score every pool row; -inf for rows that must never be taken, e.g. those without labels."""
