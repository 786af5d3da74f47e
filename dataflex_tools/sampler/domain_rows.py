"""The rows of each domain in the order they come up: each once per epoch, in an order that is computed, not stored."""

import hashlib
from collections.abc import Sequence

import numpy as np

from dataflex_tools.core import rng
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.shuffle import permuted_each, spread_each

# K domains, n rows of one domain, B samples, b samples of one domain

_CHUNK = 2**17  # rows hashed at once: 1 MiB
_MOST_UNEVEN = 2**31 - 1  # rows of a domain whose lengths differ


class DomainRows:
    """Sample i of domain k is a row of its epoch i // n: number i % n of a shuffle keyed by (seed, k, epoch).

    `size_K`: rows, (K,) int64; `mean_tokens_K`: of a row, (K,), 1 where no tokens are given. Where tokens differ between
    rows the shuffle is even over lengths at every scale, so that the mean of the samples so far is near the domain's own
    long before an epoch ends; the rows in order of length are then held, 4 bytes each below row 2^32.
    """

    def __init__(
        self, rows_K: Sequence[range | np.ndarray], *, seed: int, num_tokens_K: Sequence[np.ndarray] | None = None
    ) -> None:
        """`rows_K`: rows of each domain; `num_tokens_K`: (n,) tokens of each of them.

        Raises ConfigError for rows that are no vector or negative, and for tokens that do not fit the rows or are all 0.
        """
        self._seed = seed
        self._rows_K = [_checked_rows(rows, code) for code, rows in enumerate(rows_K)]
        self.size_K = np.array([len(rows) for rows in self._rows_K], dtype=np.int64)
        self.mean_tokens_K = np.ones(len(self._rows_K))
        self._is_even_K = np.zeros(len(self._rows_K), dtype=bool)
        if num_tokens_K is not None:
            if len(num_tokens_K) != len(self._rows_K):
                raise ConfigError(f"tokens of {len(num_tokens_K)} domains are given, and rows of {len(self._rows_K)}")
            for code, num_tokens_n in enumerate(num_tokens_K):
                self._set_tokens(code, np.asarray(num_tokens_n))
        ranges = [rows if isinstance(rows, range) else range(0) for rows in self._rows_K]
        self._is_range_K = np.array([isinstance(rows, range) for rows in self._rows_K])
        self._first_K = np.array([rows.start for rows in ranges], dtype=np.int64)
        self._step_K = np.array([rows.step for rows in ranges], dtype=np.int64)

    def _set_tokens(self, code: int, num_tokens_n: np.ndarray) -> None:
        rows = self._rows_K[code]
        if num_tokens_n.shape != (len(rows),):
            raise ConfigError(f"domain {code} has {len(rows)} rows, and tokens of shape {num_tokens_n.shape}")
        if not len(rows):
            return
        least, most, total = int(num_tokens_n.min()), int(num_tokens_n.max()), int(num_tokens_n.sum(dtype=np.int64))
        if least < 0 or not total:
            raise ConfigError(f"domain {code}: its rows have {least} to {most} tokens; wanted none below 0, some above")
        self.mean_tokens_K[code] = total / len(rows)
        if least == most:
            return
        if len(rows) > _MOST_UNEVEN:
            raise ConfigError(
                f"domain {code} has {len(rows):,} rows of different lengths, more than {_MOST_UNEVEN:,}; pack them to one "
                "length, or count in rows"
            )
        by_length_n = np.argsort(num_tokens_n, kind="stable")
        in_order = rows.start + rows.step * by_length_n if isinstance(rows, range) else rows[by_length_n]
        self._rows_K[code] = in_order.astype(np.uint32) if in_order.max() < 2**32 else in_order
        self._is_even_K[code] = True

    @property
    def largest_row(self) -> int:
        """The largest row of any domain; -1 if there is none."""
        largest = [
            max(rows[0], rows[-1]) if isinstance(rows, range) else int(rows.max()) for rows in self._rows_K if len(rows)
        ]
        return max(largest, default=-1)

    @property
    def all_rows(self) -> np.ndarray:
        """The rows of all domains, ascending, each once; made anew at each call."""
        return np.unique(np.concatenate([np.asarray(rows, dtype=np.int64) for rows in self._rows_K]))

    def at(self, code_B: np.ndarray, ordinal_B: np.ndarray) -> np.ndarray:
        """Row of sample number `ordinal_B` (from 0) of domain `code_B`, (B,) int64."""
        size_B = self.size_K[code_B]
        epoch_B, index_B = np.divmod(ordinal_B, size_B)
        key_B, is_even_B = self._keys(code_B, epoch_B), self._is_even_K[code_B]
        place_B = np.empty(len(code_B), dtype=np.int64)
        for chosen_b, shuffle in ((np.flatnonzero(~is_even_B), permuted_each), (np.flatnonzero(is_even_B), spread_each)):
            place_B[chosen_b] = shuffle(index_B[chosen_b], size_B[chosen_b], key_B[chosen_b])
        row_B = self._first_K[code_B] + self._step_K[code_B] * place_B
        for code in np.unique(code_B[~self._is_range_K[code_B]]).tolist():
            of_code_b, rows = np.flatnonzero(code_B == code), self._rows_K[code]
            assert isinstance(rows, np.ndarray)
            row_B[of_code_b] = rows[place_B[of_code_b]]
        return np.asarray(row_B)

    def _keys(self, code_B: np.ndarray, epoch_B: np.ndarray) -> np.ndarray:
        """The key of each (domain, epoch), (B,) uint64."""
        size = len(self._rows_K)
        pair_p, pair_B = np.unique(epoch_B * size + code_B, return_inverse=True)
        keys = [rng.key_of(self._seed, "mixture", pair % size, pair // size) for pair in pair_p.tolist()]
        return np.array(keys, dtype=np.uint64)[pair_B]

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of all that `at` depends on: seed, rows, and the order their lengths give."""
        state = hashlib.sha256(f"domain-rows/1/{self._seed}".encode())
        for rows, is_even in zip(self._rows_K, self._is_even_K.tolist(), strict=True):
            if isinstance(rows, range):
                state.update(f"/{rows}/{is_even}/".encode())
                continue
            state.update(f"/{len(rows)} rows/{is_even}/".encode())
            for first in range(0, len(rows), _CHUNK):
                state.update(rows[first : first + _CHUNK].astype("<i8").tobytes())
        return state.hexdigest()


def _checked_rows(rows: range | np.ndarray, code: int) -> range | np.ndarray:
    if not isinstance(rows, range):
        rows = np.asarray(rows)
        if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
            raise ConfigError(f"domain {code}: rows are {rows.dtype} of shape {rows.shape}, wanted a vector of row numbers")
    if len(rows) and (least := min(rows[0], rows[-1]) if isinstance(rows, range) else int(rows.min())) < 0:
        raise ConfigError(f"domain {code}: row {least} is below 0")
    return rows
