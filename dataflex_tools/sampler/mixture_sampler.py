"""The rows of a training that follows domain proportions, in constant time and memory per stretch.

Position p of the endless stream has a domain (`ops.interleave`: proportions hold to about one sample after every position,
they are not drawn) and is that domain's sample number i, whose row is `DomainRows`' i-th. Both are functions of (rows,
weights, seed, p) alone: not of rank count, worker count, restarts or how a stretch is cut.
"""

import hashlib
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.ops.interleave import Interleaving, whole_weights
from dataflex_tools.ops.proportions import fill, nearest_counts
from dataflex_tools.sampler.domain_rows import DomainRows

# K domains, S segments, L length of a stretch of positions

Schedule = tuple[np.ndarray, np.ndarray]  # start_S, weight_SK: row s holds from position start_S[s] to the next

_BLOCK = 4096  # positions computed at once when iterating
_NUM_ORDERS = 64  # orders of segments held; making one for 20 domains takes a millisecond or two


@dataclass(frozen=True)
class _Given:
    """Weights as given. `is_used_K`: domains with a weight by now.

    Under a cap: the `length` the weights are planned for, samples they ask for, and samples that are given.
    """

    start: int
    weight_K: np.ndarray
    is_used_K: np.ndarray
    length: int | None = None
    asked_K: np.ndarray | None = None
    amount_K: np.ndarray | None = None


@dataclass(frozen=True)
class _Segment:
    """Positions from `start` on in one order, and what came before: samples, and how far each domain is behind (ahead: < 0).

    `wanted_K`: proportions that count as wanted; `order_K`: those of the order, which is `lead_K` samples early.
    """

    start: int
    before_K: np.ndarray
    owed_K: np.ndarray
    wanted_K: np.ndarray
    order_K: np.ndarray
    lead_K: np.ndarray


class MixtureSampler(Sampler[int]):  # type: ignore[misc]  # torch is not followed
    """Endless stream of rows whose domains follow a schedule of weights.

    After p samples of constant weights a domain of weight w has got p w of them, to within `bound_at`: under one sample for
    up to four domains, 0.8 to 1.15 for more (see `ops.interleave`). What a domain is behind or ahead by when the weights
    change is made up for, so errors do not add up: counts stayed within 1.7 of what thousands of segments of 16 samples
    asked for. Inside a domain no row comes again before all have come. Usable wherever torch takes a sampler: iterating
    goes from position `start` to `total`, or to the end of the epoch (`num_rows` positions) that holds `start`.
    """

    def __init__(
        self, rows_K: Sequence[range | np.ndarray], schedule: Schedule, *, seed: int = 0,
        unit: Literal["rows", "tokens"] = "rows", num_tokens_K: Sequence[np.ndarray] | None = None,
        max_epochs: float | None = None, total: int | None = None,
    ) -> None:  # fmt: skip
        """`rows_K`: rows of each domain; a range takes no memory. `schedule`: (start_S, weight_SK), starts from 0 on.

        `unit`: what the weights are shares of; tokens need `num_tokens_K`, the tokens of each row of each domain.
        `max_epochs`: most passes over any domain in the first `total` positions, beyond which the stream then ends; what it
        cuts off goes to the others in proportion (`capped`). Raises ConfigError for settings that do not fit together.
        """
        _check_settings(unit, num_tokens_K, max_epochs, total)
        self._rows = DomainRows(rows_K, seed=seed, num_tokens_K=num_tokens_K)
        self._unit, self._max_epochs, self.start = unit, max_epochs, 0
        self._total = None if total is None else int(total)
        passes = None if max_epochs is None else Fraction(str(max_epochs))  # as written: 2.3 of 100 rows are 230
        self._limit_K = None if passes is None else np.array([int(passes * size) for size in self._rows.size_K.tolist()])
        start_S, weight_SK = _checked_schedule(schedule, len(self._rows.size_K))
        mean_K = self._rows.mean_tokens_K
        self._rows_per_unit_K = mean_K[self._rows.size_K > 0].min(initial=np.inf) / mean_K  # exactly 1 where all are alike
        self._given: list[_Given] = []
        self._segments: list[_Segment] = []
        self._orders: dict[int, Interleaving] = {}
        self._rows_digest: str | None = None
        for start, stop, weight_K in zip(start_S, [*start_S[1:], None], weight_SK, strict=True):
            if self._limit_K is None or start < (total or 0):  # beyond the total nothing is planned
                self.extend(start, weight_K, length=None if stop is None else stop - start)

    @property
    def num_rows(self) -> int:
        """Rows of the domains that have a weight above 0 at any time: positions of an epoch of the books."""
        return int(self._rows.size_K[self._given[-1].is_used_K].sum())

    @property
    def largest_row(self) -> int:
        """The largest row of any domain."""
        return self._rows.largest_row

    @property
    def chosen_rows(self) -> np.ndarray:
        """The rows of all domains, ascending."""
        return self._rows.all_rows

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of rows, weights, seed, unit and caps: equal digests give equal rows for ever."""
        self._rows_digest = self._rows_digest or self._rows.digest
        state = hashlib.sha256(f"mixture-sampler/1/{self._rows_digest}/{self._unit}/{self._limit_K is None}/".encode())
        state.update(self._rows_per_unit_K.astype("<f8").tobytes())
        state.update(b"" if self._limit_K is None else self._limit_K.astype("<i8").tobytes())
        for given in self._given:
            state.update(f"/{given.start}/{given.length}/".encode() + given.weight_K.astype("<f8").tobytes())
        return state.hexdigest()

    @property
    def capped(self) -> dict[int, dict[str, float]]:
        """By code, the domains that `max_epochs` cut: samples the weights `asked` for in all, and samples `given`."""
        sum_2K = np.zeros((2, len(self._rows.size_K)))
        for given, stop in zip(self._given, [*(later.start for later in self._given[1:]), sys.maxsize], strict=True):
            if given.length and given.asked_K is not None and given.amount_K is not None:
                sum_2K += np.stack([given.asked_K, given.amount_K]) * min(1.0, (stop - given.start) / given.length)
        codes = np.flatnonzero(sum_2K[1] < sum_2K[0] * (1 - 1e-9)).tolist()
        return {code: {"asked": float(sum_2K[0, code]), "given": float(sum_2K[1, code])} for code in codes}

    def rows_at(self, start: int, stop: int) -> np.ndarray:
        """Rows at positions start .. stop-1 of the stream, (L,) int64; costs the same wherever the stretch lies."""
        pieces = [self._rows.at(code_B, ordinal_B) for code_B, ordinal_B in self._walk(start, stop)]
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])

    def domains_at(self, start: int, stop: int) -> np.ndarray:
        """Domain codes at positions start .. stop-1 of the stream, (L,) int32."""
        return np.concatenate([np.empty(0, dtype=np.int32), *(code_B for code_B, _ in self._walk(start, stop))])

    def counts_at(self, position: int) -> np.ndarray:
        """Samples of each domain before `position`, (K,) int64."""
        self._check_stretch(0, position)
        number = self._number_at(position)
        segment = self._segments[number]
        return np.asarray(segment.before_K + self._order(number).counts(position - segment.start))

    def epochs_at(self, position: int) -> np.ndarray:
        """Passes over each domain before `position`, (K,) float64; 0 for a domain without rows."""
        return np.asarray(self.counts_at(position) / np.maximum(self._rows.size_K, 1))

    def bound_at(self, position: int) -> np.ndarray:
        """Samples each domain can be off by in the segment that holds `position`, (K,), but for what was owed before."""
        return self._order(self._number_at(position)).bound_K

    def extend(self, position: int, weight_K: np.ndarray, *, length: int | None = None) -> None:
        """From `position` on follow other weights; replaces those that hold from the same position on.

        What domains are behind or ahead by is made up for within as many positions as the weights before held for.
        `length`: positions to plan `max_epochs` for, by default all up to `total`; no more than these can then be read
        until the next call. It does nothing without `max_epochs`. Raises ConfigError for weights that do not fit or a cap
        that cannot be held, ValueError for a position before the last weights.
        """
        position = int(position)  # products with whole weights need Python's integers
        weight_K = _checked_weights(weight_K, self._rows.size_K, where=f"the weights from position {position:,} on")
        if self._given and position < self._given[-1].start:
            raise ValueError(
                f"extend: {position} lies before {self._given[-1].start}, where the last weights begin; cut first"
            )
        before_K, owed_K = self._state_at(position)
        new = self._planned(position, weight_K, before_K, length)
        del self._given[bisect_left(self._given, position, key=_start) :]
        make_up = position - self._given[-1].start if self._given and owed_K.any() else 0
        if self._given:
            new = replace(new, is_used_K=new.is_used_K | self._given[-1].is_used_K)
        self._given.append(new)
        self._keep(bisect_left(self._segments, position, key=_start))
        self._segments += self._parts(new, before_K, owed_K, make_up)

    def cut(self, position: int) -> None:
        """Forget the weights that hold from after `position` on, so that a resumed training can extend anew."""
        if position < self._given[-1].start:
            kept = bisect_right(self._given, position, key=_start)
            last = self._given[kept - 1]
            del self._given[kept - 1 :]
            self._keep(bisect_left(self._segments, last.start, key=_start))
            self.extend(last.start, last.weight_K, length=last.length)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at the start of `epoch`, counted from 0."""
        self.start = epoch * self.num_rows

    def __len__(self) -> int:
        if self._total is not None:
            return max(self._total - self.start, 0)
        return self.num_rows - self.start % self.num_rows

    def __iter__(self) -> Iterator[int]:
        stop = self.start + len(self)
        for first in range(self.start, stop, _BLOCK):
            yield from self.rows_at(first, min(first + _BLOCK, stop)).tolist()

    def _planned(self, position: int, weight_K: np.ndarray, before_K: np.ndarray, length: int | None) -> _Given:
        """The weights, cut to what `max_epochs` leaves."""
        if self._limit_K is None or self._total is None:
            return _Given(position, weight_K, weight_K > 0)
        planned = max(self._total - position, 0)
        length = planned if length is None else min(int(length), planned)
        rate_K = weight_K * self._rows_per_unit_K
        left_K = np.where(rate_K > 0, self._limit_K - before_K, 0)
        if (room := int(left_K.sum())) < length:
            raise ConfigError(
                f"max_epochs={self._max_epochs} leaves {room:,} samples of the domains with a weight, {length:,} are "
                f"planned from position {position:,} on; raise max_epochs, plan fewer, or give other domains a weight"
            )
        asked_K = rate_K / rate_K.sum() * length
        return _Given(position, weight_K, weight_K > 0, length, asked_K, fill(rate_K, length, limit_K=left_K))

    def _parts(self, given: _Given, before_K: np.ndarray, owed_K: np.ndarray, make_up: int) -> list[_Segment]:
        """The segments of newly given weights: one of `make_up` positions that ends with as little owed as it can, the rest.

        Where counts are made whole first and are then the proportions of the order, it ends on them to the sample.
        """
        rate_K = given.weight_K * self._rows_per_unit_K
        wanted_K = np.array(whole_weights(rate_K if given.amount_K is None or not given.length else given.amount_K))
        share_K = wanted_K / float(sum(wanted_K.tolist()))  # the whole sum may be longer than 64 bits
        left_K = np.where(share_K > 0, sys.maxsize if self._limit_K is None else self._limit_K - before_K, 0)
        lengths = [make_up] if given.length is None else [min(make_up, given.length), given.length - make_up]
        start, parts = given.start, []
        for length in lengths:
            if length > 0:
                count_K = nearest_counts(share_K * length + owed_K, length, limit_K=left_K)
                after_K = _owed_after(length, owed_K, wanted_K, count_K)
                lead_K = (owed_K + after_K) / 2  # what is owed at its middle
                parts.append(_Segment(start, before_K, owed_K, wanted_K, count_K, lead_K))
                start, before_K, owed_K, left_K = start + length, before_K + count_K, after_K, left_K - count_K
        if given.length is None or not parts:
            parts.append(_Segment(start, before_K, owed_K, wanted_K, wanted_K, owed_K))
        return parts

    def _keep(self, num_segments: int) -> None:
        del self._segments[num_segments:]
        self._orders = {number: order for number, order in self._orders.items() if number < num_segments}

    def _number_at(self, position: int) -> int:
        """The segment that holds a position."""
        if position < 0:
            raise ValueError(f"{position} is no position of a stream")
        return bisect_right(self._segments, position, key=_start) - 1

    def _order(self, number: int) -> Interleaving:
        if number not in self._orders:
            if len(self._orders) >= _NUM_ORDERS:
                self._orders.clear()
            segment = self._segments[number]
            self._orders[number] = Interleaving(segment.order_K.tolist(), segment.lead_K.tolist())
        return self._orders[number]

    def _check_stretch(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop:
            raise ValueError(f"[{start}, {stop}) is not a stretch of positions")
        last = self._given[-1]
        if last.length is not None and stop > last.start + last.length:
            raise ValueError(
                f"position {stop - 1} is asked for, and max_epochs is planned for {last.start + last.length} only"
            )

    def _walk(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Domain of each position and how many of it came before, a piece per segment."""
        self._check_stretch(start, stop)
        number = self._number_at(start)
        while start < stop:
            segment, is_last = self._segments[number], number + 1 == len(self._segments)
            end = stop if is_last else min(stop, self._segments[number + 1].start)
            code_B, ordinal_B = self._order(number).at(np.arange(start - segment.start, end - segment.start))
            yield code_B, segment.before_K[code_B] + ordinal_B
            start, number = end, number + 1

    def _state_at(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples of each domain before a position, and what each domain is owed there."""
        if not self._segments:
            return np.zeros(len(self._rows.size_K), dtype=np.int64), np.zeros(len(self._rows.size_K))
        self._check_stretch(0, position)
        segment = self._segments[self._number_at(position)]
        if not (num_samples := position - segment.start):
            return segment.before_K, segment.owed_K
        count_K = self._order(self._number_at(position)).counts(num_samples)
        return segment.before_K + count_K, _owed_after(num_samples, segment.owed_K, segment.wanted_K, count_K)


def _start(item: _Given | _Segment) -> int:
    return item.start


def _owed_after(num_samples: int, owed_K: np.ndarray, wanted_K: np.ndarray, count_K: np.ndarray) -> np.ndarray:
    """What each domain is owed after some samples more, of which it got `count_K`."""
    # Python's integers up to the division: at 1e12 samples a rounded share would be off by more than what is owed
    wanted, whole = wanted_K.tolist(), sum(wanted_K.tolist())
    pairs = zip(wanted, count_K.tolist(), strict=True)
    return np.asarray(owed_K + np.array([(num_samples * part - count * whole) / whole for part, count in pairs]))


def _check_settings(
    unit: str, num_tokens_K: Sequence[np.ndarray] | None, max_epochs: float | None, total: int | None
) -> None:
    if unit not in ("rows", "tokens"):
        raise ConfigError(f"a mixture's unit is {unit!r}; {did_you_mean(unit, ('rows', 'tokens'))}")
    if (unit == "tokens") != (num_tokens_K is not None):
        given = "no tokens per row are given, which it needs" if unit == "tokens" else "tokens per row are given: no effect"
        raise ConfigError(f"a mixture's unit is {unit!r} and {given}; use num_tokens_K with unit='tokens'")
    if total is not None and total < 1:
        raise ConfigError(f"a mixture is planned for {total} samples, wanted 1 or more")
    if max_epochs is not None and not (max_epochs > 0 and np.isfinite(max_epochs)):
        raise ConfigError(f"max_epochs is {max_epochs}, wanted a number above 0; leave it out for no cap")
    if max_epochs is not None and total is None:
        raise ConfigError("max_epochs needs the number of samples of the training; give total (training.max_steps)")


def _checked_schedule(schedule: Schedule, num_domains: int) -> tuple[list[int], np.ndarray]:
    start_S, weight_SK = [int(start) for start in schedule[0]], np.asarray(schedule[1], dtype=np.float64)
    if weight_SK.shape != (len(start_S), num_domains) or not weight_SK.size:
        raise ConfigError(
            f"a mixture of shape {weight_SK.shape} for {len(start_S)} starts and {num_domains} domains with rows"
        )
    if start_S[0] != 0 or any(later <= earlier for earlier, later in pairwise(start_S)):
        raise ConfigError(f"a mixture's starts are {start_S[:4]}..., wanted 0 and ascending")
    return start_S, weight_SK


def _checked_weights(weight_K: np.ndarray, size_K: np.ndarray, *, where: str) -> np.ndarray:
    weight_K = np.array(weight_K, dtype=np.float64)
    if weight_K.shape != size_K.shape:
        raise ConfigError(f"{where} have shape {weight_K.shape}, and there are {len(size_K)} domains")
    if not np.isfinite(weight_K).all() or (weight_K < 0).any() or not weight_K.any():
        raise ConfigError(f"{where} are {weight_K.tolist()}; wanted numbers of 0 or more, one of them above 0")
    if (is_empty_K := (weight_K > 0) & (size_K == 0)).any():
        raise ConfigError(f"{where}: domain {int(is_empty_K.argmax())} has a weight and no row")
    return weight_K
