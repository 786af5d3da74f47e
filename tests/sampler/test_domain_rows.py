"""The rows of each domain: every one once per epoch, token counts evenly spread."""

import numpy as np
import pytest

from dataflex_tools.core import rng
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.sampler.domain_rows import DomainRows

ROWS = [range(10, 17), np.array([5, 3, 99, 4]), range(1000, 900, -10)]


def samples(rows: DomainRows, code: int, start: int, stop: int) -> list[int]:
    return rows.at(np.full(stop - start, code), np.arange(start, stop)).tolist()


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("tokens", [False, True])
def test_every_epoch_holds_each_row_once(code: int, tokens: bool) -> None:
    lengths = [np.arange(len(part)) % 3 + 1 for part in ROWS] if tokens else None
    rows, size = DomainRows(ROWS, seed=3, num_tokens_K=lengths), len(ROWS[code])
    epochs = [samples(rows, code, epoch * size, (epoch + 1) * size) for epoch in range(5)]
    assert all(sorted(epoch) == sorted(ROWS[code]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_rows_are_the_keyed_shuffle_of_domain_and_epoch() -> None:
    rows = DomainRows(ROWS, seed=3)
    for code, part in enumerate(ROWS):
        for ordinal in range(3 * len(part)):
            epoch, index = divmod(ordinal, len(part))
            place = int(rng.permuted(np.array([index]), len(part), rng.key_of(3, "mixture", code, epoch))[0])
            assert samples(rows, code, ordinal, ordinal + 1) == [part[place]]


def test_domains_do_not_touch_each_other() -> None:
    code_B, ordinal_B = np.array([2, 0, 1, 1, 0, 2]), np.array([5, 9, 0, 7, 1, 10**12])
    together = DomainRows(ROWS, seed=0).at(code_B, ordinal_B).tolist()
    assert together == [samples(DomainRows(ROWS, seed=0), k, i, i + 1)[0] for k, i in zip(code_B, ordinal_B, strict=True)]


def test_equal_lengths_leave_the_shuffle_as_it_is() -> None:
    plain, told = DomainRows(ROWS, seed=0), DomainRows(ROWS, seed=0, num_tokens_K=[np.full(len(part), 9) for part in ROWS])
    assert samples(plain, 0, 0, 30) == samples(told, 0, 0, 30)
    assert told.mean_tokens_K.tolist() == [9, 9, 9]


def test_mean_length_of_a_prefix_is_near_that_of_all() -> None:
    length_n = np.random.default_rng(0).lognormal(5, 1, 20_000).astype(np.int64) + 1
    told, plain = DomainRows([range(20_000)], seed=0, num_tokens_K=[length_n]), DomainRows([range(20_000)], seed=0)
    for num in (2000, 7000, 13_000):
        off_told, off_plain = (
            abs(length_n[samples(rows, 0, 0, num)].mean() / length_n.mean() - 1) for rows in (told, plain)
        )
        assert off_told < 0.01  # a plain shuffle has a standard error of 1.3 / sqrt(num): 0.011 to 0.029
        assert off_told < max(off_plain, 0.002)


def test_rows_of_one_length_follow_no_order() -> None:
    # half of the rows are as long as the cutoff: neighbours in the data must not come one after the other
    length_n = np.minimum(np.arange(1, 2001), 1000)
    drawn_n = np.array(samples(DomainRows([range(2000)], seed=0, num_tokens_K=[length_n]), 0, 0, 2000))
    assert (np.abs(np.diff(drawn_n)) == 1).mean() < 0.02


def test_largest_row_is_over_ranges_and_arrays() -> None:
    assert DomainRows(ROWS, seed=0).largest_row == 1000
    assert DomainRows([range(0), np.array([7, 2])], seed=0).largest_row == 7


def test_digest_names_rows_seed_and_lengths() -> None:
    lengths = [np.array([1, 2, 3, 4])]
    found = [
        DomainRows([np.array([5, 3, 9, 4])], seed=0).digest,
        DomainRows([np.array([3, 5, 9, 4])], seed=0).digest,
        DomainRows([np.array([5, 3, 9, 4])], seed=1).digest,
        DomainRows([np.array([5, 3, 9, 4])], seed=0, num_tokens_K=lengths).digest,
        DomainRows([range(4)], seed=0).digest,
        DomainRows([range(5)], seed=0).digest,
        DomainRows([range(5), range(4)], seed=0).digest,
    ]
    assert len(set(found)) == len(found)
    assert DomainRows([np.array([5, 3, 9, 4], dtype=np.int32)], seed=0).digest == found[0]


@pytest.mark.parametrize(
    ("rows_K", "num_tokens_K", "fault"),
    [
        ([np.zeros((2, 2), dtype=np.int64)], None, "wanted a vector of row numbers"),
        ([np.array([0.5])], None, "wanted a vector of row numbers"),
        ([range(2), np.array([3, -1])], None, "domain 1: row -1 is below 0"),
        ([range(2)], [np.ones(2), np.ones(2)], "tokens of 2 domains are given, and rows of 1"),
        ([range(2)], [np.ones(3)], "2 rows, and tokens of shape \\(3,\\)"),
        ([range(2)], [np.array([1, -1])], "have -1 to 1 tokens"),
        ([range(2)], [np.array([0, 0])], "have 0 to 0 tokens"),
    ],
)
def test_wrong_rows_and_tokens_are_refused(rows_K: list, num_tokens_K: list | None, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        DomainRows(rows_K, seed=0, num_tokens_K=num_tokens_K)
