"""Random streams by name, and permutations that are computed instead of stored."""

import hashlib
from typing import Any

import numpy as np

ROUNDS = 6  # Feistel rounds; 4 make a pseudo-random permutation (Luby and Rackoff 1988), 2 more are margin


def key_of(seed: int, *names: str | int) -> int:
    """A 64-bit key for (seed, names): different purposes never share a stream."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A generator for one purpose, a function of (seed, names) alone."""
    return np.random.Generator(np.random.Philox(key=key_of(seed, *names)))


def scramble(x: Any) -> Any:
    """uint64 numbers mixed well, one to one."""
    # splitmix64 finaliser (Steele, Lea and Flood 2014): full avalanche in three multiplies
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permuted(index_B: np.ndarray, size: int, key: int) -> np.ndarray:
    """Images of `index_B` under a keyed permutation of range(size), (B,) int64.

    A Feistel network over the next even power of two, walked until the value falls inside the range, so any position of
    a shuffled epoch is found in constant time and memory. Raises ValueError for an index outside range(size).
    """
    index_B = np.asarray(index_B, dtype=np.int64)
    if index_B.size and (index_B.min() < 0 or index_B.max() >= size):
        raise ValueError(f"permuted: index outside range({size})")
    half_bits = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    with np.errstate(over="ignore"):
        round_keys = scramble(np.uint64(key) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    out = index_B.astype(np.uint64)
    walking = np.ones(out.shape, dtype=bool)
    while walking.any():
        x = out[walking]
        left, right = x >> half, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (scramble(right ^ round_key) & mask)
        out[walking] = (left << half) | right
        walking = out >= np.uint64(size)
    return out.astype(np.int64)
