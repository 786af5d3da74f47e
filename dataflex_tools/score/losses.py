"""Loss per sample: summed over its label positions, with the language-model head run at those positions only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from dataflex_tools.data.tokenized import IGNORED
from dataflex_tools.score.batches import Measurable, model_inputs, pad_batch, token_batches

# B samples of a batch, T tokens, S label positions in the batch, V vocabulary, N rows asked for


def per_sample_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum_B float32 nats over a sample's label positions, num_labels_B int64 after the shift); differentiable.

    Cross entropy is float32. A sample without labels has sum 0 and count 0.
    """
    labels_BT = batch["labels"]
    target_BT = torch.full_like(labels_BT, IGNORED)
    target_BT[:, :-1] = labels_BT[:, 1:]
    # found where the labels are: no transfer from the device just to learn how many there are
    index_S = (target_BT != IGNORED).flatten().nonzero().flatten()
    num_B = (target_BT != IGNORED).sum(1)
    device = next(model.parameters()).device
    target_S, index_S = target_BT.flatten()[index_S].to(device), index_S.to(device)
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


def sample_losses(
    model: torch.nn.Module, tokens: Measurable, rows: np.ndarray, *, token_budget: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """(sum_N float64 nats, num_labels_N int64) of `rows`, in their order; no gradient, dropout off."""
    rows = np.asarray(rows, dtype=np.int64)
    sum_N, num_N = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in token_batches(np.asarray(tokens.num_tokens_N)[rows], token_budget):
            sum_B, num_B = per_sample_loss(model, pad_batch(tokens, rows[batch]))
            sum_N[batch], num_N[batch] = sum_B.double().cpu().numpy(), num_B.cpu().numpy()
    model.train(was_training)
    return sum_N, num_N
