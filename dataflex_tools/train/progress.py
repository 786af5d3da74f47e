"""What a training says while it runs: a line per `logging_steps` off a terminal, and a log file that grows."""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex_tools.artifact.files import write_table
from dataflex_tools.core.progress import time_text
from dataflex_tools.sampler.plan_sampler import Stream

logger = logging.getLogger("flextools")

_SECONDS = 10.0  # between two writings of the log file: a long run has many lines, each writing has all


class ReportProgress(TrainerCallback):
    """Logs step, loss, learning rate, speed and time left; keeps `path` (step, loss, grad_norm, learning_rate) current.

    `num_tokens_N` are the tokens of each row of `sampler`, of which a step takes `batch_size`.
    """

    def __init__(self, path: Path, sampler: Stream, num_tokens_N: np.ndarray, batch_size: int) -> None:
        self._path, self._sampler, self._num_tokens_N = path, sampler, num_tokens_N
        self._batch_size = batch_size
        self._first = self._reported = 0
        self._start = self._since = self._written = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to count; a resumed run counts its own steps only."""
        self._first = self._reported = state.global_step
        self._start = self._since = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line and the file; on the main rank."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        now = time.perf_counter()
        if not sys.stderr.isatty():
            self._say(state, dict(logs or {}), now)
        self._reported, self._since = state.global_step, now
        if now - self._written > _SECONDS:
            self._written = now
            write_log(state, self._path)

    def _say(self, state: TrainerState, logs: Mapping[str, float], now: float) -> None:
        seconds = max(now - self._since, 1e-9)
        first, last = self._reported * self._batch_size, state.global_step * self._batch_size
        num_tokens = int(np.asarray(self._num_tokens_N)[self._sampler.rows_at(first, last)].sum())
        per_step = (now - self._start) / max(1, state.global_step - self._first)
        logger.info(
            "step %s of %s: loss %.4f, learning rate %.3g, %.1f samples/s, %s tokens/s, %s left",
            f"{state.global_step:,}",
            f"{state.max_steps:,}",
            logs["loss"],
            logs.get("learning_rate", float("nan")),
            (last - first) / seconds,
            f"{num_tokens / seconds:,.0f}",
            time_text(per_step * (state.max_steps - state.global_step)),
        )


def write_log(state: TrainerState, path: Path) -> None:
    """The losses logged so far, as Parquet: step, loss, grad_norm, learning_rate."""
    entries = [entry for entry in state.log_history if "loss" in entry]
    columns: dict[str, Any] = {"step": pa.array([entry["step"] for entry in entries], pa.int64())}
    for name in ("loss", "grad_norm", "learning_rate"):
        columns[name] = pa.array([entry.get(name) for entry in entries], pa.float64())
    write_table(path, pa.table(columns), rows_per_group=2**16)
