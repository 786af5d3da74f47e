"""How near each row lies to a row that comes before it in its group: the measure of semantic duplication."""

import numpy as np

# J rows of a group in their order of precedence, D columns, B rows at a time

_BLOCK_NUMBERS = 2**22  # similarities held at a time: 16 MiB of float32


def cosine_to_earlier(value_JD: np.ndarray, *, limit: float | None = None) -> np.ndarray:
    """Highest cosine of each unit row with any row before it, at least 0, (J,); the first row has 0.

    With `limit`, only with rows before it that are kept, a row being kept if that cosine is at most `limit` (greedy).
    """
    out_J = np.zeros(len(value_JD))
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
            kept_J[j] = out_J[j] <= limit
    return out_J
