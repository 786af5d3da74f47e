"""Per-sample gradients of every trainable parameter of a model.

The gradient of a linear layer's weight is a sum over positions of (output gradient) x (input); the sum over one
sample's positions alone is that sample's gradient (Goodfellow 2015, "Efficient Per-Example Gradient Computations",
arXiv 1510.01799), so one forward and one backward pass give those of a whole batch. Where a weight is used in another
way (fused experts, biases, embeddings, DoRA, a layer called twice), each sample has a backward pass of its own.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dataflex_tools.core.errors import ConfigError

# B samples of a batch, T tokens, I inputs and O outputs of a layer, P parameters of its weight

logger = logging.getLogger("flextools")

Sink = Callable[[str, torch.Tensor], None]
_EXPERT = re.compile(r"experts\.\d+\.")  # a layer that is not called if no token is routed to it
# relative error against autograd: rounding stays far below, a use of a weight that is not seen far above
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-6}
_LOW_PRECISION_TOLERANCE = 0.15


class NotBatchedError(Exception):
    """Some weight is used in a way that one backward pass for the whole batch does not see."""


class PerSampleGradients:
    """Gives `sink(parameter name, grad_BP float32)` for every trainable parameter, once per batch or sample.

    `names` and `sizes` follow model.parameters(). Each sample's loss must depend on that sample alone. No parameter's
    own gradient is kept. The sink owns grad_BP and may overwrite it. While `is_batched`, a batch goes through
    `attached`; its first and last sample are compared with autograd in the first batch, and `NotBatchedError` is raised if
    they differ. Then, and where it is not batched to begin with, `of_one` takes sample by sample.

    Raises ConfigError if nothing is trainable, or if a trainable layer is not used at all.
    """

    def __init__(self, model: nn.Module, sink: Sink) -> None:
        self._model, self._sink = model, sink
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter; add or load an adapter as trainable first")
        self.sizes = {name: parameter.numel() for name, parameter in self._parameters.items()}
        self._layers, others = _layers(model, self._parameters)
        self.is_batched = not others
        self._wrong = dict.fromkeys(others)
        self._is_said = False
        self._anchor: torch.Tensor | None = None
        self._num_samples = 0
        self._seen: set[str] = set()
        self._is_silent = False
        self._to_check: dict[int, dict[str, torch.Tensor]] = {}
        self._largest: dict[int, float] = {}
        self._is_checked = {"one": False, "many": False}

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in the model's order."""
        return tuple(self.sizes)

    @contextmanager
    def attached(self, num_samples: int) -> Iterator[Callable[[torch.Tensor], None]]:
        """Inside, run the forward pass of `num_samples` samples, then call what is yielded with their losses, (B,)."""
        device = next(iter(self._parameters.values())).device
        # every tapped output depends on it: one gradient request visits all taps and nothing below the lowest
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._num_samples, self._seen = num_samples, set()
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        try:
            yield self._backward
        finally:
            for handle in handles:
                handle.remove()
            self._anchor = None

    def of_one(self, loss: torch.Tensor) -> None:
        """Hand the gradients of one sample's loss, a scalar, to the sink as (1, P)."""
        self._say_one_by_one()
        found: tuple[torch.Tensor | None, ...] = (None,) * len(self._parameters)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
            self._require_used([name for name, g in zip(self.names, found, strict=True) if g is None])
        for (name, parameter), grad in zip(self._parameters.items(), found, strict=True):
            value = torch.zeros_like(parameter) if grad is None else grad
            self._sink(name, value.float().reshape(1, -1).clone())

    def go_one_by_one(self) -> None:
        """From here on, sample by sample: what `NotBatchedError` asks for."""
        self.is_batched = False

    def _say_one_by_one(self) -> None:
        if self.is_batched or self._is_said:
            return
        self._is_said = True
        logger.info(
            "gradients are taken one sample at a time, which is slower: %d of %d trainable parameters are not weights "
            "of linear layers that are each used once, e.g. %s",
            len(self._wrong),
            len(self.sizes),
            next(iter(self._wrong)),
        )

    def _require_used(self, unused: list[str]) -> None:
        """Raise ConfigError for a layer the model never calls; an expert that no token was routed to is called elsewhere."""
        if names := [name for name in unused if not _EXPERT.search(name)]:
            raise ConfigError(
                f"{len(names)} of {len(self.sizes)} trainable parameters are not used by the model when it reads text, "
                f"e.g. {names[0]}: their gradient would be zero for every sample; change lora.target_modules"
            )

    def _backward(self, loss_B: torch.Tensor) -> None:
        assert self._anchor is not None
        self._wrong = {}
        if loss_B.requires_grad:
            self._take_references(loss_B)
            torch.autograd.grad(loss_B.sum(), self._anchor, allow_unused=True)
        for name, parameter in self._parameters.items():
            if name in self._seen:
                continue
            if loss_B.requires_grad and not _EXPERT.search(name):
                self._wrong[name] = None
            zero_BP = torch.zeros(self._num_samples, self.sizes[name], device=parameter.device)
            self._check(name, zero_BP)
            self._sink(name, zero_BP)
        self._to_check = {}
        if self._wrong:
            raise NotBatchedError

    def _take_references(self, loss_B: torch.Tensor) -> None:
        """In the first batch of one sample and of several: autograd's gradients of the first and the last sample."""
        kind = "one" if len(loss_B) == 1 else "many"
        if self._is_checked[kind]:
            return
        self._is_checked[kind] = True
        self._is_silent = True
        try:
            for sample in {0, len(loss_B) - 1}:
                parameters = list(self._parameters.values())
                found = torch.autograd.grad(loss_B[sample], parameters, retain_graph=True, allow_unused=True)
                pairs = zip(self._parameters.items(), found, strict=True)
                self._to_check[sample] = {
                    name: (torch.zeros_like(p) if grad is None else grad).detach().float().flatten()
                    for (name, p), grad in pairs
                }
                self._largest[sample] = max(float(value.norm()) for value in self._to_check[sample].values())
        finally:
            self._is_silent = False

    def _check(self, name: str, grad_BP: torch.Tensor) -> None:
        """Note the parameter if its gradients are not what autograd says of the samples that are checked."""
        for sample, wanted in self._to_check.items():
            floor = 1e-3 * self._largest[sample]  # a weight whose gradient is next to nothing is all rounding
            dtype = self._parameters[name].dtype
            tolerance = _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)
            if dtype == torch.float32 and next(self._model.parameters()).dtype != torch.float32:
                tolerance = _LOW_PRECISION_TOLERANCE  # a float32 adapter on a model that is not
            error = float((grad_BP[sample] - wanted[name]).norm())
            if error > tolerance * (float(wanted[name].norm()) + floor):
                self._wrong[name] = None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        def tap(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            tapped: torch.Tensor = _Tap.apply(output, args[0], self._anchor, self, name)
            return tapped

        return tap

    def receive(self, name: str, input_: torch.Tensor, grad: torch.Tensor) -> None:
        """Form one layer's per-sample gradients and hand them to the sink; positions may be flattened, samples first."""
        if self._is_silent:
            return
        num_positions = input_.numel() // input_.shape[-1]
        if name in self._seen or num_positions % self._num_samples:
            self._wrong[name] = None
            raise NotBatchedError
        self._seen.add(name)
        input_BTI, grad_BTO = (value.reshape(self._num_samples, -1, value.shape[-1]).float() for value in (input_, grad))
        if isinstance(self._layers[name], Conv1D):  # its weight is (I, O)
            input_BTI, grad_BTO = grad_BTO, input_BTI
        grad_BP = torch.bmm(grad_BTO.transpose(1, 2), input_BTI).flatten(1)
        self._check(name, grad_BP)
        self._sink(name, grad_BP)


class _Tap(torch.autograd.Function):  # type: ignore[misc]
    """Identity on a layer's output whose backward sees the output's gradient.

    The input is a saved tensor of the graph, so gradient checkpointing drops and recomputes it as any other.
    """

    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, input_: torch.Tensor, _: torch.Tensor, owner: PerSampleGradients, name: str
    ) -> torch.Tensor:
        ctx.save_for_backward(input_)
        ctx.owner, ctx.name = owner, name
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            ctx.owner.receive(ctx.name, ctx.saved_tensors[0], grads[0])
        return grads[0], None, None, None, None


def _layers(model: nn.Module, trainable: dict[str, nn.Parameter]) -> tuple[dict[str, nn.Module], list[str]]:
    """(parameter name -> linear layer whose weight it is, in the model's order; the names of all other parameters)."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, key))
    layers: dict[str, nn.Module] = {}
    others = [name for name in trainable if "lora_magnitude_vector" in name]  # DoRA ties all weights of a layer together
    for name, parameter in trainable.items():
        (module, key), *more = owners[id(parameter)]
        # exactly these: a subclass may compute something else
        if not more and key == "weight" and type(module) in (nn.Linear, Conv1D):
            layers[name] = module
        elif name not in others:
            others.append(name)
    return layers, others
