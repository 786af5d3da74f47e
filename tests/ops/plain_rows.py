"""Rows in memory, handed out as they are in blocks of any size and order, with some missing; counts what is read."""

import numpy as np


class PlainRows:
    def __init__(self, value_ND, block=None, order=None, absent=(), dtype=None) -> None:
        self.value_ND = np.asarray(value_ND, dtype)
        self.block = block or len(self.value_ND)
        order = np.arange(len(self.value_ND)) if order is None else np.asarray(order)
        self.order = order[~np.isin(order, list(absent))]
        self.num_passes = 0

    def __len__(self) -> int:
        return len(self.value_ND)

    @property
    def dim(self) -> int:
        return self.value_ND.shape[1]

    def blocks(self):
        self.num_passes += 1
        for start in range(0, len(self.order), self.block):
            row_B = self.order[start : start + self.block]
            yield row_B, self.value_ND[row_B], np.linalg.norm(self.value_ND[row_B], axis=1)
