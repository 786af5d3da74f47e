"""The stream of rows: its laws for any size, seed and position."""

from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.sampler.plan_sampler import PlanBatches, PlanSampler


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 200), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_epoch_holds_each_row_once(size: int, seed: int, epoch: int) -> None:
    row_k = np.arange(size) * 7 + 3
    drawn = PlanSampler(row_k, seed=seed).rows_at(epoch * size, (epoch + 1) * size)
    np.testing.assert_array_equal(np.sort(drawn), row_k)


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 60), start=st.integers(0, 200), length=st.integers(0, 150))
def test_a_stretch_is_the_same_wherever_it_is_cut(size: int, start: int, length: int) -> None:
    sampler = PlanSampler(np.arange(size), seed=1)
    whole = sampler.rows_at(0, start + length)
    np.testing.assert_array_equal(sampler.rows_at(start, start + length), whole[start:])
    one_by_one = [int(sampler.rows_at(p, p + 1)[0]) for p in range(start, start + length)]
    assert one_by_one == whole[start:].tolist()


def test_order_differs_by_epoch_and_by_seed() -> None:
    sampler, other = PlanSampler(np.arange(100), seed=0), PlanSampler(np.arange(100), seed=1)
    assert not np.array_equal(sampler.rows_at(0, 100), sampler.rows_at(100, 200))
    assert not np.array_equal(sampler.rows_at(0, 100), other.rows_at(0, 100))
    assert not np.array_equal(sampler.rows_at(0, 100), np.arange(100))


def test_a_seek_to_the_far_end_reads_only_what_it_returns() -> None:
    sampler = PlanSampler(np.arange(1_000_003), seed=0)
    far = 10**12
    assert sampler.rows_at(far, far + 4).tolist() == sampler.rows_at(far - 2, far + 4).tolist()[2:]


def test_position_means_do_not_depend_on_the_row() -> None:
    # 400 epochs of 20: mean position of a row has standard error sqrt((20**2 - 1) / 12 / 400) = 0.29; 5 of them
    epochs = PlanSampler(np.arange(20), seed=3).rows_at(0, 400 * 20).reshape(400, 20)
    assert np.abs(np.argsort(epochs, axis=1).mean(axis=0) - 9.5).max() < 5 * 0.29


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 25])
def test_iterating_goes_to_the_end_of_the_epoch(start: int) -> None:
    sampler = PlanSampler(np.arange(10), seed=0, start=start)
    stop = (start // 10 + 1) * 10
    assert list(sampler) == sampler.rows_at(start, stop).tolist()
    assert len(sampler) == stop - start


def test_plain_data_loader_walks_the_epochs() -> None:
    sampler = PlanSampler(np.array([4, 2, 9, 7]), seed=0)
    loader = DataLoader(np.arange(10), sampler=sampler, batch_size=2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert [int(x) for batch in loader for x in batch] == sampler.rows_at(epoch * 4, epoch * 4 + 4).tolist()


@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 12, 1), (1, 2, 6), (2, 3, 2), (3, 4, 1), (4, 1, 3)])
def test_union_over_ranks_is_the_single_rank_batch(world: int, micro: int, accumulation: int) -> None:
    sampler, steps, batch = PlanSampler(np.arange(31), seed=5), 7, 12
    expected = [Counter(sampler.rows_at(t * batch, (t + 1) * batch).tolist()) for t in range(steps)]
    for first in (0, 1, 4):  # also after a seek
        ranks = []
        for rank in range(world):
            batches = PlanBatches(sampler, batch_size=micro, num_batches=steps * batch // micro)
            batches.start = first * batch // micro
            shard = BatchSamplerShard(batches, world, rank) if world > 1 else batches
            ranks.append(list(shard))
        for step in range(first, steps):
            at = slice((step - first) * accumulation, (step - first + 1) * accumulation)
            assert Counter(row for rank in ranks for part in rank[at] for row in part) == expected[step]


def test_all_batches_are_full_across_epoch_ends() -> None:
    batches = PlanBatches(PlanSampler(np.arange(5), seed=0), batch_size=4, num_batches=2000)
    assert {len(batch) for batch in batches} == {4}
    assert len(batches) == 2000


def test_digest_names_rows_order_and_seed() -> None:
    rows = np.array([1, 2, 3])
    assert PlanSampler(rows, seed=0).digest == PlanSampler(rows.astype(np.int32), seed=0).digest
    others = {PlanSampler(rows, seed=1).digest, PlanSampler(rows[::-1], seed=0).digest, PlanSampler(rows[:2]).digest}
    assert len(others | {PlanSampler(rows, seed=0).digest}) == 4


@pytest.mark.parametrize("row_k", [np.empty(0, dtype=np.int64), np.zeros((2, 2), dtype=np.int64)])
def test_rows_must_be_a_filled_vector(row_k: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="needs \\(k,\\) rows"):
        PlanSampler(row_k)
