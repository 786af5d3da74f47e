"""Orders of the pool in which several queries take turns."""

import numpy as np

from dataflex_tools.core.signals import Rows
from dataflex_tools.ops.stream import pieces

# N pool rows, M queries, K places of a list, B rows of a piece

LIST_BYTES = 512 * 2**20  # lists held while they are made; 64 queries then rank 260,000 rows in one pass


def by_columns(row_MK: np.ndarray) -> np.ndarray:
    """Distinct rows in the order met when all queries name their nearest, then all their second nearest, and so on."""
    walk = row_MK.T.ravel()
    return np.asarray(walk[np.sort(np.unique(walk, return_index=True)[1])])


def by_turns(pool: Rows, query_MD: np.ndarray, *, allowed_N: np.ndarray, list_bytes: int = LIST_BYTES) -> np.ndarray:
    """All measured rows that are allowed, in the order taken when each query in turn takes the best row still free.

    Best is the highest cosine (rounded to float32, so that equal samples tie), then the lowest row. Lists longer than
    `list_bytes` are made in several passes over the pool, each over the rows still free; the order does not depend on it.
    """
    free_N, turn = allowed_N.copy(), 0
    order: list[int] = []
    while num_free := int(free_N.sum()):
        # a list is made from twice as many 8-byte keys, and joining them copies
        wanted = max(1, min(list_bytes // (32 * len(query_MD)), num_free))
        row_MK = _best_rows(pool, query_MD, free_N, wanted)
        if not row_MK.shape[1]:
            break  # what is still free was not measured
        turn = _deal(row_MK, free_N, order, turn)
    return np.array(order, dtype=np.int64)


def _deal(row_MK: np.ndarray, free_N: np.ndarray, order: list[int], turn: int) -> int:
    """Take rows in turns until a query's list ends; adds to `order`, clears `free_N`, returns whose turn it was."""
    num_queries, length = row_MK.shape
    next_M = [0] * num_queries
    while True:
        place = next_M[turn]
        while place < length:
            is_free = free_N[row_MK[turn, place : place + 64]]  # 64 at once: a step in Python costs as much as 64 in numpy
            step = int(is_free.argmax())
            if is_free[step]:
                break
            place += 64
        else:
            return turn
        place += step
        row = int(row_MK[turn, place])
        order.append(row)
        free_N[row] = False
        next_M[turn] = place + 1
        turn = (turn + 1) % num_queries


def _best_rows(pool: Rows, query_MD: np.ndarray, allowed_N: np.ndarray, wanted: int) -> np.ndarray:
    """Rows with the highest cosine for each query, best first, (M, K); K is `wanted`, or all rows if there are fewer."""
    key_MK = np.empty((len(query_MD), 0), dtype=np.uint64)
    held = [key_MK]
    query64_DM = query_MD.astype(np.float64).T
    for row_B, value_BD in pieces(pool, allowed_N):
        held.append(_sort_keys((value_BD.astype(np.float64) @ query64_DM).T.astype(np.float32), row_B))
        if sum(keys.shape[1] for keys in held) >= 2 * wanted:
            held = [_smallest(held, wanted)]
    key_MK = _smallest(held, wanted)
    key_MK.sort(axis=1)
    return (key_MK & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _smallest(held: list[np.ndarray], wanted: int) -> np.ndarray:
    key_MK = np.concatenate(held, axis=1)
    if key_MK.shape[1] > wanted:
        key_MK.partition(wanted - 1, axis=1)
        key_MK = key_MK[:, :wanted].copy()
    return key_MK


def _sort_keys(cosine_MB: np.ndarray, row_B: np.ndarray) -> np.ndarray:
    """One integer per pair that sorts like (cosine descending, row ascending)."""
    bits = np.ascontiguousarray(cosine_MB + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return np.asarray((~ascending).astype(np.uint64) << np.uint64(32) | row_B.astype(np.uint64))
