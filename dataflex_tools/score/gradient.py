"""The gradient signal: each sample's loss gradient, Adam-scaled and projected, as a unit vector and its length.

Xia et al. 2024, "LESS", arXiv 2402.04333, section 4 and less/data_selection/collect_grad_reps.py.
Departs from it: batched; Adam's bias correction and eps as in the optimizer by default; a sketch instead of a dense
projection; float32 until storage.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dataflex_tools.artifact.signal import vector_columns
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.ops.adam import AdamScaling, Moments
from dataflex_tools.ops.sketch import make_projection
from dataflex_tools.score.capture import NotBatchedError, PerSampleGradients
from dataflex_tools.score.engine import Columns
from dataflex_tools.score.losses import num_labels, per_sample_loss
from dataflex_tools.score.settings import GradientSettings

# B samples of a batch, P parameters of one weight, D projected dims

LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_CPU_TOKENS, _GPU_TOKENS = 2048, 16384  # larger batches are slower on a CPU (page faults, measured)


class ProjectedGradients:
    """Gradients of the trainable parameters of `model`, Adam-scaled and projected one by one as they appear.

    Raises ConfigError if `moments` are missing or without effect, ArtifactError if they are of other parameters.
    """

    def __init__(self, model: nn.Module, settings: GradientSettings, moments: Moments | None = None) -> None:
        if settings.adam != "none":
            require(moments is not None, f"gradient.adam is {settings.adam!r} without optimizer moments; warm up first")
        else:
            require(moments is None, "optimizer moments have no effect with gradient.adam 'none'")
        self._model, self._settings = model, settings
        self._capture = PerSampleGradients(model, self._take)
        self._projection = make_projection(settings.projection, self._capture.sizes, settings.dim, seed=settings.seed)
        self._scaling = _scalings(model, self._capture.names, settings, moments) if moments else {}
        self._out_BD = torch.empty(0)

    @property
    def columns(self) -> pa.Schema:
        """num_tokens, norm and value."""
        return vector_columns(self.dim, self._settings.storage)

    @property
    def dim(self) -> int:
        """Projected dims D."""
        return self._projection.dim

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self._model.parameters()).device

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch at most."""
        return self._settings.token_budget or (_CPU_TOKENS if self.device.type == "cpu" else _GPU_TOKENS)

    def rows(self, batch: dict[str, torch.Tensor], loss_of: LossOf) -> torch.Tensor:
        """(B, D) float32, not scaled to unit length; the model is in eval mode meanwhile.

        `loss_of(sum_B, num_B)` makes each sample's loss, (B,), of its summed token losses and number of labels.
        """
        num_samples, was_training = len(batch["input_ids"]), self._model.training
        out_BD = torch.zeros(num_samples, self.dim, device=self.device)
        self._model.eval()
        try:
            if self._capture.is_batched:
                try:
                    self._batched(batch, loss_of, out_BD)
                except NotBatchedError:
                    self._capture.go_one_by_one()
                    out_BD.zero_()
            if not self._capture.is_batched:
                self._one_by_one(batch, loss_of, out_BD)
        finally:
            self._model.train(was_training)
            self._out_BD = torch.empty(0)
        return out_BD

    def _batched(self, batch: dict[str, torch.Tensor], loss_of: LossOf, out_BD: torch.Tensor) -> None:
        self._out_BD = out_BD
        with self._capture.attached(len(out_BD)) as backward:
            backward(loss_of(*per_sample_loss(self._model, batch)))

    def _one_by_one(self, batch: dict[str, torch.Tensor], loss_of: LossOf, out_BD: torch.Tensor) -> None:
        """Each sample alone; the others' losses are 0 meanwhile, since `loss_of` may weigh them by their place."""
        num_B = num_labels(batch["labels"]).to(out_BD.device)
        for sample in range(len(out_BD)):
            one = {name: value[sample : sample + 1] for name, value in batch.items()}
            sum_1, _ = per_sample_loss(self._model, one)
            index = torch.tensor([sample], device=sum_1.device)
            sum_B = torch.zeros(len(out_BD), device=sum_1.device).index_copy(0, index, sum_1)
            self._out_BD = out_BD[sample : sample + 1]
            self._capture.of_one(loss_of(sum_B, num_B)[sample])

    def stored(self, out_BD: torch.Tensor) -> Columns:
        """value: (B, D) unit rows in the storage type (a zero gradient stays zero); norm: (B,) float32."""
        norm_B = torch.linalg.vector_norm(out_BD, dim=1)
        unit_BD = out_BD / torch.where(norm_B > 0, norm_B, 1.0).unsqueeze(1)
        value_BD = unit_BD.to(getattr(torch, self._settings.storage))
        return {"value": value_BD.cpu().numpy(), "norm": norm_B.cpu().numpy()}

    def _take(self, name: str, grad_BP: torch.Tensor) -> None:
        with torch.no_grad():
            if self._scaling:
                self._scaling[name].apply_(grad_BP)
            self._projection.add(self._out_BD, grad_BP, name)


class GradientSignal:
    """Measures loss gradients of the trainable parameters of `model`.

    The loss is each sample's own mean over its label positions, never divided by a batch size: Adam's direction is not
    scale invariant. Raises what ProjectedGradients raises.
    """

    kind = "gradient"

    def __init__(self, model: nn.Module, settings: GradientSettings, moments: Moments | None = None) -> None:
        self._settings = settings
        self._gradients = ProjectedGradients(model, settings, moments)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on, for the signal's address."""
        return self._settings.address()

    @property
    def columns(self) -> pa.Schema:
        """num_tokens, norm and value."""
        return self._gradients.columns

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch at most."""
        return self._gradients.token_budget

    @property
    def part_rows(self) -> int:
        """Samples of a part."""
        return self._settings.part_rows

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """value: (B, D) unit rows in the storage type (a zero gradient stays zero); norm: (B,) float32."""
        out_BD = self._gradients.rows(batch, lambda sum_B, num_B: sum_B / num_B.clamp(min=1))
        return self._gradients.stored(out_BD)


def require_used(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Raise ConfigError if a trainable layer has no part in the loss of the one sample of `batch`."""
    was_training = model.training
    model.eval()
    loss_1, _ = per_sample_loss(model, batch)
    PerSampleGradients(model, lambda name, grad_BP: None).of_one(loss_1[0])
    model.train(was_training)


def _scalings(
    model: nn.Module, names: tuple[str, ...], settings: GradientSettings, moments: Moments
) -> dict[str, AdamScaling]:
    """One per weight, on its device. Raises ArtifactError if the moments are not those of exactly these weights."""
    weights = dict(model.named_parameters())
    differing = sorted(set(names) ^ set(moments.exp_avg)) + [
        name for name in names if name in moments.exp_avg and moments.exp_avg[name].shape != weights[name].shape
    ]
    if differing or set(moments.exp_avg) != set(moments.exp_avg_sq):
        raise ArtifactError(
            f"the optimizer moments hold {len(moments.exp_avg)} parameters, the model trains {len(names)}; "
            f"{len(differing)} differ, first {differing[0] if differing else 'in exp_avg_sq'}: use the adapter they "
            "were saved with"
        )
    assert settings.adam != "none"
    return {
        name: AdamScaling(
            moments.exp_avg[name].to(weights[name].device, torch.float32).flatten(),
            moments.exp_avg_sq[name].to(weights[name].device, torch.float32).flatten(),
            step=moments.step, beta1=moments.beta1, beta2=moments.beta2, eps=moments.eps, convention=settings.adam,
        )
        for name in names
    }  # fmt: skip


def load_moments(path: Path) -> Moments:
    """Optimizer moments a warm-up wrote: exp_avg.<parameter>, exp_avg_sq.<parameter>, metadata step, betas and eps.

    Raises ArtifactError if the file is missing, is not safetensors or lacks any of these.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: the warm-up has not finished; run `flextools score` again")
    averages: dict[str, dict[str, torch.Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - the file is not a mapping
                average, _, name = key.partition(".")
                averages[average][name] = file.get_tensor(key)
        number = {key: json.loads(metadata[key]) for key in ("step", "beta1", "beta2", "eps")}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} holds no optimizer moments: {error!r}; delete its folder, score again") from None
    return Moments(step=int(number["step"]), beta1=float(number["beta1"]), beta2=float(number["beta2"]),
                   eps=float(number["eps"]), **averages)  # fmt: skip
