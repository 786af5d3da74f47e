"""The Adam moments of an optimizer by parameter name, as a safetensors file."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from dataflex_tools.core.errors import ConfigError

_KEYS = ("exp_avg", "exp_avg_sq")


def adam_moments(model: nn.Module, optimizer: Any, *, is_deepspeed: bool) -> dict[str, torch.Tensor]:
    """`exp_avg.<parameter>` and `exp_avg_sq.<parameter>` of every trainable parameter, float32 on the CPU.

    Sharded state is gathered, so all ranks must call it. Raises ConfigError if the optimizer keeps no such state.
    """
    moments = {}
    for name, parameter in model.named_parameters():
        for key in _KEYS if parameter.requires_grad else ():
            value = _state(parameter, optimizer, key, is_deepspeed)
            if value is None:
                raise ConfigError(f"the optimizer keeps no {key} for {name}; warm up with training.optim=adamw_torch")
            # a copy: the optimizer goes on writing to its own
            moments[f"{key}.{name}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    return moments


def _state(parameter: nn.Parameter, optimizer: Any, key: str, is_deepspeed: bool) -> torch.Tensor | None:
    if is_deepspeed:
        from deepspeed.utils import safe_get_full_optimizer_state

        # without ZeRO it finds nothing and the state is where it always is
        if (value := safe_get_full_optimizer_state(parameter, key)) is not None:
            return value
    value = optimizer.state.get(parameter, {}).get(key)
    return value.full_tensor() if isinstance(value, DTensor) else value


def save_moments(path: Path, moments: dict[str, torch.Tensor], **numbers: float) -> None:
    """Write moments with `numbers` (step, beta1, beta2, eps) as metadata; equal moments give equal bytes."""
    save_file(moments, path, metadata={key: json.dumps(value) for key, value in numbers.items()})
    # the library writes metadata in hash order, another one in each process: sort it in place
    with path.open("r+b") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, "a sorted header is as long as the unsorted one"
        handle.seek(8)
        handle.write(text)
