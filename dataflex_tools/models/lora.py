"""LoRA adapters: a new one, or one from a folder."""

from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.models.settings import LoraSettings


def add_lora(model: PreTrainedModel, lora: LoraSettings, *, seed: int) -> PeftModel:
    """The model with a fresh trainable adapter; its weights are a function of `seed`, global streams stay untouched.

    Raises ConfigError if a target matches no layer.
    """
    targets = lora.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=cast(int, lora.alpha), lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.use_rslora, use_dora=lora.use_dora,
    )  # fmt: skip
    try:
        with seeded(seed):
            return cast(PeftModel, get_peft_model(model, config))
    except ValueError as error:
        raise ConfigError(f"lora: {' '.join(str(error).split())}") from None


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = True) -> PeftModel:
    """The model with the adapter in `folder`. Raises ArtifactError if the folder holds none in safetensors."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} has no {name}: it is not a finished adapter; run the warm-up again")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


class seeded:  # noqa: N801 - reads as a statement: with seeded(0)
    """Within it torch draws from a fresh stream on all devices; afterwards the global streams are as before."""

    def __init__(self, seed: int) -> None:
        self._seed, self._fork = seed, torch.random.fork_rng()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.random.manual_seed(self._seed)

    def __exit__(self, *exc: object) -> None:
        self._fork.__exit__(None, None, None)
