"""Keyed permutations of ranges of different sizes, a place at a time, for many ranges at once."""

import numpy as np

from dataflex_tools.core import rng

# B places, each of a range of its own; w those still on their way; R rounds

_STEP = 0x9E3779B97F4A7C15  # splitmix64's, as in core.rng


def permuted_each(index_B: np.ndarray, size_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """Image of each index under the permutation of range(its size) by its key, (B,) int64: `core.rng.permuted` of each.

    `index_B`, `size_B`: int64, each index below its size; `key_B`: uint64.
    """
    # the number of bits of size - 1, halved and rounded up; frexp is exact for sizes below 2^53
    bits_B = np.frexp(np.maximum(size_B - 1, 1).astype(np.float64))[1]
    half_B = np.maximum(1, (bits_B + 1) // 2).astype(np.uint64)
    mask_B = (np.uint64(1) << half_B) - np.uint64(1)
    number_R1 = np.arange(1, rng.ROUNDS + 1, dtype=np.uint64)[:, None]
    round_key_RB = rng.scramble(key_B + number_R1 * np.uint64(_STEP))
    out_B, walking_w = index_B.astype(np.uint64), np.arange(len(index_B))
    while len(walking_w):
        half_w, mask_w = half_B[walking_w], mask_B[walking_w]
        left_w, right_w = out_B[walking_w] >> half_w, out_B[walking_w] & mask_w
        for round_key_w in round_key_RB[:, walking_w]:
            left_w, right_w = right_w, left_w ^ (rng.scramble(right_w ^ round_key_w) & mask_w)
        out_B[walking_w] = (left_w << half_w) | right_w
        walking_w = walking_w[out_B[walking_w] >= size_B[walking_w].astype(np.uint64)]
    return out_B.astype(np.int64)


def spread_each(index_B: np.ndarray, size_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """Image of each index under a keyed permutation of range(its size) that spreads evenly, (B,) int64.

    The range is halved again and again; a part that has got m of the indices so far has given floor(m a + f) of them to
    its lower half (a: the half's share; f: drawn from the key), so the first indices of a permutation fall on each part
    in proportion to its size, to one per halving. With the range in order of some quantity, its mean over the first m
    indices is near that of all long before the end: a van der Corput sequence with random shifts, for any size.
    `index_B`, `size_B`: int64, each index below its size, sizes below 2^31; `key_B`: uint64.
    """
    first_B, size_B, index_B = np.zeros(len(index_B), dtype=np.int64), size_B.copy(), index_B.copy()
    open_w = np.flatnonzero(size_B > 1)
    while len(open_w):
        first_w, size_w, index_w = first_B[open_w], size_B[open_w], index_B[open_w]
        lower_w = size_w >> 1
        node_w = (first_w.astype(np.uint64) << np.uint64(32)) | size_w.astype(np.uint64)
        shift_w = (rng.scramble(node_w ^ key_B[open_w]) >> np.uint64(33)).astype(np.int64) % size_w
        before_w, rest_w = np.divmod(index_w * lower_w + shift_w, size_w)
        is_lower_w = rest_w + lower_w >= size_w
        first_B[open_w] = np.where(is_lower_w, first_w, first_w + lower_w)
        index_B[open_w] = np.where(is_lower_w, before_w, index_w - before_w)
        size_B[open_w] = np.where(is_lower_w, lower_w, size_w - lower_w)
        open_w = open_w[size_B[open_w] > 1]
    return first_B
