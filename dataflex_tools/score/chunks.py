"""Logits at chosen positions, a chunk at a time: the layers run once, what a model does after them once per chunk.

The model's own forward is called for each chunk, so that what it does to hidden states or logits (norms, adapters of the
head, scaling, soft caps) stays in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

# C positions of a chunk, S positions asked for, V vocabulary

_CHUNK_LOGITS = 1 << 26  # 256 MiB in float32; cross entropy holds some three times that


def logits_in_chunks(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], index_S: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Logits (C, V) at the flat (sample, token) positions `index_S`, in order; without gradient.

    A model of unknown make, whose layers cannot be told from what follows them, makes the logits of all tokens at once.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = base.base_model if isinstance(base, PreTrainedModel) else None
    if layers is None or layers is base:
        yield from _selected(model(**inputs, use_cache=False).logits, index_S)
        return
    positions = _positions(base.config.get_text_config().vocab_size)
    with _run_once(layers) as picked:
        for picked.index_C in index_S.split(positions):
            logits = model(**inputs, use_cache=False).logits
            if not picked.is_used:
                yield from _selected(logits, index_S)
                return
            yield logits.flatten(0, -2)


def _positions(vocabulary: int) -> int:
    return max(1, _CHUNK_LOGITS // vocabulary)


def _selected(logits_BTV: torch.Tensor, index_S: torch.Tensor) -> Iterator[torch.Tensor]:
    for index_C in index_S.split(_positions(logits_BTV.shape[-1])):
        yield logits_BTV.flatten(0, -2).index_select(0, index_C)


class _Picked:
    """Stands for the forward of some layers: runs them the first time, gives the positions `index_C` every time."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward, self._output = forward, ModelOutput()
        self.index_C, self.is_used = torch.empty(0), False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_used:
            output = self._forward(*args, **kwargs)
            if not isinstance(output, ModelOutput) or "last_hidden_state" not in output:
                return output
            self._output, self.is_used = output, True
        hidden_CH = self._output["last_hidden_state"].flatten(0, 1).index_select(0, self.index_C)
        return type(self._output)(**{**self._output, "last_hidden_state": hidden_CH.unsqueeze(0)})


@contextmanager
def _run_once(layers: torch.nn.Module) -> Iterator[_Picked]:
    """Inside, `layers` is called any number of times and runs once."""
    own = vars(layers).get("forward")  # other libraries put theirs here too
    picked = _Picked(layers.forward)
    layers.forward = picked
    try:
        yield picked
    finally:
        if own is None:
            del layers.forward
        else:
            layers.forward = own
