"""Signals of both sides: what exists is opened, what is missing is measured."""

import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.artifact.signal import SignalStore, signal_folder
from dataflex_tools.core import dist
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.hashes import digests_in
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.core.signals import Need, Rows
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.stages.inputs import Side
from dataflex_tools.stages.kinds import KINDS, Context, Kind
from dataflex_tools.stages.warmup import Warmup

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class SignalJob:
    """One signal on one side at one checkpoint (None: the base model), and how many of its rows are not measured yet.

    `rows`: the rows a method chose, None for all that have labels.
    """

    kind: Kind
    store: SignalStore
    rows: np.ndarray | None
    num_missing: int

    @property
    def title(self) -> str:
        """For bars and log lines."""
        where = f" at {self.kind.checkpoint.name}" if self.kind.checkpoint else ""
        return f"{self.kind.need.kind} of {self.kind.need.side}{where}"

    @property
    def num_bytes(self) -> int:
        """Bytes that what is missing takes on the disk, nearly."""
        return self.num_missing * row_bytes(self.store.schema)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to measure and the folder says so."""
        return self.num_missing == 0 and self.store.is_finished

    def looked_again(self) -> "SignalJob":
        """The job as the folder is now: another process may have measured some of it meanwhile."""
        return _plan_job(self.store, self.kind, self.rows)

    @property
    def num_rows(self) -> int:
        """Rows it is about."""
        return len(self.kind.side.tokens.rows_with_labels() if self.rows is None else self.rows)

    def _absent_ok(self) -> np.ndarray:
        tokens = self.kind.side.tokens
        absent = np.asarray(tokens.num_labels_N == 0)
        return absent if self.rows is None else np.ones(len(absent), dtype=bool)

    def read(self) -> Rows | dict[str, np.ndarray]:
        """The side's vectors, or its numbers by name; rows without labels are absent."""
        ids_N16 = self.kind.side.tokens.ids_N16
        if names := self.kind.columns_read:
            return {name: self.store.column(ids_N16, name, self._absent_ok()) for name in names}
        return self.store.rows(ids_N16, absent_ok=self._absent_ok())


def plan_jobs(
    root: Path, needs: Sequence[tuple[Need, np.ndarray | None]], warmup: Warmup | None, context: Context,
    side_of: Callable[[Need], Side],
) -> list[SignalJob]:  # fmt: skip
    """A job per need and checkpoint, checkpoint by checkpoint, then those at the base model; rows None for all."""
    jobs = []
    for checkpoint in [*(warmup.checkpoints if warmup else []), None]:
        for need, rows in needs:
            if need.at_checkpoints == (checkpoint is not None):
                kind = KINDS[need.kind](context, need, side_of(need), checkpoint)
                spec = kind.spec()
                store = SignalStore(signal_folder(root, spec), spec, kind.columns(), digests_in(context.cache))
                jobs.append(_plan_job(store, kind, rows))
    return jobs


def _plan_job(store: SignalStore, kind: Kind, rows: np.ndarray | None) -> SignalJob:
    tokens = kind.side.tokens
    wanted = tokens.rows_with_labels() if rows is None else rows
    return SignalJob(kind, store, rows, len(store.missing(tokens.ids_N16[wanted])))


def row_bytes(schema: pa.Schema) -> int:
    """Bytes of a stored row before compression; a list of any length counts as 64 numbers."""
    total = 0
    for field in schema:
        is_fixed = pa.types.is_fixed_size_list(field.type)
        if is_fixed or pa.types.is_list(field.type):
            total += (field.type.list_size if is_fixed else 64) * field.type.value_type.bit_width // 8
        else:
            total += field.type.bit_width // 8
    return total


def check_measurable(model: ModelSettings) -> None:
    """Raise ConfigError, without reading a weight, if no adapter can be put on the model."""
    from dataflex_tools.models.load import empty_model
    from dataflex_tools.models.lora import add_lora

    add_lora(empty_model(model), model.lora, seed=0)


def check_space(root: Path, num_bytes: int) -> None:
    """Raise ConfigError if the disk has no room for `num_bytes` more of signals."""
    above = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(above).free
    if num_bytes > free:
        raise ConfigError(
            f"the signals need {num_bytes / 2**20:,.1f} MiB, {above} has {free / 2**20:,.1f} MiB free; free some, choose "
            "another --out, or set gradient.dim lower"
        )


def run_jobs(root: Path, jobs: Sequence[SignalJob], context: Context, warmup: Warmup | None) -> None:
    """Measure what is missing; a model is loaded only if something is, each adapter once.

    Raises ArtifactError, before anything is measured, for a stored part that is not as it was written.
    """
    if dist.is_main():
        for job in jobs:
            job.store.check()
    number = 0
    for checkpoint in dict.fromkeys(job.kind.checkpoint for job in jobs):
        here = [job for job in jobs if job.kind.checkpoint == checkpoint]
        load = functools.cache(functools.partial(_load, context.config.model, checkpoint))
        for job in here:
            number += 1
            with hold_for_all(job.store.folder, job.title):
                now = job.looked_again()
                if dist.is_main():
                    now.store.check()  # what another process made meanwhile, too
                    what = "reused" if now.is_complete else f"{now.num_missing:,} samples to measure"
                    logger.info("%d of %d: %s: %s (%s)", number, len(jobs), job.title, what, job.store.folder.name)
                if not now.is_complete:
                    _measure(root, now, context, warmup, load)


def _load(model: ModelSettings, checkpoint: Path | None) -> Any:
    from dataflex_tools.models.load import device, load_model
    from dataflex_tools.models.lora import load_adapter

    base = load_model(model)
    return (load_adapter(base, checkpoint) if checkpoint else base).to(device())


def _measure(root: Path, job: SignalJob, context: Context, warmup: Warmup | None, load: Callable[[], Any]) -> None:
    from dataflex_tools.score.engine import measure
    from dataflex_tools.score.reward_gradient import RewardGradientSignal, measure_rewards

    signal, tokens = job.kind.signal(load), job.kind.side.tokens
    if isinstance(signal, RewardGradientSignal):
        count = measure_rewards(signal, job.store, title=job.title)
    else:
        count = measure(signal, tokens, job.store, title=job.title, rows=job.rows)
    if dist.is_main():
        logger.info("%s: %s measured, %s reused", job.title, f"{count:,}", f"{job.num_rows - count:,}")
        model = {"name": context.config.model.path, "sha256": job.store.spec["model"], "dtype": context.config.model.dtype}
        job.store.finish(
            {
                "model": model,
                "tokenizer": {"sha256": context.tokenizer.sha256, "render": tokens.render_digest},
                "parents": [warmup.parent(root)] if warmup and job.kind.checkpoint else [],
            }
        )
    dist.barrier()


def parent_of(root: Path, job: SignalJob) -> dict[str, str]:
    """The `parents` entry of a plan made from this signal."""
    return {"path": str(job.store.folder.relative_to(root)), "digest": read_manifest(job.store.folder)["digest"]}
