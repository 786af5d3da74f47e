"""Losses per sample against a loop over positions."""

import numpy as np
import pytest
import torch

from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.losses import per_sample_loss, sample_losses
from tests.score.builders import ROUNDING, FakeTokens, mean_loss, tiny_base, tiny_model

LENGTHS = [5, 17, 9, 30, 4, 12]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("build", [tiny_base, tiny_model])
def test_loss_is_the_loop_over_label_positions_for_any_padding(kind, side, build):
    model, tokens = build(kind), FakeTokens(LENGTHS)
    sum_B, num_B = per_sample_loss(model, pad_batch(tokens, range(6), side=side))
    expected = torch.stack([mean_loss(model, tokens, row) for row in range(6)]).float()
    np.testing.assert_array_equal(num_B, tokens.num_labels_N)
    torch.testing.assert_close(sum_B / num_B, expected, **ROUNDING)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_losses_of_a_corpus_keep_row_order_for_any_budget(budget):
    model, tokens = tiny_model(), FakeTokens(LENGTHS)
    rows = np.array([3, 0, 5])
    sum_N, num_N = sample_losses(model, tokens, rows, token_budget=budget)
    expected = [mean_loss(model, tokens, row).item() for row in rows]
    np.testing.assert_allclose(sum_N / num_N, expected, **ROUNDING)


def test_sample_without_labels_has_sum_zero_and_count_zero():
    model, tokens = tiny_model(), FakeTokens([6, 8], unlabelled=[1])
    sum_B, num_B = per_sample_loss(model, pad_batch(tokens, [0, 1]))
    assert (float(sum_B[1].detach()), int(num_B[1])) == (0.0, 0)
    sum_B, num_B = per_sample_loss(model, pad_batch(tokens, [1]))
    assert (float(sum_B[0]), int(num_B[0])) == (0.0, 0)


def test_head_sees_label_positions_only_and_is_left_as_it_was():
    model, tokens = tiny_model(), FakeTokens(LENGTHS)
    widths = []
    handle = model.get_base_model().lm_head.register_forward_hook(lambda _, args, out: widths.append(out.shape[:2]))
    per_sample_loss(model, pad_batch(tokens, range(6)))
    assert widths == [(1, tokens.num_labels_N.sum())]
    handle.remove()
    assert model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.shape[1] == 4


def test_dropout_is_off_while_losses_are_measured_and_training_mode_returns():
    model, tokens = tiny_model(dropout=0.5), FakeTokens(LENGTHS)
    expected = sample_losses(model, tokens, np.arange(6))[0]
    model.train()
    np.testing.assert_array_equal(sample_losses(model, tokens, np.arange(6))[0], expected)
    assert model.training
