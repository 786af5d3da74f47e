"""Which row of the data set a trainer made is which row of the one it was given.

A trainer may tokenise, drop, shuffle or pack what it is given before it trains. The rows are numbered in a column
beforehand: where that comes through, each planned row is found wherever it stands; where it does not, nothing is trained.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from transformers import Trainer

from dataflex_tools.core.errors import ConfigError

# N rows given, M rows made, k rows that the plan can ask for

NUMBER = "plan_row_number"
_ARGUMENT = "train_dataset"
_NUM_LOOKED_AT = 64


class GivenRows:
    """The data set among the arguments of a trainer's `__init__`; `args` and `kwargs` are those to make the trainer with."""

    def __init__(self, classes: Sequence[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`classes`: what is to be initialised, in order of resolution."""
        self.args = args
        self.kwargs = kwargs
        self._leaves_it = next(cls for cls in classes if "__init__" in vars(cls)) is Trainer
        self._place = None if _ARGUMENT in kwargs else _position(classes, len(args))
        self.dataset = kwargs.get(_ARGUMENT) if self._place is None else args[self._place]
        self._passed = self.dataset

    def number(self) -> None:
        """Put the column of row numbers into the arguments, unless the trainer is known to leave its data set as it is."""
        if self._leaves_it or not _can_be_numbered(self.dataset):
            return
        self._passed = self.dataset.add_column(NUMBER, np.arange(len(self.dataset)))
        if self._place is None:
            self.kwargs = {**self.kwargs, _ARGUMENT: self._passed}
        else:
            self.args = (*self.args[: self._place], self._passed, *self.args[self._place + 1 :])

    def settle(self, made: Any, row_k: np.ndarray, name: str) -> tuple[Any, np.ndarray | None]:
        """(the data set to train on, the place in it of each given row, -1 of one dropped; None if rows did not move).

        `made`: the trainer's data set, of class `name`. Raises ConfigError if a row of `row_k` is not in it, or if which row
        is which cannot be seen.
        """
        if made is self._passed:
            return self.dataset, None
        size = "no" if self.dataset is None else f"{len(self.dataset):,}"
        if not isinstance(made, datasets.Dataset) or NUMBER not in made.column_names:
            raise ConfigError(
                f"{name} was given {size} rows and trains on {len(made):,} it made, and which is which cannot be seen: it "
                "packs, or drops columns; set packing=False, or give the chosen rows themselves, plan.dataset(...), to the "
                "trainer without PlanTrainerMixin"
            )
        number_M = np.asarray(made.select_columns([NUMBER]).with_format("numpy")[:][NUMBER], dtype=np.int64)
        place_N = np.full(len(self.dataset), -1, dtype=np.int64)
        place_N[number_M] = np.arange(len(number_M))
        if len(np.unique(number_M)) < len(number_M):
            raise ConfigError(
                f"{name} was given {size} rows and made {len(made):,} of them, some twice: the plan picks "
                "each once; give plan.dataset(...) to the trainer without PlanTrainerMixin"
            )
        lacking = row_k[place_N[row_k] < 0]
        if len(lacking):
            raise ConfigError(
                f"{name} dropped {len(lacking):,} of the {len(row_k):,} rows that the plan picked (first: row "
                f"{lacking[0]}), as rows that are cut until no label is left; raise its max_length, or leave them out of "
                "the data that is scored"
            )
        made = made.remove_columns(NUMBER)
        is_same = np.array_equal(place_N, np.arange(len(place_N)))
        return made, None if is_same else place_N


def check_loaded(dataset: Any, loaded: Any) -> None:
    """Raise ConfigError unless what a loader reads is `dataset`, give or take columns: a look at rows spread over it."""
    if loaded is dataset:
        return
    row_R = np.unique(np.linspace(0, len(dataset) - 1, _NUM_LOOKED_AT).astype(np.int64)).tolist()
    same = len(loaded) == len(dataset) and all(_agree(dataset[row], loaded[row]) for row in row_R)
    if not same:
        raise ConfigError(
            f"the loader reads {len(loaded):,} rows that are not those of train_dataset ({len(dataset):,}): the plan picks "
            "rows of that by number; leave the order and number of rows as they are"
        )


def _agree(record: Any, loaded: Any) -> bool:
    """Whether the columns that both have hold the same."""
    names = record.keys() & loaded.keys()
    return bool(names) and all(np.array_equal(record[name], loaded[name]) for name in names)


def _position(classes: Sequence[type], num_args: int) -> int | None:
    """Where the data set stands among positional arguments of the first class that names it; None if it is not there."""
    for cls in classes:
        names = list(inspect.signature(cls).parameters)
        if _ARGUMENT in names:
            place = names.index(_ARGUMENT)
            return place if place < num_args else None
    return None


def _can_be_numbered(dataset: Any) -> bool:
    """A transform that is set on a data set may not know the column."""
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return False
    if NUMBER in dataset.column_names:
        raise ConfigError(f"train_dataset has a column {NUMBER!r}, which the plan's trainer needs; rename it")
    return True
