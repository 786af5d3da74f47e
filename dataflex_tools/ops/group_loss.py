"""The training loss of a batch in which every domain has a weight, in parts that add up over micro-batches and ranks.

Xie et al. 2023, "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", https://arxiv.org/abs/2305.10429,
Algorithm 1 (`paper`); the loss of the authors' code, doremi/trainer.py (`official`).
"""

from typing import Literal, TypeAlias

import numpy as np
import torch

# B rows, T token positions, K domains

Array: TypeAlias = "torch.Tensor | np.ndarray"

LossKind = Literal["paper", "official"]


def domain_weighted_loss(loss_BT: torch.Tensor, is_label_BT: torch.Tensor, domain_B: torch.Tensor, weight_K: Array,
                         num_tokens_K: Array, *, kind: LossKind, sampling_K: Array) -> torch.Tensor:  # fmt: skip
    """This micro-batch's share of the global batch's loss, a differentiable scalar in float32 or wider.

    `loss_BT`: nats per position; `is_label_BT`: bool, positions that count; `domain_B`: int64, domain of each row;
    `num_tokens_K`: label tokens per domain of the whole global batch, over all micro-batches and ranks. The shares of all
    of them add up to the loss of the global batch, and so do their gradients; a trainer that averages over ranks or
    micro-batches multiplies by their number. A domain without tokens contributes 0.

    `paper`: sum_i w_i x mean loss over the tokens of domain i. `official`: mean loss over all tokens, each weighted by
    u = w / q of its domain, sum(u l) / sum(u); `sampling_K`: q, the proportions the batch was drawn by, all above 0.
    """
    dtype = torch.promote_types(loss_BT.dtype, torch.float32)
    weight_K, num_K, sampling_K = (
        torch.as_tensor(x, dtype=dtype, device=loss_BT.device).detach() for x in (weight_K, num_tokens_K, sampling_K)
    )
    if kind == "paper":
        scale_K = weight_K / num_K.clamp(min=1)
    elif kind == "official":
        token_weight_K = weight_K / sampling_K
        total = (token_weight_K * num_K).sum()
        scale_K = token_weight_K / torch.where(total > 0, total, 1)
    else:
        raise ValueError(f"loss kind {kind!r}, wanted 'paper' or 'official'")
    # masked, not multiplied by 0: a position without label may hold NaN or infinity
    sum_B = loss_BT.to(dtype).masked_fill(~is_label_BT, 0).sum(dim=1)
    return (sum_B * scale_K[domain_B]).sum()
