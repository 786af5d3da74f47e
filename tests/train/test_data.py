"""Collated rows are the rows, padded where nothing is learned."""

import numpy as np
import torch

from dataflex_tools.train.data import PadCollator, TokensDataset
from tests.train.conftest import FakeTokens, make_model


def test_batch_holds_each_row_and_pads_with_ignored_labels(tokens: FakeTokens) -> None:
    dataset = TokensDataset(tokens)
    assert len(dataset) == 30
    batch = PadCollator(pad_id=63)([dataset[row] for row in (0, 5, 7)])
    assert batch["input_ids"].shape == batch["labels"].shape == (3, max(len(tokens.ids[row]) for row in (0, 5, 7)))
    for index, row in enumerate((0, 5, 7)):
        length = len(tokens.ids[row])
        np.testing.assert_array_equal(batch["input_ids"][index, :length], tokens.ids[row])
        np.testing.assert_array_equal(batch["labels"][index, :length], tokens.labels(row))
        assert (batch["input_ids"][index, length:] == 63).all()
        assert (batch["labels"][index, length:] == -100).all()


def test_padding_does_not_change_the_loss(tokens: FakeTokens) -> None:
    model, dataset = make_model(lora=False).eval(), TokensDataset(tokens)
    with torch.no_grad():
        for rows in ((3, 4), (8, 1)):
            alone = [model(**PadCollator()([dataset[row]])).loss.item() for row in rows]
            count = [int((tokens.labels(row)[1:] != -100).sum()) for row in rows]
            together = model(**PadCollator(pad_id=9)([dataset[row] for row in rows])).loss.item()
            # float32 forward of other shapes
            np.testing.assert_allclose(together, np.average(alone, weights=count), rtol=1e-5)
