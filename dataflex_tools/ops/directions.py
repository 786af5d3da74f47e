"""Random directions that are drawn anew whenever they are needed and never stored."""

import math

import torch

from dataflex_tools.core import rng
from dataflex_tools.ops.sketch import hashed

# P elements of a direction

_BLOCK_WORDS = 1 << 20  # random words alive at once: 8 MiB and a few times that in between


def gaussian_direction(size: int, *, seed: int, number: int, name: str, device: torch.device) -> torch.Tensor:
    """Independent standard normal numbers, (P,) float32: a function of (seed, number, name, size) alone.

    The random words are the same on every device; logarithm and cosine may differ between devices in the last bit.
    """
    # each word gives two numbers (Box and Muller 1958), one for each half of the direction
    half = (size + 1) // 2
    key = rng.key_of(seed, "direction", number, name) - (1 << 63)  # as a signed 64-bit number
    out_P = torch.empty(2 * half, device=device)
    for start in range(0, half, _BLOCK_WORDS):
        stop = min(start + _BLOCK_WORDS, half)
        word = hashed(torch.arange(start, stop, device=device) + key)
        # the halves of a word as numbers in (0, 1): half a step away from 0, whose logarithm is infinite
        radius = ((((word >> 32) & 0xFFFFFFFF).float() + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
        angle = (word & 0xFFFFFFFF).float() * (2 * math.pi * 2.0**-32)
        torch.mul(radius, angle.cos(), out=out_P[start:stop])
        torch.mul(radius, angle.sin(), out=out_P[half + start : half + stop])
    return out_P[:size]
