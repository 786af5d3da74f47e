"""Mean cosines of many rows with a few groups of target rows, streamed: memory stays at one block."""

import numpy as np

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.signals import Rows

# N train samples, M target samples, G groups of target rows, D columns, B rows of a block


def mean_unit(target: Rows, group_M: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean unit row of each group, (G, D) float64; a dot product with it is the mean cosine over the group.

    Raises DataError if a group has no measured row.
    """
    return _group_mean(target, group_M, num_groups, is_scaled=False)


def unit_mean(target: Rows, group_M: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean raw row of each group scaled to unit length, (G, D) float64: the cosine with the mean row."""
    mean_GD = _group_mean(target, group_M, num_groups, is_scaled=True)
    return np.asarray(mean_GD / np.maximum(np.linalg.norm(mean_GD, axis=1, keepdims=True), 1e-12))


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


def dot_rows(train: Rows, direction_GD: np.ndarray) -> np.ndarray:
    """Dot product of every unit train row with every direction, (N, G) float64; NaN for rows that were not measured."""
    out_NG = np.full((len(train), len(direction_GD)), np.nan)
    for row_B, value_BD, _ in train.blocks():
        out_NG[row_B] = value_BD @ direction_GD.T.astype(value_BD.dtype)
    return out_NG
