"""Batches: every sample once, padded size within the budget, padding that changes nothing."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex_tools.score.batches import pad_batch, token_batches
from tests.score.builders import FakeTokens


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_every_sample_once_within_the_budget_and_no_batch_could_take_its_next(lengths, budget):
    lengths = np.array(lengths, dtype=np.int32)
    batches = token_batches(lengths, budget)
    flat = [row for batch in batches for row in batch]
    assert flat == sorted(range(len(lengths)), key=lambda row: lengths[row])
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * lengths[following[0]] > budget


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_keeps_tokens_and_labels_and_ignores_the_rest(side):
    tokens = FakeTokens([3, 7, 5])
    batch = pad_batch(tokens, [0, 1, 2], side=side, pad_id=9)
    for index, row in enumerate([0, 1, 2]):
        length = int(tokens.num_tokens_N[row])
        where = slice(0, length) if side == "right" else slice(7 - length, 7)
        rest = np.delete(np.arange(7), np.arange(7)[where])
        np.testing.assert_array_equal(batch["input_ids"][index, where], tokens.input_ids(row))
        np.testing.assert_array_equal(batch["labels"][index, where], tokens.labels(row))
        assert (batch["input_ids"][index, rest] == 9).all()
        assert (batch["labels"][index, rest] == -100).all()
    if side == "left":
        assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([3, 7, 5]))
        assert torch.equal(batch["position_ids"][:, -1], torch.tensor([2, 6, 4]))
