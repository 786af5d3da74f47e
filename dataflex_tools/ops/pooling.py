"""One vector per sample from its tokens' hidden states."""

from typing import Literal, get_args

import torch

# B samples, T tokens of the longest, H hidden size

Pooling = Literal["mean", "last", "weighted_mean"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def pooling_weights(is_real_BT: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Weight of each position, (B, T) float32; sums to 1 per sample, 0 where `is_real_BT` is.

    Positions are counted among a sample's real tokens, so the side of the padding does not matter: the last is the last
    real one, and `weighted_mean` weighs the i-th real token by i, as RDS+ does (Ivison et al. 2025, arXiv 2503.01807).
    """
    is_real_BT = is_real_BT.bool()
    position_BT = is_real_BT.cumsum(1) * is_real_BT
    if pooling == "mean":
        weight_BT = is_real_BT.float()
    elif pooling == "last":
        weight_BT = (is_real_BT & (position_BT == position_BT.amax(1, keepdim=True))).float()
    elif pooling == "weighted_mean":
        weight_BT = position_BT.float()
    else:
        raise ValueError(f"pooling is {pooling!r}, wanted one of {', '.join(POOLINGS)}")
    return weight_BT / weight_BT.sum(1, keepdim=True).clamp(min=1)


def pool(hidden_BTH: torch.Tensor, is_real_BT: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Weighted mean of each sample's hidden states, (B, H) float32; whatever stands at padded positions is ignored."""
    weight_BT = pooling_weights(is_real_BT, pooling)
    # padding may hold NaN, and 0 * NaN is NaN
    real_BTH = hidden_BTH.float().masked_fill(~is_real_BT.bool().unsqueeze(2), 0.0)
    return torch.bmm(weight_BT.unsqueeze(1), real_BTH).squeeze(1)
