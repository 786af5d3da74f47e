"""Signals of both sides: what exists is opened, what is missing is measured."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.manifest import MANIFEST, read_manifest
from dataflex_tools.artifact.signal import SignalStore, signal_folder, vector_columns
from dataflex_tools.core import dist
from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.signals import Need, Rows
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.score.settings import GradientSettings
from dataflex_tools.stages.inputs import Side, Tokenizer
from dataflex_tools.stages.warmup import Warmup, checkpoint_spec

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class SignalJob:
    """One signal on one side at one checkpoint, and which of the side's rows its folder does not hold yet."""

    need: Need
    checkpoint: Path
    settings: GradientSettings
    store: SignalStore
    side: Side
    num_missing: int

    @property
    def title(self) -> str:
        """For bars and log lines."""
        return f"{self.need.kind} of {self.need.side} at {self.checkpoint.name}"

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to measure and the folder says so."""
        return self.num_missing == 0 and (self.store.folder / MANIFEST).exists()

    def rows(self) -> Rows:
        """The side's vectors; rows without labels are absent."""
        tokens = self.side.tokens
        return self.store.rows(tokens.ids_N16, absent_ok=tokens.num_labels_N == 0)


def plan_jobs(
    root: Path,
    needs: Sequence[Need],
    warmup: Warmup,
    gradient: GradientSettings,
    sides: Mapping[str, Side],
    model: Mapping[str, Any],
) -> list[SignalJob]:
    """A job per need and checkpoint, checkpoint by checkpoint; `model` addresses the base model {sha256, dtype}."""
    return [
        _plan_job(root, need, checkpoint, gradient, sides[need.side], model)
        for checkpoint in warmup.checkpoints
        for need in needs
    ]


def _plan_job(
    root: Path, need: Need, checkpoint: Path, gradient: GradientSettings, side: Side, model: Mapping[str, Any]
) -> SignalJob:
    settings = from_mapping(GradientSettings, {**to_mapping(gradient), **need.settings}, where=need.kind)
    files = checkpoint_spec(checkpoint)
    if settings.adam == "none":
        del files["moments"]  # a plain gradient does not depend on them
    spec = {
        "kind": need.kind,
        "model": model["sha256"],
        "dtype": model["dtype"],
        "checkpoint": files,
        "render": side.tokens.render_digest,
        "settings": settings.address(),
    }
    dim = _num_parameters(checkpoint) if settings.projection == "none" else settings.dim
    store = SignalStore(signal_folder(root, spec), spec, vector_columns(dim, settings.storage))
    num_missing = len(store.missing(side.tokens.ids_N16[side.tokens.rows_with_labels()]))
    return SignalJob(need, checkpoint, settings, store, side, num_missing)


def _num_parameters(checkpoint: Path) -> int:
    from safetensors import safe_open

    with safe_open(checkpoint / "adapter_model.safetensors", framework="np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118 - not a mapping


def check_measurable(model: ModelSettings) -> None:
    """Raise ConfigError, without reading a weight, if the adapter has no per-sample gradients (DoRA, embeddings)."""
    from dataflex_tools.models.load import empty_model
    from dataflex_tools.models.lora import add_lora
    from dataflex_tools.score.capture import PerSampleGradients

    PerSampleGradients(add_lora(empty_model(model), model.lora, seed=0), lambda name, grad_BP: None)


def check_space(root: Path, num_rows: int, gradient: GradientSettings) -> None:
    """Raise ConfigError if the disk has no room for `num_rows` more rows of signals."""
    width = gradient.dim * (2 if gradient.storage == "float16" else 4)
    above = next(path for path in (root, *root.absolute().parents) if path.exists())
    needed, free = num_rows * width, shutil.disk_usage(above).free
    if gradient.projection != "none" and needed > free:
        raise ConfigError(
            f"the signals need {needed / 2**20:,.1f} MiB, {above} has {free / 2**20:,.1f} MiB free; free some, choose "
            f"another --out, or set gradient.dim below {gradient.dim}"
        )


def run_jobs(root: Path, jobs: Sequence[SignalJob], model: ModelSettings, warmup: Warmup, tokenizer: Tokenizer) -> None:
    """Measure what is missing; the base model is loaded only if something is, each adapter once."""
    for checkpoint in dict.fromkeys(job.checkpoint for job in jobs):
        here = [job for job in jobs if job.checkpoint == checkpoint]
        if any(not job.is_complete for job in here):
            _measure_at(root, checkpoint, here, model, warmup, tokenizer)
        elif dist.is_main():
            for job in here:
                logger.info("reused: %s (%s)", job.title, job.store.folder.name)


def _measure_at(
    root: Path, checkpoint: Path, jobs: Sequence[SignalJob], model: ModelSettings, warmup: Warmup, tokenizer: Tokenizer
) -> None:
    from dataflex_tools.models.load import device, load_model
    from dataflex_tools.models.lora import load_adapter
    from dataflex_tools.score.engine import measure
    from dataflex_tools.score.gradient import GradientSignal, load_moments

    adapted = load_adapter(load_model(model), checkpoint).to(device())
    for job in jobs:
        moments = None if job.settings.adam == "none" else load_moments(checkpoint / "moments.safetensors")
        count = measure(GradientSignal(adapted, job.settings, moments), job.side.tokens, job.store, title=job.title)
        if dist.is_main():
            logger.info("%s: %s measured, %s reused", job.title, f"{count:,}", f"{len(job.side.tokens) - count:,}")
            job.store.finish(
                {
                    "model": {"name": model.path, "sha256": job.store.spec["model"], "dtype": model.dtype},
                    "tokenizer": {"sha256": tokenizer.sha256, "render": job.side.tokens.render_digest},
                    "parents": [warmup.parent(root)],
                }
            )
        dist.barrier()


def parent_of(root: Path, job: SignalJob) -> dict[str, str]:
    """The `parents` entry of a plan made from this signal."""
    return {"path": str(job.store.folder.relative_to(root)), "digest": read_manifest(job.store.folder)["digest"]}
