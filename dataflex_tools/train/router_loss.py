"""The load-balancing loss of a mixture of experts, of a whole global batch however it is shared out.

Fedus et al. 2021, "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity", arXiv
2101.03961, equations 4 to 6, as transformers' `load_balancing_loss_func` computes it of one batch: E times the sum over
experts of (share of choices) x (mean router probability), over the tokens of all layers; checked against it. The shares have
no gradient and the mean is a sum over tokens: once the choices of all micro-batches and ranks are counted, what is left
adds up. The balance of a micro-batch alone is another, stricter loss, which depends on its size (Qiu et al. 2025, "Demons in
the Detail", arXiv 2501.11873, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# B samples of a micro-batch, T tokens, S = B * T, E experts, k experts a token is given to

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
_TOP_K = ("num_experts_per_tok", "moe_k", "moe_top_k")


@dataclass(frozen=True)
class RouterTerm:
    """What a model's configuration asks for: how much the loss weighs, and how many experts a token is given to."""

    coefficient: float
    top_k: int


def router_term(config: Any) -> RouterTerm | None:
    """The load-balancing loss that a model with this configuration adds to its own; None if it adds none."""
    config = config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return None
    places = (config, getattr(config, "ffn_config", None))  # the second is DBRX's
    coefficient = _first(places, _COEFFICIENTS)
    top_k = _first(places, _TOP_K)
    return RouterTerm(float(coefficient), int(top_k)) if coefficient and top_k else None


def _first(places: tuple[Any, ...], names: tuple[str, ...]) -> Any:
    found = (getattr(place, name, None) for place in places for name in names)
    return next((value for value in found if value is not None), None)


class RouterLoss:
    """Counts the choices of a step, then gives the part of each micro-batch; the parts of all ranks add up to the loss."""

    def __init__(self, term: RouterTerm) -> None:
        self.term = term
        self._count_E: torch.Tensor | None = None
        self._num_rows = 0.0
        self._share_E: torch.Tensor | None = None

    def note(self, outputs: Any, mask_BT: torch.Tensor | None) -> None:
        """Count the choices of a micro-batch; `mask_BT`: its tokens that are no padding, None if all are."""
        with torch.no_grad():
            for probs_SE in _probabilities(outputs, mask_BT):
                chosen_Sk = probs_SE.topk(self.term.top_k, dim=-1).indices
                count_E = torch.bincount(chosen_Sk.flatten(), minlength=probs_SE.shape[-1]).double()
                self._count_E = count_E if self._count_E is None else self._count_E + count_E
                self._num_rows += len(probs_SE)

    def settle(self, sum_over_ranks: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """End the counting of a step: the shares hold until the next one is settled."""
        assert self._count_E is not None, "nothing was counted"
        rows = self._count_E.new_tensor([self._num_rows])
        total = sum_over_ranks(torch.cat([self._count_E, rows]))
        self._share_E = (total[:-1] / total[-1] ** 2).float()
        self._count_E = None
        self._num_rows = 0.0

    def part(self, outputs: Any, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """This micro-batch's part of the loss, times its coefficient, with gradient."""
        assert self._share_E is not None, "the choices of the step are not counted"
        total_E = torch.stack([probs_SE.sum(dim=0) for probs_SE in _probabilities(outputs, mask_BT)]).sum(dim=0)
        share_E = self._share_E.to(total_E.device)
        return self.term.coefficient * len(share_E) * (share_E * total_E).sum()


def _probabilities(outputs: Any, mask_BT: torch.Tensor | None) -> list[torch.Tensor]:
    """Router probabilities of the tokens that are no padding, (S, E) float32 of each layer."""
    layers = [logits.reshape(-1, logits.shape[-1]) for logits in outputs.router_logits if logits is not None]
    if mask_BT is not None:
        is_token_S = mask_BT.flatten().bool()
        layers = [logits_SE[is_token_S] for logits_SE in layers]
    return [logits_SE.float().softmax(dim=-1) for logits_SE in layers]


def balance(outputs: Any, term: RouterTerm, mask_BT: torch.Tensor | None) -> torch.Tensor:
    """The loss of one batch by itself, times its coefficient."""
    alone = RouterLoss(term)
    alone.note(outputs, mask_BT)
    alone.settle(lambda total: total)
    return alone.part(outputs, mask_BT)


def shift_cross_entropy(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Mean loss of the label tokens of a batch, nats."""
    return nn.functional.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), labels_BT[:, 1:].flatten())
