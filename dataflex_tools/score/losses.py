"""Loss per label token and per sample, with the language-model head run at label positions only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from dataflex_tools.data.tokenized import IGNORED
from dataflex_tools.score.batches import Measurable, model_inputs, pad_batch, token_batches
from dataflex_tools.score.chunks import logits_in_chunks

# B samples of a batch, T tokens, S label positions in the batch, V vocabulary, N rows asked for


def per_sample_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum_B float32 nats over a sample's label positions, num_labels_B int64 after the shift); differentiable.

    Cross entropy is float32. A sample without labels has sum 0 and count 0.
    """
    labels_BT, device = batch["labels"], next(model.parameters()).device
    target_S, index_S, num_B = _label_positions(labels_BT)
    target_S, index_S = target_S.to(device), index_S.to(device)
    inputs = model_inputs(batch, device)
    if len(index_S) == 0:
        return torch.zeros(len(labels_BT), device=device), num_B.to(device)
    with _head_only_at(model, index_S) as is_picked:
        logits = model(**inputs, use_cache=False).logits
    logits_SV = logits.flatten(0, -2)
    if not is_picked:
        logits_SV = logits_SV.index_select(0, index_S)
    loss_S = F.cross_entropy(logits_SV.float(), target_S, reduction="none")
    flat = torch.zeros(labels_BT.numel(), device=device).index_copy(0, index_S, loss_S)
    return flat.view(labels_BT.shape).sum(1), num_B.to(device)


def num_labels(labels_BT: torch.Tensor) -> torch.Tensor:
    """Label positions of each sample after the shift, (B,) int64."""
    return (labels_BT[:, 1:] != IGNORED).sum(1)


def _label_positions(labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(label_S, flat position_S that predicts it, num_labels_B), sample by sample, each in token order."""
    target_BT = torch.full_like(labels_BT, IGNORED)
    target_BT[:, :-1] = labels_BT[:, 1:]
    # found where the labels are: no transfer from the device just to learn how many there are
    index_S = (target_BT != IGNORED).flatten().nonzero().flatten()
    return target_BT.flatten()[index_S], index_S, num_labels(labels_BT)


@contextmanager
def _head_only_at(model: torch.nn.Module, index_S: torch.Tensor) -> Iterator[bool]:
    """Let the output layer see the hidden states of these flat positions only; yields whether it does.

    A hook on the layer keeps what the model does to logits afterwards (scaling, soft caps). A head that is itself
    trained sees all positions, so that its inputs stay (B, T, hidden).
    """
    base: Any = model.get_base_model() if _is_peft(model) else model
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    is_trained = torch.is_grad_enabled() and head is not None and any(p.requires_grad for p in head.parameters())
    if head is None or is_trained:
        yield False
        return

    def pick(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].flatten(0, 1).index_select(0, index_S).unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield True
    finally:
        handle.remove()


def _is_peft(model: torch.nn.Module) -> bool:
    """Whether the model is wrapped by peft."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


@contextmanager
def measuring(model: torch.nn.Module) -> Iterator[None]:
    """Inside, no gradient is kept and dropout is off; the model's mode returns afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def label_losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """(loss_S float32 nats of each label token, sample by sample in token order; num_labels_B int64); call it `measuring`.

    Cross entropy is float32. The layers run once; logits exist for one chunk of label positions at a time, so that their
    memory does not grow with batch x vocabulary.
    """
    device = next(model.parameters()).device
    target_S, index_S, num_B = _label_positions(batch["labels"])
    if len(index_S) == 0:
        return np.zeros(0, np.float32), num_B.cpu().numpy()
    loss_S, start = torch.empty(len(index_S), device=device), 0
    for logits_CV in logits_in_chunks(model, model_inputs(batch, device), index_S.to(device)):
        chunk = slice(start, start + len(logits_CV))
        loss_S[chunk] = F.cross_entropy(logits_CV.float(), target_S[chunk].to(device), reduction="none")
        start = chunk.stop
    return loss_S.cpu().numpy(), num_B.cpu().numpy()


def summed(loss_S: np.ndarray, num_B: np.ndarray) -> np.ndarray:
    """Losses of label tokens summed per sample, (B,) float64, in token order whatever else is in the batch."""
    sample_S = np.repeat(np.arange(len(num_B)), num_B)
    return np.bincount(sample_S, weights=loss_S, minlength=len(num_B))


def sample_losses(
    model: torch.nn.Module, tokens: Measurable, rows: np.ndarray, *, token_budget: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """(sum_N float64 nats, num_labels_N int64) of `rows`, in their order; no gradient, dropout off."""
    rows = np.asarray(rows, dtype=np.int64)
    sum_N, num_N = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    with measuring(model):
        for batch in token_batches(np.asarray(tokens.num_tokens_N)[rows], token_budget):
            loss_S, num_N[batch] = label_losses(model, pad_batch(tokens, rows[batch]))
            sum_N[batch] = summed(loss_S, num_N[batch])
    return sum_N, num_N
