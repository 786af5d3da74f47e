"""Per-sample gradients of a whole batch from one forward and one backward pass.

The gradient of a linear layer's weight is a sum over positions of (output gradient) x (input); the sum over one
sample's positions alone is that sample's gradient (Goodfellow 2015, "Efficient Per-Example Gradient Computations",
arXiv 1510.01799).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dataflex_tools.core.errors import ConfigError

# B samples of a batch, T tokens, I inputs and O outputs of a layer, P = O * I parameters of its weight

Sink = Callable[[str, torch.Tensor], None]


class PerSampleGradients:
    """Gives `sink(parameter name, grad_BP float32)` for every trainable linear weight, once per backward pass.

    `names` and `sizes` follow model.parameters(). The batch's loss must be a sum over samples in which each sample's
    term depends on that sample alone. No parameter's own gradient is computed. The sink owns grad_BP and may overwrite
    it.

    Raises ConfigError if something is trainable that is not the weight of an nn.Linear used once per forward pass, and
    for DoRA, whose magnitudes tie all weights of a layer together.
    """

    def __init__(self, model: nn.Module, sink: Sink) -> None:
        self._model, self._sink = model, sink
        self._layers = _trainable_linears(model)
        self.sizes = {name: layer.weight.numel() for name, layer in self._layers.items()}
        self._anchor: torch.Tensor | None = None
        self._num_samples = 0
        self._seen: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in the model's order."""
        return tuple(self.sizes)

    @contextmanager
    def attached(self, num_samples: int) -> Iterator[Callable[[torch.Tensor], None]]:
        """Inside, run the forward pass of `num_samples` samples, then call what is yielded with the summed loss."""
        device = next(iter(self._layers.values())).weight.device
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

    def _backward(self, loss: torch.Tensor) -> None:
        assert self._anchor is not None
        if loss.requires_grad:
            torch.autograd.grad(loss, self._anchor, allow_unused=True)
        for name, layer in self._layers.items():
            if name not in self._seen:  # a layer this batch did not use: its gradient is zero, not absent
                self._sink(name, torch.zeros(self._num_samples, self.sizes[name], device=layer.weight.device))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        def tap(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if args[0].dim() != 3 or len(args[0]) != self._num_samples:
                raise ConfigError(
                    f"per-sample gradients need inputs of shape (samples, tokens, features); {name} sees "
                    f"{tuple(args[0].shape)} in a batch of {self._num_samples}; change lora.target_modules"
                )
            tapped: torch.Tensor = _Tap.apply(output, args[0], self._anchor, self, name)
            return tapped

        return tap

    def receive(self, name: str, input_BTI: torch.Tensor, grad_BTO: torch.Tensor) -> None:
        """Form one layer's per-sample gradients and hand them to the sink."""
        if name in self._seen:
            raise ConfigError(f"{name} is used more than once per forward pass; per-sample gradients need one use")
        self._seen.add(name)
        grad_BOI = torch.bmm(grad_BTO.float().transpose(1, 2), input_BTI.float())
        self._sink(name, grad_BOI.flatten(1))


class _Tap(torch.autograd.Function):  # type: ignore[misc]
    """Identity on a layer's output whose backward sees the output's gradient.

    The input is a saved tensor of the graph, so gradient checkpointing drops and recomputes it as any other.
    """

    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, input_BTI: torch.Tensor, _: torch.Tensor, owner: PerSampleGradients, name: str
    ) -> torch.Tensor:
        ctx.save_for_backward(input_BTI)
        ctx.owner, ctx.name = owner, name
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            ctx.owner.receive(ctx.name, ctx.saved_tensors[0], grads[0])
        return grads[0], None, None, None, None


def _trainable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Parameter name -> layer, in the model's order. Raises ConfigError for anything else that is trainable."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ConfigError("the model has no trainable parameter; add or load an adapter as trainable first")
    if magnitudes := [name for name in trainable if "lora_magnitude_vector" in name]:
        raise ConfigError(
            f"gradient features do not work with DoRA ({len(magnitudes)} magnitude vectors, e.g. {magnitudes[0]}); "
            "set lora.use_dora to false"
        )
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, key))
    layers, refused = {}, []
    for name, parameter in trainable.items():
        (module, key), *others = owners[id(parameter)]
        # exactly nn.Linear: a subclass may compute something else
        if others or key != "weight" or type(module) is not nn.Linear:
            refused.append(f"{name} of {type(module).__name__}{' (shared)' if others else ''}")
        else:
            layers[name] = module
    if refused:
        raise ConfigError(
            "per-sample gradients need every trainable parameter to be the weight of one nn.Linear; "
            f"{len(refused)} are not, e.g. {', '.join(refused[:3])}: freeze them or use LoRA"
        )
    return layers
