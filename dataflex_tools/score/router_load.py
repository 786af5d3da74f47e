"""Router loads: how many tokens each expert of the last mixture-of-experts layer gets.

What dynamic mixing observes: Zhu et al. 2024, "Dynamic Data Mixing Maximizes Instruction Tuning for Mixture-of-Experts",
arXiv 2406.11256; beside it github.com/Spico197/MoE-SFT src/trainer.py, which takes the model's own `gate_load`
of the last layer. Departs from it: padding and tokens that are not trained on do not count, and loads of batches are
summed, not averaged, so that the size of a batch changes nothing.

The choices are read where transformers' experts are told theirs, the argument `top_k_index` of their forward. The top k of
`outputs.router_logits` are something else wherever a bias, a sigmoid or groups of experts come between (DeepSeek-V3,
GLM-4-MoE, ERNIE-4.5, grouped DeepSeek-V2).
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.data.tokenized import IGNORED
from dataflex_tools.models.load import empty_model
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.score.batches import model_inputs
from dataflex_tools.score.losses import measuring

# E experts, B samples of a batch, T tokens of the longest, S tokens counted, k experts a token is given to

_CHOICES = ("top_k_index", "router_indices")  # the second is gpt-oss's name for it
_WITH_EMPTY_EXPERTS = ("longcat_flash", "zaya")  # a token may go to none, which is not told apart where choices are read
_EXAMPLES = "mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v3 or gpt_oss"


def check_router(settings: ModelSettings) -> int:
    """Experts E of the last mixture-of-experts layer, from the model's configuration.

    Raises ConfigError, before any weight is read, for a dense model and for one whose routing cannot be observed.
    """
    return _num_experts(_last_experts(empty_model(settings), settings.path))


def router_loads(model: nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> np.ndarray:
    """Label tokens given to each expert of the last mixture-of-experts layer, (E,) float64; a token counts k times.

    A batch has `input_ids` and `labels`, (B, T), and `attention_mask` unless it is padded on the right; without `labels`
    every token of the mask counts. `model`: with or without an adapter, or wrapped for sharded parameters; no gradient is
    kept, dropout is off, the mode returns. A rank counts its own batches, so results are to be summed; with sharded
    parameters all ranks need equally many batches. Raises ConfigError for a model whose routing cannot be observed.
    """
    experts = _last_experts(model, "the model")
    num_experts, device = _num_experts(experts), next(model.parameters()).device
    load_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
    with measuring(model), _choices_of(experts) as seen:
        for batch in batches:
            # one position's logits: the loads need none
            model(**model_inputs(batch, device), use_cache=False, logits_to_keep=1)
            is_counted_S = _is_counted(batch).flatten().to(device)
            load_E += _counts(seen, is_counted_S, num_experts)
    return load_E.cpu().numpy().astype(np.float64)


def _last_experts(model: nn.Module, where: str) -> nn.Module:
    """The experts of the last layer that has some; layers are registered in the order in which they run."""
    found = [module for module in model.modules() if _choice_name(module) is not None]
    kind = _family(model)
    if kind in _WITH_EMPTY_EXPERTS:
        raise ConfigError(
            f"{where} is a {kind} model, which may give a token to no expert: its loads cannot be counted; choose another "
            f"mixture-of-experts model, e.g. {_EXAMPLES}, or a method without router loads"
        )
    if not found:
        raise ConfigError(
            f"{where} is a {kind} model, none of whose layers gives tokens to experts by number: it is dense or routes in "
            f"its own way; choose a mixture-of-experts model, e.g. {_EXAMPLES}, or a method without router loads"
        )
    return found[-1]


def _family(model: nn.Module) -> str:
    """The model type; a wrapper's own `config` may be something else, as DeepSpeed's is."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    return type(model).__name__ if inner is None else str(inner.config.model_type)


def _num_experts(experts: Any) -> int:
    return int(experts.num_experts)


def _choice_name(module: nn.Module) -> str | None:
    """The argument that holds the choices, (B * T, k), if the module is the experts of a layer."""
    names = inspect.signature(type(module).forward).parameters
    return next((name for name in _CHOICES if name in names), None)


@contextmanager
def _choices_of(experts: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, each call of the experts leaves its choices, (B * T, k), in the list."""
    name, signature = _choice_name(experts), inspect.signature(type(experts).forward)
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(signature.bind(module, *args, **kwargs).arguments[name])

    handle = experts.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _is_counted(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T) bool: tokens with a label, without labels those of the mask."""
    if "labels" in batch:
        return batch["labels"] != IGNORED
    return batch["attention_mask"] != 0


def _counts(seen: list[torch.Tensor], is_counted_S: torch.Tensor, num_experts: int) -> torch.Tensor:
    """(E,) int64 of one batch; empties `seen`."""
    if not seen:
        raise ConfigError(
            "the experts of the last layer were not called: a fused kernel stands in for their layer; load the model "
            "without it (use_kernels=False)"
        )
    choice_Sk = seen[-1]
    seen.clear()
    if len(choice_Sk) != len(is_counted_S):
        raise ConfigError(
            f"the model routes {len(choice_Sk):,} tokens of a batch of {len(is_counted_S):,}: an adapter adds virtual "
            "tokens; use one that does not, e.g. LoRA"
        )
    count = torch.bincount(choice_Sk[is_counted_S].flatten(), minlength=num_experts)
    if len(count) > num_experts:
        raise ConfigError(
            f"a token is given to expert {len(count) - 1} of {num_experts}: experts are spread over ranks; load the model "
            "without expert parallelism"
        )
    return count
