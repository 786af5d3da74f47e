"""The zeroth-order signal: how each sample's loss changes along random directions in weight space; no backward pass.

p_q(z) = [f(theta + eps xi_q; z) - f(theta - eps xi_q; z)] / (2 eps) with xi_q standard normal: two-point simultaneous
perturbation, Spall 1992, "Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation"
[recall]; as a signal it is DataFlex's (zeroth_selector.py, commit 6b9a326, later removed;
https://github.com/OpenDCAI/DataFlex). Checked by the numbers of tests/vectors/zeroth_spsa.json, computed independently.
Departs from DataFlex: several directions, the same on every rank and run; float32 throughout; weights that come back
exactly; trainable parameters only by default; one pair of forward passes for a whole batch.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import torch

from dataflex_tools.artifact.signal import vector_columns
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.directions import gaussian_direction
from dataflex_tools.score.engine import Columns
from dataflex_tools.score.forward import ForwardSignal
from dataflex_tools.score.losses import label_losses, measuring, summed
from dataflex_tools.score.settings import ZerothSignalSettings

# B samples of a batch, Q directions

_HELD_BYTES = 2**31  # directions up to this size are drawn once; drawing them anew for each batch costs more than the model

# (number of the direction, parameter name, parameter) -> that parameter's part of the direction, of its shape
Direction = Callable[[int, str, torch.Tensor], torch.Tensor]


class ZerothSignal(ForwardSignal):
    """Central differences of each sample's mean loss over its label tokens, one column per direction.

    The value is stored as a unit row and its norm, as gradients are. Differences of losses over 2 eps magnify rounding:
    at eps 1e-3 a loss that is off by 1e-6 moves a value by 5e-4. Raises ConfigError if a parameter is not float32, or if
    there is none to perturb.
    """

    kind = "zeroth"

    def __init__(self, model: torch.nn.Module, settings: ZerothSignalSettings) -> None:
        super().__init__(model, settings)
        self._settings, self._weights = settings, _perturbed(model, settings)
        size = 4 * settings.num_directions * sum(weight.numel() for weight in self._weights.values())
        self._held: dict[tuple[int, str], torch.Tensor] | None = {} if size <= _HELD_BYTES else None

    @property
    def columns(self) -> pa.Schema:
        """num_tokens, norm and value."""
        return vector_columns(self._settings.num_directions, self._settings.storage)

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """value: (B, Q) unit rows in the storage type (a zero row stays zero); norm: (B,) float32."""

        def losses() -> np.ndarray:
            loss_S, num_B = label_losses(self._model, batch)
            return np.asarray(summed(loss_S, num_B) / np.maximum(num_B, 1))

        with measuring(self._model):
            p_BQ = central_differences(
                self._weights, self._direction, losses, num=self._settings.num_directions, eps=self._settings.eps
            )
        norm_B = np.linalg.norm(p_BQ, axis=1)
        unit_BQ = p_BQ / np.where(norm_B > 0, norm_B, 1)[:, None]
        return {"value": unit_BQ.astype(self._settings.storage), "norm": norm_B.astype(np.float32)}

    def _direction(self, number: int, name: str, weight: torch.Tensor) -> torch.Tensor:
        if self._held is None:
            return self._drawn(number, name, weight)
        if (number, name) not in self._held:
            self._held[number, name] = self._drawn(number, name, weight)
        return self._held[number, name]

    def _drawn(self, number: int, name: str, weight: torch.Tensor) -> torch.Tensor:
        flat = gaussian_direction(
            weight.numel(), seed=self._settings.seed, number=number, name=name, device=weight.device
        )  # fmt: skip
        return flat.view(weight.shape)


def central_differences(
    weights: Mapping[str, torch.nn.Parameter],
    direction: Direction,
    losses: Callable[[], np.ndarray],
    *,
    num: int,
    eps: float,
) -> np.ndarray:
    """Derivatives of `losses()` (B,) along directions 0 to num - 1 of `weights`, (B, Q) float64.

    The weights themselves are never written: while `losses` runs, perturbed copies stand in for them, and they stand there
    again afterwards, whatever happens.
    """
    saved = {name: weight.data for name, weight in weights.items()}
    columns = []
    try:
        for number in range(num):
            for name, weight in weights.items():
                weight.data = torch.add(saved[name], direction(number, name, saved[name]), alpha=eps)
            above_B = losses()
            for name, weight in weights.items():
                weight.data.neg_().add_(saved[name], alpha=2)  # mirrored at the saved weight: the direction is drawn once
            columns.append((above_B - losses()) / (2 * eps))
    finally:
        for name, weight in weights.items():
            weight.data = saved[name]
    return np.stack(columns, axis=1)


def _perturbed(model: torch.nn.Module, settings: ZerothSignalSettings) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter, in the model's order."""
    every = dict(model.named_parameters())
    if coarse := [name for name, weight in every.items() if weight.dtype != torch.float32]:
        # bfloat16 below a float32 adapter: noise of 0.7 of what is measured (16 samples of 24 tokens, 2 layers, eps 1e-3)
        raise ConfigError(
            f"zeroth needs float32 weights; {len(coarse)} of {len(every)} parameters are not, e.g. {coarse[0]} "
            f"({str(every[coarse[0]].dtype).removeprefix('torch.')}); set model.dtype to float32"
        )
    chosen = {name: weight for name, weight in every.items() if settings.parameters == "all" or weight.requires_grad}
    if not chosen:
        raise ConfigError("zeroth: the model has no trainable parameter; load an adapter or set zeroth.parameters to all")
    return chosen
