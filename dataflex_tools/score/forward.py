"""What signals that need no backward pass have in common."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

_CPU_TOKENS, _GPU_TOKENS = 2048, 32768  # a GPU holds no activations for a backward pass here: twice those of gradients


class ForwardSettings(Protocol):
    """Settings of such a signal."""

    @property
    def token_budget(self) -> int | None:
        """Padded tokens of a batch at most, None for the default of the device."""
        ...

    @property
    def part_rows(self) -> int:
        """Samples of a part."""
        ...

    def address(self) -> dict[str, Any]:
        """The settings the numbers depend on."""
        ...


class ForwardSignal:
    """A model, settings, and sizes of batches and parts."""

    def __init__(self, model: torch.nn.Module, settings: ForwardSettings) -> None:
        self._model, self._sizes, self._address = model, settings, settings.address()

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on, for the signal's address."""
        return self._address

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch at most."""
        return self._sizes.token_budget or (_CPU_TOKENS if self._device.type == "cpu" else _GPU_TOKENS)

    @property
    def part_rows(self) -> int:
        """Samples of a part."""
        return self._sizes.part_rows

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device
