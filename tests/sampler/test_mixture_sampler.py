"""The stream of a mixture: proportions, caps, rows, and its independence of how it is read."""

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataflex_tools.core import rng
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.sampler.mixture_sampler import MixtureSampler, Schedule
from dataflex_tools.sampler.plan_sampler import PlanBatches

ROWS = [range(40), range(40, 47), np.array([60, 90, 70, 50])]
STAGED = (np.array([0, 100, 130]), np.array([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1], [1.0, 1.0, 1.0]]))


def constant(*weights: float) -> Schedule:
    return np.zeros(1, dtype=np.int64), np.array([weights])


def blocks(*sizes: int) -> list[range]:
    """Rows of domains that follow each other."""
    ends = np.cumsum(sizes).tolist()
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def counted(sampler: MixtureSampler, num_samples: int, num_domains: int) -> np.ndarray:
    """Counts of each domain after 0, 1, ... samples, by counting codes."""
    code_L = sampler.domains_at(0, num_samples)
    count_LK = np.zeros((num_samples + 1, num_domains), dtype=np.int64)
    count_LK[1:] = np.cumsum(code_L[:, None] == np.arange(num_domains), axis=0)
    return count_LK


@settings(deadline=None, max_examples=30)
@given(start=st.integers(0, 260), first=st.integers(0, 60), second=st.integers(0, 20))
def test_a_stretch_is_the_same_wherever_it_is_cut(start: int, first: int, second: int) -> None:
    sampler, middle, stop = MixtureSampler(ROWS, STAGED, seed=1), start + first, start + first + second
    for read in (sampler.rows_at, sampler.domains_at):
        np.testing.assert_array_equal(read(start, stop), np.concatenate([read(start, middle), read(middle, stop)]))
    assert sampler.rows_at(middle, stop).tolist() == [int(sampler.rows_at(p, p + 1)[0]) for p in range(middle, stop)]


def test_the_order_of_reading_changes_nothing() -> None:
    stretches = [(n * 37, n * 37 + 50) for n in range(12)]
    ahead, back = MixtureSampler(ROWS, STAGED, seed=1), MixtureSampler(ROWS, STAGED, seed=1)
    forward = [ahead.rows_at(*stretch).tolist() for stretch in stretches]
    assert [back.rows_at(*stretch).tolist() for stretch in reversed(stretches)] == forward[::-1]


def test_rows_are_the_domains_samples_in_turn() -> None:
    sampler, seen = MixtureSampler(ROWS, STAGED, seed=4), [0, 0, 0]
    for row, code in zip(sampler.rows_at(0, 400).tolist(), sampler.domains_at(0, 400).tolist(), strict=True):
        part = ROWS[code]
        epoch, index = divmod(seen[code], len(part))
        assert row == part[int(rng.permuted(np.array([index]), len(part), rng.key_of(4, "mixture", code, epoch))[0])]
        seen[code] += 1
    assert sampler.counts_at(400).tolist() == seen
    np.testing.assert_array_equal(sampler.epochs_at(400), [seen[0] / 40, seen[1] / 7, seen[2] / 4])


def test_no_row_comes_again_before_all_of_its_domain() -> None:
    sampler = MixtureSampler(ROWS, STAGED, seed=2)
    row_L, code_L = sampler.rows_at(0, 1000), sampler.domains_at(0, 1000)
    for code, part in enumerate(ROWS):
        mine = row_L[code_L == code]
        for first in range(0, len(mine) - len(part) + 1, len(part)):
            assert sorted(mine[first : first + len(part)].tolist()) == sorted(part)


@settings(deadline=None, max_examples=40)
@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda weights: sum(weights) > 0.01))
def test_counts_follow_the_weights_after_every_sample(weights: list[float]) -> None:
    sampler = MixtureSampler(blocks(*[50] * len(weights)), constant(*weights))
    off_LK = counted(sampler, 1000, len(weights)) - np.arange(1001)[:, None] * np.array(weights) / sum(weights)
    assert (np.abs(off_LK).max(axis=0) <= sampler.bound_at(0) + 1e-9).all()


def test_counts_are_those_counted() -> None:
    sampler, count_LK = MixtureSampler(ROWS, STAGED), counted(MixtureSampler(ROWS, STAGED), 300, 3)
    for position in [0, 1, 99, 100, 101, 129, 130, 131, 159, 160, 161, 300]:
        assert sampler.counts_at(position).tolist() == count_LK[position].tolist()


def test_a_domain_of_weight_zero_is_not_drawn() -> None:
    sampler = MixtureSampler(ROWS, STAGED)
    assert 0 not in sampler.domains_at(100, 130)
    assert set(sampler.domains_at(130, 200).tolist()) == {0, 1, 2}


def weights_over_time(kind: str, num: int, size: int) -> np.ndarray:
    generator = np.random.default_rng(size)
    if kind == "unrelated":
        return generator.dirichlet(np.ones(size), num)
    if kind == "peaked":
        return generator.dirichlet(np.full(size, 0.2), num)
    if kind == "with zeros":
        weight_SK = generator.dirichlet(np.ones(size), num) * (generator.random((num, size)) < 0.6)
        return weight_SK + 0.01 * (np.arange(size) == 0)
    return np.exp(np.cumsum(generator.normal(0, 0.1, (num, size)), axis=0))


@pytest.mark.parametrize(("kind", "size"), [("unrelated", 20), ("peaked", 12), ("with zeros", 5), ("drifting", 20)])
def test_errors_do_not_add_up_over_thousands_of_segments(kind: str, size: int) -> None:
    # measured: at most 1.7 inside a segment and 1.1 at the ends of segments
    num, length = 2000, 16
    weight_SK = weights_over_time(kind, num, size)
    sampler = MixtureSampler(blocks(*[100] * size), (np.arange(num) * length, weight_SK))
    wanted_LK = np.repeat(weight_SK / weight_SK.sum(axis=1, keepdims=True), length, axis=0)
    off_LK = counted(sampler, num * length, size) - np.concatenate([np.zeros((1, size)), np.cumsum(wanted_LK, axis=0)])
    assert np.abs(off_LK).max() < 2
    assert np.abs(off_LK[::length]).max() < 1.5


def test_weights_given_on_the_way_are_those_of_a_schedule() -> None:
    weight_SK = weights_over_time("unrelated", 50, 3)
    start_S = np.cumsum(np.random.default_rng(0).integers(1, 30, 50)) - 1
    start_S[0] = 0
    whole, grown = MixtureSampler(ROWS, (start_S, weight_SK)), MixtureSampler(ROWS, constant(*weight_SK[0]))
    for start, weight_K in zip(start_S[1:].tolist(), weight_SK[1:], strict=True):
        grown.rows_at(0, start)
        grown.extend(start, weight_K)
    assert grown.digest == whole.digest
    np.testing.assert_array_equal(grown.rows_at(0, 2000), whole.rows_at(0, 2000))


def test_what_was_read_does_not_change_when_weights_do() -> None:
    sampler = MixtureSampler(ROWS, constant(1, 1, 1))
    before = sampler.rows_at(0, 64).tolist()
    sampler.extend(64, np.array([0.1, 0.1, 0.8]))
    assert sampler.rows_at(0, 64).tolist() == before
    sampler.extend(64, np.array([0.0, 0.0, 1.0]))  # again: these replace the ones before
    assert sampler.rows_at(0, 64).tolist() == before
    assert set(sampler.domains_at(64, 164).tolist()) == {2}
    sampler.extend(np.int64(100), np.array([1.0, 1.0, 2.0]))  # numpy's integers do as well
    with pytest.raises(ValueError, match="63 lies before 100"):
        sampler.extend(63, np.ones(3))


@pytest.mark.parametrize("position", [0, 99, 100, 129, 130, 131, 10**6])
def test_cut_forgets_later_weights_as_if_they_had_not_been(position: int) -> None:
    start_S, weight_SK = STAGED
    kept = int((start_S <= position).sum())
    sampler, never = MixtureSampler(ROWS, STAGED), MixtureSampler(ROWS, (start_S[:kept], weight_SK[:kept]))
    sampler.cut(position)
    assert sampler.digest == never.digest
    assert sampler.num_rows == never.num_rows
    np.testing.assert_array_equal(sampler.rows_at(0, 400), never.rows_at(0, 400))
    for start, weight_K in zip(start_S[kept:].tolist(), weight_SK[kept:], strict=True):
        sampler.extend(start, weight_K)
    np.testing.assert_array_equal(sampler.rows_at(0, 400), MixtureSampler(ROWS, STAGED).rows_at(0, 400))


@pytest.mark.parametrize("position", [10**12, 2**49])
def test_a_seek_to_the_far_end_reads_only_what_it_returns(position: int) -> None:
    weight_SK = np.random.default_rng(1).random((2, 20))
    sampler = MixtureSampler(blocks(*[50_000_000] * 20), (np.array([0, position // 3]), weight_SK))
    assert sampler.rows_at(position, position + 4).tolist() == sampler.rows_at(position - 2, position + 4).tolist()[2:]
    assert sampler.counts_at(position).sum() == position
    exact = [[Fraction(value) for value in weights] for weights in weight_SK.tolist()]
    lengths = (position // 3, position - position // 3)
    for code, count in enumerate(sampler.counts_at(position).tolist()):
        wanted = sum(length * part[code] / sum(part) for length, part in zip(lengths, exact, strict=True))
        assert abs(count - wanted) < 2


def lognormal_lengths(*sizes: int) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    means = generator.uniform(4, 7, len(sizes))
    return [np.ceil(generator.lognormal(mean, 1, size)).astype(np.int64) for mean, size in zip(means, sizes, strict=True)]


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1), (0.5, 0.3, 0.1, 0.07, 0.03), (0.05, 0.05, 0.1, 0.2, 0.6)])
def test_token_shares_follow_the_weights_long_before_an_epoch_ends(weights: tuple[float, ...]) -> None:
    sizes = (400_000, 300_000, 100_000, 50_000, 30_000)
    length_K = lognormal_lengths(*sizes)
    sampler = MixtureSampler(blocks(*sizes), constant(*weights), unit="tokens", num_tokens_K=length_K)
    row_L, code_L = sampler.rows_at(0, 100_000), sampler.domains_at(0, 100_000)
    token_K = np.bincount(code_L, weights=np.concatenate(length_K)[row_L], minlength=5)
    assert np.abs(token_K / token_K.sum() - np.array(weights) / sum(weights)).max() < 1e-3


def test_equal_lengths_make_tokens_rows() -> None:
    tokens_K = [np.full(len(part), 513) for part in ROWS]
    in_rows = MixtureSampler(ROWS, STAGED, seed=9)
    in_tokens = MixtureSampler(ROWS, STAGED, seed=9, unit="tokens", num_tokens_K=tokens_K)
    np.testing.assert_array_equal(in_rows.rows_at(0, 1000), in_tokens.rows_at(0, 1000))


def test_domains_of_longer_rows_give_fewer_of_them() -> None:
    tokens_K = [np.full(40, 100), np.full(7, 400), np.full(4, 100)]
    sampler = MixtureSampler(ROWS, constant(1, 1, 2), unit="tokens", num_tokens_K=tokens_K)
    assert sampler.counts_at(13_000).tolist() == [4000, 1000, 8000]


def poured(weights: list[float], limits: list[int], total: int) -> list[float]:
    """Naive: hand out small amounts in proportion to those that have room."""
    got, step = [0.0] * len(weights), total / 20_000
    for _ in range(20_000):
        has_room = [weight if have < limit else 0.0 for weight, have, limit in zip(weights, got, limits, strict=True)]
        got = [have + step * weight / sum(has_room) for have, weight in zip(got, has_room, strict=True)]
    return got


def test_a_cap_gives_to_the_others_in_proportion() -> None:
    sampler = MixtureSampler(blocks(100, 10, 5, 300), constant(1, 1, 1, 3), max_epochs=2, total=400)
    count_K = sampler.counts_at(400)
    assert np.abs(count_K - poured([1, 1, 1, 3], [200, 20, 10, 600], 400)).max() < 1
    assert count_K[1:3].tolist() == [20, 10]
    assert {code: (entry["asked"], entry["given"]) for code, entry in sampler.capped.items()} == {
        1: pytest.approx((400 / 6, 20)),
        2: pytest.approx((400 / 6, 10)),
    }


def test_a_cap_that_cuts_nothing_changes_no_proportion() -> None:
    sampler = MixtureSampler(blocks(100, 100), constant(1, 3), max_epochs=1, total=100)
    assert sampler.counts_at(100).tolist() == [25, 75]
    assert sampler.capped == {}


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0.05, 1),
    max_epochs=st.sampled_from([0.5, 1, 1.7, 3]), seed=st.integers(0, 1000), steps=st.integers(1, 12),
)  # fmt: skip
def test_no_domain_is_passed_more_often_than_the_cap(
    sizes: list[int], share: float, max_epochs: float, seed: int, steps: int
) -> None:
    limits = [int(Fraction(str(max_epochs)) * size) for size in sizes]
    total = max(1, int(sum(limits) * share))
    if total > sum(limits):
        return
    weight_SK = np.random.default_rng(seed).dirichlet(np.full(len(sizes), 0.5), steps) + 1e-9
    start_S = np.arange(steps) * max(1, total // steps)
    planned = MixtureSampler(blocks(*sizes), (start_S, weight_SK), max_epochs=max_epochs, total=total)
    online = MixtureSampler(blocks(*sizes), constant(*weight_SK[0]), max_epochs=max_epochs, total=total)
    for start, weight_K in zip(start_S[1:].tolist(), weight_SK[1:], strict=True):
        if start <= total:
            online.extend(start, weight_K)
    for sampler in (planned, online):
        assert (counted(sampler, total, len(sizes))[-1] <= limits).all()
        assert sampler.counts_at(total).sum() == total


def test_errors_do_not_add_up_under_a_cap_that_cuts_nothing() -> None:
    num, length, size = 500, 16, 8
    weight_SK = weights_over_time("unrelated", num, size)
    total = num * length
    sampler = MixtureSampler(blocks(*[total] * size), constant(*weight_SK[0]), max_epochs=1, total=total)
    for step in range(1, num):
        sampler.extend(step * length, weight_SK[step])
    wanted_SK = np.cumsum(weight_SK * length, axis=0)
    assert np.abs(counted(sampler, total, size)[length::length] - wanted_SK).max() < 1.5


def test_a_cap_is_met_to_the_last_sample() -> None:
    sampler = MixtureSampler(blocks(7, 11, 2), constant(1, 1, 8), max_epochs=1.5, total=29)
    assert sampler.counts_at(29).tolist() == [10, 16, 3]
    with pytest.raises(ValueError, match="position 29 is asked for, and max_epochs is planned for 29 only"):
        sampler.rows_at(20, 30)


def test_a_cap_that_leaves_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_epochs=1.5 leaves 29 samples .* 30 are planned from position 0 on"):
        MixtureSampler(blocks(7, 11, 2), constant(1, 1, 8), max_epochs=1.5, total=30)
    with pytest.raises(ConfigError, match="max_epochs=1 leaves 9 samples"):  # what has no weight does not count
        MixtureSampler(blocks(7, 11, 2), constant(1, 0, 8), max_epochs=1, total=10)


@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 12, 1), (1, 2, 6), (2, 3, 2), (3, 4, 1), (4, 1, 3)])
def test_union_over_ranks_is_the_single_rank_batch(world: int, micro: int, accumulation: int) -> None:
    sampler, steps, batch = MixtureSampler(ROWS, STAGED, seed=5), 14, 12
    expected = [Counter(sampler.rows_at(t * batch, (t + 1) * batch).tolist()) for t in range(steps)]
    for first in (0, 1, 9):  # also after a seek
        ranks = []
        for rank in range(world):
            batches = PlanBatches(sampler, batch_size=micro, num_batches=steps * batch // micro)
            batches.start = first * batch // micro
            ranks.append(list(BatchSamplerShard(batches, world, rank) if world > 1 else batches))
        for step in range(first, steps):
            at = slice((step - first) * accumulation, (step - first + 1) * accumulation)
            assert Counter(row for rank in ranks for part in rank[at] for row in part) == expected[step]


def test_plain_data_loader_walks_the_epochs() -> None:
    sampler = MixtureSampler(ROWS, constant(3, 2, 1), seed=0)
    assert sampler.num_rows == len(sampler) == 51
    loader = DataLoader(np.arange(100), sampler=sampler, batch_size=8)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert [int(x) for batch in loader for x in batch] == sampler.rows_at(epoch * 51, epoch * 51 + 51).tolist()


def test_iterating_goes_to_the_total() -> None:
    sampler = MixtureSampler(ROWS, constant(3, 2, 1), total=130)
    assert list(sampler) == sampler.rows_at(0, 130).tolist()
    sampler.start = 100
    assert (len(sampler), list(sampler)) == (30, sampler.rows_at(100, 130).tolist())


def test_an_epoch_counts_the_rows_that_can_come() -> None:
    sampler = MixtureSampler(ROWS, constant(1, 0, 0))
    assert (sampler.num_rows, sampler.largest_row) == (40, 90)
    sampler.extend(10, np.array([0, 0, 1.0]))
    assert sampler.num_rows == 44


def test_rows_are_those_of_earlier_releases() -> None:
    # a training resumed with a newer release must go on with the rows of the older one
    tokens_K = [np.arange(1, len(part) + 1) for part in ROWS]
    in_rows = MixtureSampler(ROWS, STAGED, seed=7)
    in_tokens = MixtureSampler(ROWS, STAGED, seed=7, unit="tokens", num_tokens_K=tokens_K)
    capped = MixtureSampler(ROWS, STAGED, seed=7, max_epochs=12, total=200)
    assert in_rows.rows_at(95, 115).tolist() == [
        46, 13, 60, 4, 41, 44, 43, 40, 45, 60, 42, 46, 43, 42, 44, 45, 40, 41, 44, 70,
    ]  # fmt: skip
    assert in_rows.rows_at(140, 150).tolist() == [90, 41, 26, 60, 46, 11, 60, 44, 39, 90]
    assert in_tokens.rows_at(95, 105).tolist() == [60, 44, 70, 40, 30, 60, 45, 43, 40, 46]
    assert capped.rows_at(135, 145).tolist() == [32, 43, 70, 15, 41, 90, 12, 46, 60, 26]
    assert in_rows.digest == "adb2b11d6f83d71f58dc2999152f611f528993b0aa9eaaec513d9aa0ef6fefb9"


def test_digest_names_all_that_the_rows_depend_on() -> None:
    tokens_K = [np.arange(1, len(part) + 1) for part in ROWS]
    variants: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"max_epochs": 20, "total": 51},
        {"max_epochs": 30, "total": 51},
        {"max_epochs": 20, "total": 50},
        {"unit": "tokens", "num_tokens_K": tokens_K},
        {"unit": "tokens", "num_tokens_K": [tokens_K[0], tokens_K[1] + 1, tokens_K[2]]},
    ]
    digests = [MixtureSampler(ROWS, constant(1, 1, 1), **variant).digest for variant in variants]
    digests += [
        MixtureSampler(ROWS, constant(1, 1, 2)).digest,
        MixtureSampler([*ROWS[:2], range(4)], constant(1, 1, 1)).digest,
    ]
    digests += [MixtureSampler(ROWS, STAGED).digest]
    assert len(set(digests)) == len(digests)
    assert MixtureSampler(ROWS, constant(1, 1, 1)).digest == digests[0]


@pytest.mark.parametrize(
    ("rows_K", "schedule", "more", "fault"),
    [
        (ROWS, constant(1, 1), {}, "shape \\(1, 2\\) for 1 starts and 3 domains"),
        (ROWS, constant(1, -1, 1), {}, "wanted numbers of 0 or more"),
        (ROWS, constant(1, np.nan, 1), {}, "wanted numbers of 0 or more"),
        (ROWS, constant(0, 0, 0), {}, "one of them above 0"),
        (ROWS, (np.array([1]), np.ones((1, 3))), {}, "wanted 0 and ascending"),
        (ROWS, (np.array([0, 5, 5]), np.ones((3, 3))), {}, "wanted 0 and ascending"),
        ([*ROWS[:2], range(0)], constant(1, 1, 1), {}, "domain 2 has a weight and no row"),
        ([], (np.zeros(1), np.ones((1, 0))), {}, "0 domains with rows"),
        (ROWS, constant(1, 1, 1), {"unit": "token"}, "did you mean 'tokens'"),
        (ROWS, constant(1, 1, 1), {"unit": "tokens"}, "no tokens per row are given"),
        (ROWS, constant(1, 1, 1), {"num_tokens_K": [np.ones(2)]}, "no effect"),
        (ROWS, constant(1, 1, 1), {"max_epochs": 2}, "give total"),
        (ROWS, constant(1, 1, 1), {"max_epochs": 0, "total": 5}, "max_epochs is 0"),
        (ROWS, constant(1, 1, 1), {"total": 0}, "planned for 0 samples"),
    ],
)
def test_wrong_settings_are_refused(rows_K: list, schedule: Schedule, more: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        MixtureSampler(rows_K, schedule, **more)
