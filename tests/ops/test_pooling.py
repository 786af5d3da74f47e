"""Pooling against the given numbers and loops over real tokens; padding changes nothing."""

import numpy as np
import pytest
import torch

from dataflex_tools.ops.pooling import POOLINGS, pool, pooling_weights
from tests.helpers import vector

# the vector is float64, pooling float32
FLOAT32 = {"rtol": 1e-6, "atol": 1e-7}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def naive(hidden_TH, pooling):
    """Of one sample without padding, as written."""
    num = len(hidden_TH)
    weight = {"mean": [1] * num, "last": [0] * (num - 1) + [1], "weighted_mean": range(1, num + 1)}[pooling]
    return sum(w * h for w, h in zip(weight, hidden_TH, strict=True)) / sum(weight)


@pytest.mark.parametrize(
    ("hidden", "mask", "expected"),
    [
        (("hidden",), ("attention_mask",), "phi"),
        (("anchor_hidden",), ("anchor_mask",), "anchor_phi"),
        (("left_padded", "hidden"), ("left_padded", "mask"), "left_padded_token_index"),
    ],
)
def test_weighted_mean_gives_the_numbers_of_the_vector(hidden, mask, expected):
    data = vector("adapt_weights")

    def take(path):
        value = data["inputs"]
        for key in path:
            value = value[key]
        return torch.tensor(value, dtype=torch.float64)

    found = pool(take(hidden), take(mask), "weighted_mean").numpy()
    np.testing.assert_allclose(unit(found), np.atleast_2d(data["expected"][expected]), **FLOAT32)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_is_the_loop_over_real_tokens_for_any_padding(pooling, side):
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(length, 4)) for length in (3, 1, 6, 5)]
    hidden, mask = np.full((4, 6, 4), np.nan), np.zeros((4, 6), dtype=bool)
    for index, sample in enumerate(samples):
        where = slice(0, len(sample)) if side == "right" else slice(6 - len(sample), 6)
        hidden[index, where], mask[index, where] = sample, True
    found = pool(torch.from_numpy(hidden), torch.from_numpy(mask), pooling)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, [naive(sample, pooling) for sample in samples], **FLOAT32)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_weights_sum_to_one_and_padding_has_none(pooling):
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
    weight = pooling_weights(mask, pooling)
    torch.testing.assert_close(weight.sum(1), torch.ones(3))
    assert not weight[mask == 0].any()


def test_low_precision_states_are_summed_in_float32():
    hidden = torch.full((1, 2000, 1), 0.1, dtype=torch.bfloat16)
    found = pool(hidden, torch.ones(1, 2000), "mean")
    torch.testing.assert_close(found, torch.full((1, 1), hidden[0, 0, 0].item()))


def test_unknown_pooling_is_named():
    with pytest.raises(ValueError, match="'max'"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "max")
