"""How near each row lies to a row that comes before it in its group: the measure of semantic duplication."""

import numpy as np

# J rows of a group in their order of precedence, D columns, B rows at a time

_BLOCK_NUMBERS = 2**22  # similarities held at a time: 16 MiB of float32


def cosine_to_earlier(value_JD: np.ndarray, *, limit: float | None = None) -> np.ndarray:
    """Highest cosine of each unit row with any row before it, at least 0, (J,); the first row has 0.

    With `limit`, only with rows before it that are kept, a row being kept if that cosine is at most `limit` (greedy). Equal
    rows have a cosine of 1, which the product of rounded rows need not be.
    """
    out_J = np.zeros(len(value_JD))
    equal_J = _first_equal(value_JD)
    kept_J = np.ones(len(value_JD), dtype=bool)
    step = max(1, _BLOCK_NUMBERS // max(1, len(value_JD)))
    for start in range(0, len(value_JD), step):
        stop = min(start + step, len(value_JD))
        cosine_BJ = value_JD[start:stop] @ value_JD[:stop].T
        if limit is None:
            cosine_BJ[np.arange(stop) >= np.arange(start, stop)[:, None]] = 0
            out_J[start:stop] = cosine_BJ.max(axis=1, initial=0)
            continue
        for j in range(start, stop):
            out_J[j] = cosine_BJ[j - start, :j].max(initial=0, where=kept_J[:j])
            if equal_J[j] < j:  # kept or not as the first of its kind, and then removed by it
                out_J[j] = 1.0 if kept_J[equal_J[j]] else out_J[equal_J[j]]
            kept_J[j] = out_J[j] <= limit
    if limit is None:
        out_J[equal_J < np.arange(len(out_J))] = 1.0
    return out_J


def _first_equal(value_JD: np.ndarray) -> np.ndarray:
    """The first row that is bit for bit the same as each row, (J,) int64."""
    row_J = np.ascontiguousarray(value_JD)
    key_J = row_J.view(np.dtype((np.void, row_J.dtype.itemsize * row_J.shape[1]))).reshape(-1)
    _, first_K, code_J = np.unique(key_J, return_index=True, return_inverse=True)
    return np.asarray(first_K[code_J])
