"""Mean cosines of many rows with a few groups of target rows, streamed: memory stays at one block."""

from collections.abc import Sequence

import numpy as np

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Rows, Samples

# N train samples, M target samples, G groups of target rows, D columns, B rows of a block, C checkpoints

ADAM = ("optimizer_exact", "less_official", "dataflex")  # the conventions of ops/adam.py, named without importing torch


def mean_unit(target: Rows, group_M: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean unit row of each group, (G, D) float64; a dot product with it is the mean cosine over the group.

    Raises DataError if a group has no measured row.
    """
    return _group_mean(target, group_M, num_groups, is_scaled=False)


def unit_mean(target: Rows, group_M: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean raw row of each group scaled to unit length, (G, D) float64: the cosine with the mean row."""
    mean_GD = _group_mean(target, group_M, num_groups, is_scaled=True)
    return np.asarray(mean_GD / np.maximum(np.linalg.norm(mean_GD, axis=1, keepdims=True), 1e-12))


def raw_mean(target: Rows, group_M: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean raw row of each group, (G, D) float64."""
    return _group_mean(target, group_M, num_groups, is_scaled=True)


def _group_mean(target: Rows, group_M: np.ndarray, num_groups: int, *, is_scaled: bool) -> np.ndarray:
    sum_GD = np.zeros((num_groups, target.dim))
    count_G = np.zeros(num_groups)
    for row_B, value_BD, norm_B in target.blocks():
        rows_BD = value_BD.astype(np.float64) * norm_B[:, None] if is_scaled else value_BD.astype(np.float64)
        np.add.at(sum_GD, group_M[row_B], rows_BD)
        np.add.at(count_G, group_M[row_B], 1)
    if (count_G == 0).any():
        raise DataError(f"target groups {np.flatnonzero(count_G == 0).tolist()} have no sample with a label")
    return sum_GD / count_G[:, None]


def dot_rows(train: Rows, direction_GD: np.ndarray, *, is_scaled: bool = False) -> np.ndarray:
    """Dot product of every train row with every direction, (N, G) float64; NaN for rows that were not measured.

    Rows are taken at unit length, or at their own length if `is_scaled`.
    """
    out_NG = np.full((len(train), len(direction_GD)), np.nan)
    for row_B, value_BD, norm_B in train.blocks():
        dot_BG = value_BD @ direction_GD.T.astype(value_BD.dtype)
        out_NG[row_B] = dot_BG * norm_B[:, None] if is_scaled else dot_BG
    return out_NG


AGGREGATES = {"mean_of_cosines": mean_unit, "cosine_of_mean": unit_mean}


def influence(
    train_C: Sequence[Rows], target_C: Sequence[Rows], *, weight_C: np.ndarray, target: Samples, aggregate: str
) -> np.ndarray:
    """Cosine of every train row with every target group, weighted over checkpoints, (N, G) float64.

    `aggregate`: `mean_of_cosines` over the group's rows, or `cosine_of_mean`. A zero row has cosine 0.
    """
    num_groups, direction = len(target.group_names), AGGREGATES[aggregate]
    score_NG = np.zeros((len(train_C[0]), num_groups))
    for weight, train, rows in zip(weight_C, train_C, target_C, strict=True):
        score_NG += weight * dot_rows(train, direction(rows, target.group_N, num_groups))
    return score_NG


def strongest_group(score_NG: np.ndarray, *, pool: Samples, target: Samples) -> Selection:
    """A row's score is its highest over groups; `score_<group>` columns in `detail` when there is more than one.

    Rows without labels get -inf everywhere.
    """
    score_NG = np.where(pool.has_labels_N[:, None], score_NG, -np.inf)
    names = target.group_names
    detail = {f"score_{name}": score_NG[:, g] for g, name in enumerate(names)} if len(names) > 1 else {}
    return Selection(score_NG.max(axis=1), detail)
