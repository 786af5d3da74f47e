"""Random projections of gradients that arrive module by module; the P x D matrix never exists.

Every projection keeps inner products in expectation: E<Sx, Sy> = <x, y>. Its numbers are a function of the seed and the
module's name alone, so that device, batch size, order and rank count do not matter.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from dataflex_tools.core import rng
from dataflex_tools.core.errors import ConfigError, did_you_mean

# B batch, P parameters of one module, D projected dims, C chunks of D parameters

_GATHER_CHUNKS = 4  # on a GPU one gather replaces more chunk-wise additions than this: launches cost more than bytes
_WORD_BITS = 32
_BLOCK_WORDS = 1 << 22  # random words of the dense projection alive at once: 32 MiB


class Projection(Protocol):
    """Adds a module's gradients into the projected vector of each sample."""

    @property
    def dim(self) -> int:
        """Number of projected dims D."""
        ...

    def add(self, out_BD: torch.Tensor, grad_BP: torch.Tensor, module: str) -> None:
        """Add the projection of `grad_BP` (B, P) to `out_BD` (B, D), both float32 on one device."""
        ...


class Sketch:
    """Balanced CountSketch: each parameter has a random sign and goes to one of D buckets.

    A module's parameters are cut into chunks of D; each chunk is added under its own random rotation. Two parameters of
    a chunk never meet, two of different chunks meet with probability 1/D, as in CountSketch (Charikar, Chen and
    Farach-Colton 2002), so its variance bound holds. A rotation is two slices: no gather and no atomics.
    """

    def __init__(self, sizes: Mapping[str, int], dim: int, *, seed: int) -> None:
        self.dim, self._seed, self._sizes = dim, seed, dict(sizes)
        self._cache: dict[tuple[str, torch.device], tuple[torch.Tensor, list[int], torch.Tensor | None]] = {}

    def add(self, out_BD: torch.Tensor, grad_BP: torch.Tensor, module: str) -> None:
        """Add the sketch of `grad_BP` (B, P) to `out_BD` (B, D)."""
        sign_P, shift_C, source = self._hashes(module, grad_BP.device)
        if source is not None:
            padded = torch.zeros(len(grad_BP), len(shift_C) * self.dim, device=grad_BP.device)
            torch.mul(grad_BP, sign_P, out=padded[:, : grad_BP.shape[1]])
            out_BD += padded.index_select(1, source).view(len(grad_BP), -1, self.dim).sum(1)
            return
        for chunk, shift in enumerate(shift_C):
            start, end = chunk * self.dim, min((chunk + 1) * self.dim, grad_BP.shape[1])
            middle = min(end, start + self.dim - shift)
            for low, high, to in ((start, middle, shift), (middle, end, 0)):
                if high > low:
                    out_BD[:, to : to + high - low].addcmul_(grad_BP[:, low:high], sign_P[low:high])

    def _hashes(self, module: str, device: torch.device) -> tuple[torch.Tensor, list[int], torch.Tensor | None]:
        key = (module, device)
        if key not in self._cache:
            size = self._sizes[module]
            bits = rng.generator(self._seed, "sketch", "sign", module).bit_generator.random_raw((size + 63) // 64)
            sign_P = np.unpackbits(bits.astype("<u8").view(np.uint8))[:size].astype(np.float32) * 2 - 1
            chunks = -(-size // self.dim)
            raw_C = rng.generator(self._seed, "sketch", "shift", module).bit_generator.random_raw(chunks)
            shift_C = (raw_C % np.uint64(self.dim)).astype(np.int64)
            source = None
            if device.type != "cpu" and chunks > _GATHER_CHUNKS:
                column_CD = (np.arange(self.dim) - shift_C[:, None]) % self.dim
                flat = (column_CD + np.arange(chunks)[:, None] * self.dim).ravel()
                source = torch.from_numpy(flat.astype(np.int32)).to(device)
            self._cache[key] = torch.from_numpy(sign_P).to(device), shift_C.tolist(), source
        return self._cache[key]


class Rademacher:
    """Dense projection with entries +-1/sqrt(D), drawn block by block from a counter hash; slow, for comparison."""

    def __init__(self, sizes: Mapping[str, int], dim: int, *, seed: int) -> None:
        self.dim, self._seed, self._sizes = dim, seed, dict(sizes)

    def add(self, out_BD: torch.Tensor, grad_BP: torch.Tensor, module: str) -> None:
        """Add the dense projection of `grad_BP` (B, P) to `out_BD` (B, D)."""
        size, words = self._sizes[module], -(-self.dim // _WORD_BITS)
        key = rng.key_of(self._seed, "rademacher", module) - (1 << 63)  # as a signed 64-bit number
        step = max(1, _BLOCK_WORDS // (words * _WORD_BITS))
        for start in range(0, size, step):
            block = torch.arange(start * words, min(start + step, size) * words, device=grad_BP.device)
            word = hashed(block + key).view(-1, words, 1)
            bit = torch.arange(_WORD_BITS, device=grad_BP.device)
            sign = (((word >> bit) & 1) * 2 - 1).flatten(1)[:, : self.dim].to(grad_BP.dtype)
            out_BD.addmm_(grad_BP[:, start : start + step], sign, alpha=self.dim**-0.5)


def hashed(x: torch.Tensor) -> torch.Tensor:
    """A random word for each int64 of `x`, the same on every device."""
    # splitmix64 finaliser in wrapping int64; >> keeps the sign, so the vacated bits are masked off
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class Unprojected:
    """The full gradient: modules side by side in the order of `sizes`; `dim` is their sum. For small models."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        starts = np.concatenate([[0], np.cumsum(list(sizes.values()))])
        self.dim = int(starts[-1])
        self._start = {name: int(start) for name, start in zip(sizes, starts, strict=False)}

    def add(self, out_BD: torch.Tensor, grad_BP: torch.Tensor, module: str) -> None:
        """Add `grad_BP` (B, P) to the module's own columns of `out_BD` (B, D)."""
        start = self._start[module]
        out_BD[:, start : start + grad_BP.shape[1]] += grad_BP


PROJECTIONS = ("none", "rademacher", "sketch")


def make_projection(name: str, sizes: Mapping[str, int], dim: int, *, seed: int) -> Projection:
    """The projection of that name; `sizes`: parameters per module, in order. Raises ConfigError for an unknown name."""
    if name == "sketch":
        return Sketch(sizes, dim, seed=seed)
    if name == "rademacher":
        return Rademacher(sizes, dim, seed=seed)
    if name == "none":
        return Unprojected(sizes)
    raise ConfigError(f"there is no projection {name!r}; {did_you_mean(name, PROJECTIONS)}")
