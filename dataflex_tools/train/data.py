"""Token rows as a torch dataset, and the collator that pads them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from dataflex_tools.data.packed import Blocks
    from dataflex_tools.data.tokenized import Tokens

# B batch, T tokens


class TokensDataset(Dataset[dict[str, np.ndarray]]):
    """Row i of `tokens` as `input_ids` and `labels`, each (T,); labels are -100 where nothing is learned."""

    def __init__(self, tokens: "Tokens") -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.tokens.input_ids(row), "labels": self.tokens.labels(row)}


class BlocksDataset(TokensDataset):
    """As `TokensDataset`, with `position_ids` (T,) that start anew at each document, by which attention stays inside one."""

    tokens: "Blocks"

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {**super().__getitem__(row), "position_ids": self.tokens.positions(row)}


def dataset_of(tokens: "Tokens | Blocks") -> TokensDataset:
    """The rows of a corpus as a model trains on them."""
    from dataflex_tools.data.packed import Blocks

    return BlocksDataset(tokens) if isinstance(tokens, Blocks) and not tokens.attends_across else TokensDataset(tokens)


class PadCollator:
    """Pads on the right: a causal model needs no mask then, as no token sees the padding.

    `with_mask` adds one, (B, T), for what counts tokens beside their losses: the balance of a mixture of experts.
    """

    def __init__(self, pad_id: int = 0, *, with_mask: bool = False) -> None:
        self.pad_id = pad_id
        self.with_mask = with_mask

    def __call__(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, (B, T); labels of padding are -100."""
        shape = (len(items), max(len(item["input_ids"]) for item in items))
        ids_BT, labels_BT = np.full(shape, self.pad_id, dtype=np.int64), np.full(shape, -100, dtype=np.int64)
        for index, item in enumerate(items):
            ids_BT[index, : len(item["input_ids"])] = item["input_ids"]
            labels_BT[index, : len(item["labels"])] = item["labels"]
        batch = {"input_ids": torch.from_numpy(ids_BT), "labels": torch.from_numpy(labels_BT)}
        if "position_ids" in items[0]:  # of blocks, which are equally long
            batch["position_ids"] = torch.from_numpy(np.stack([item["position_ids"] for item in items]))
        elif self.with_mask:
            length_B1 = torch.tensor([[len(item["input_ids"])] for item in items])
            batch["attention_mask"] = (torch.arange(shape[1]) < length_B1).long()
        return batch
