"""Batches for measuring: samples of like length together, padded size under a token budget."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch

from dataflex_tools.data.packed import Blocks
from dataflex_tools.data.tokenized import IGNORED

# B samples of a batch, T tokens of the longest

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


class TokenRows(Protocol):
    """What padding reads of a tokenized corpus."""

    def input_ids(self, row: int) -> np.ndarray:
        """Token ids, (T,) int32."""
        ...

    def labels(self, row: int) -> np.ndarray:
        """Labels, (T,) int64, -100 where ignored."""
        ...


class Measurable(TokenRows, Protocol):
    """What measuring reads of a tokenized corpus."""

    @property
    def num_tokens_N(self) -> np.ndarray:
        """Tokens of each row, (N,)."""
        ...


def token_batches(num_tokens_N: np.ndarray, budget: int) -> list[np.ndarray]:
    """Positions of each batch, int64 arrays, shortest samples first; a batch's padded tokens stay within `budget`.

    A sample longer than the budget has a batch of its own. Equal lengths keep their order.
    """
    order = np.argsort(num_tokens_N, kind="stable").astype(np.int64)
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        # the next sample is the longest so far: all are padded to it
        if end == len(order) or (end + 1 - start) * int(num_tokens_N[order[end]]) > budget:
            batches.append(order[start:end])
            start = end
    return batches


def pad_batch(
    tokens: TokenRows, rows: Sequence[int] | np.ndarray, *, side: Literal["right", "left"] = "right", pad_id: int = 0
) -> dict[str, torch.Tensor]:
    """input_ids and labels, (B, T) int64.

    Right padding comes after everything a causal model looks at, so it needs no mask; left padding adds attention_mask
    and position_ids.
    """
    ids = [np.asarray(tokens.input_ids(int(row))) for row in rows]
    width = max(len(item) for item in ids)
    input_ids = np.full((len(ids), width), pad_id, dtype=np.int64)
    labels = np.full((len(ids), width), IGNORED, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for index, (item, row) in enumerate(zip(ids, rows, strict=True)):
        where = slice(0, len(item)) if side == "right" else slice(width - len(item), width)
        input_ids[index, where], labels[index, where], mask[index, where] = item, tokens.labels(int(row)), 1
    batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
    if isinstance(tokens, Blocks) and not tokens.attends_across:
        batch["position_ids"] = torch.from_numpy(np.stack([tokens.positions(int(row)) for row in rows]))
    if side == "left":
        batch["attention_mask"] = torch.from_numpy(mask)
        batch["position_ids"] = torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))
    return batch


def model_inputs(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """What a model's forward takes of a batch, on `device`; labels, rows and lengths stay behind."""
    return {name: batch[name].to(device) for name in MODEL_INPUTS if name in batch}
