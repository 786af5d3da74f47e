"""What a method reads: rows of a signal, streamed in blocks, and what is known of the samples they belong to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

# N pool samples, M target samples, D columns of a signal, B rows of a block, C checkpoints

Side = Literal["pool", "target"]


class Rows(Protocol):
    """One vector for each of N samples; only a block of them is in memory at a time."""

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int:
        """Number of columns D."""
        ...

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(row_B int64, value_BD float32, norm_B float32), each row once, in storage order.

        `value_BD` has unit rows (a zero row stays zero) and `norm_B` their length before scaling. Samples that were not
        measured because they have no label are left out.
        """
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows from an array in memory, (N, D) of any length; for small targets, tests and examples."""

    raw_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.raw_ND)

    @property
    def dim(self) -> int:
        """Number of columns D."""
        return int(self.raw_ND.shape[1])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """One block that holds all rows, scaled to unit length; keeps float64 input in float64."""
        norm_N = np.linalg.norm(self.raw_ND, axis=1)
        unit_ND = self.raw_ND / np.maximum(norm_N, 1e-12)[:, None]
        yield np.arange(len(self.raw_ND)), unit_ND, norm_N


@dataclass(frozen=True)
class Need:
    """A signal a method asks for: its kind, on which side, with which settings, at each warm-up checkpoint or once.

    `of_chosen_rows`: measured after all other signals, for the rows that the method then names (`Selector.rows_needed`).
    """

    kind: str
    side: Side
    settings: Mapping[str, Any] = field(default_factory=dict)
    at_checkpoints: bool = False
    of_chosen_rows: bool = False


@dataclass(frozen=True)
class Samples:
    """What is known of N samples without a model. `num_tokens_N`: tokens trained on per sample, prompt included.

    `copy_of_N`: of each row the first row of the same content, itself if it is that; None if no two rows are alike.
    """

    num_tokens_N: np.ndarray
    has_labels_N: np.ndarray
    group_N: np.ndarray
    group_names: tuple[str, ...]
    copy_of_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.num_tokens_N)


@dataclass(frozen=True)
class Signals:
    """All that a method may look at. `group` is the domain of a pool sample and the subtask of a target sample.

    `rows[kind, side]` holds one `Rows` per checkpoint (one in all for a signal that needs no warm-up) for signals of one
    vector per sample; `columns[kind, side]` likewise holds {name: (N,) array} for signals of numbers (`loss`: mean and sum
    over label tokens, in nats), NaN where a sample was not measured.
    `checkpoint_weight_C` sums to 1; `reference_score_N` is another artifact's score, for controls that imitate it.
    """

    pool: Samples
    target: Samples | None = None
    rows: Mapping[tuple[str, Side], Sequence[Rows]] = field(default_factory=dict)
    columns: Mapping[tuple[str, Side], Sequence[Mapping[str, np.ndarray]]] = field(default_factory=dict)
    checkpoint_weight_C: np.ndarray = field(default_factory=lambda: np.ones(1))
    reference_score_N: np.ndarray | None = None
