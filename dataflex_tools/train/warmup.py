"""The warm-up of gradient-based selection: a short LoRA training that leaves one adapter with Adam moments per epoch.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning", arXiv 2402.04333, section 4.1 and
less/scripts/train/base_training_args.sh. Departs from it: an epoch ends at the first step that has seen all of it, and
batches run on into the next epoch.

    <folder>/checkpoint-1/{adapter_model.safetensors, adapter_config.json, moments.safetensors}, checkpoint-2/, ...
    <folder>/ledger.parquet, <folder>/warmup.json (written last: folders, steps, mean learning rates)
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler
from transformers.integrations import is_deepspeed_zero3_enabled

from dataflex_tools.artifact.files import write_json
from dataflex_tools.core import dist
from dataflex_tools.core.config import to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.gradient import require_used
from dataflex_tools.train.journal import Journal
from dataflex_tools.train.moments import adam_moments, save_moments
from dataflex_tools.train.run import FitOptions, build_trainer, forget_engine, resume, save_model, write_ledger
from dataflex_tools.train.settings import TrainingSettings, WarmupSettings, num_steps, steps_until, training_arguments
from dataflex_tools.train.trainer import PlanTrainer

if TYPE_CHECKING:
    from dataflex_tools.data.tokenized import Tokens

# N corpus rows, R rows with labels, k warm-up rows, S optimizer steps, C checkpoints

_RATE = np.dtype([("step", "<i8"), ("rate", "<f8")])
_DONE = "warmup.json"


def warmup_rows(ids_N16: np.ndarray, row_R: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """A random `fraction` of `row_R`, at least one, ascending, (k,) int64.

    Drawn by a keyed hash of the sample id, so the same samples are taken from a re-ordered pool.
    """
    key = f"warmup/{seed}".encode()
    rank_R = np.array(
        [int.from_bytes(hashlib.blake2b(ids_N16[row].tobytes(), digest_size=8, key=key).digest()) for row in row_R],
        dtype=np.uint64,
    )
    count = max(1, int(fraction * len(row_R) + 1e-9))
    return np.sort(np.asarray(row_R, dtype=np.int64)[np.argsort(rank_R, kind="stable")[:count]])


def epoch_ends(settings: TrainingSettings, num_rows: int) -> list[int]:
    """Steps after which epochs 1, 2, ... have been seen whole. Raises ConfigError if the rows do not fill a batch."""
    num_steps(settings, num_rows)
    epochs = range(1, int(settings.num_train_epochs) + 1)
    return [steps_until(epoch, num_rows, settings.global_batch_size) for epoch in epochs]


def mean_rates(rate_S: np.ndarray, ends: list[int]) -> list[float]:
    """Mean learning rate of each epoch; `rate_S`: what steps 1, 2, ... were taken with; `ends`: the epochs' last steps."""
    return [float(np.mean(rate_S[first:last])) for first, last in zip([0, *ends], ends, strict=False)]


def scheduled_rates(settings: TrainingSettings, num_rows: int) -> np.ndarray:
    """The learning rate that the settings' schedule gives each step, (S,); a linear one has not yet fallen to 0."""
    alone = replace(settings, deepspeed=None, fsdp=False, fsdp_config=None)
    arguments = training_arguments(alone, Path("unused"), num_rows=num_rows, world_size=1)
    total = arguments.max_steps
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=settings.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(total),
        num_training_steps=total,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs or {},
    )
    rate_S = np.empty(total)
    for step in range(total):
        rate_S[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    return rate_S


def warm_up(
    model_settings: ModelSettings, tokens: "Tokens", rows: np.ndarray, settings: WarmupSettings, folder: Path
) -> list[tuple[Path, float]]:
    """Train a fresh LoRA adapter on `rows`; returns (checkpoint folder, mean learning rate) per epoch.

    Resumes where a killed warm-up stopped, and returns at once if it has finished. Raises ConfigError if `rows` do not
    fill one global batch, or `folder` holds a warm-up that was started with something else.
    """

    def model() -> nn.Module:
        from dataflex_tools.models.load import load_model
        from dataflex_tools.models.lora import add_lora

        adapted = add_lora(load_model(model_settings), model_settings.lora, seed=settings.training.seed)
        if not is_deepspeed_zero3_enabled():  # its weights are sharded until the trainer gathers them
            require_used(adapted, pad_batch(tokens, rows[:1]))
        return adapted

    return warm_up_model(model, tokens, rows, settings, folder, made_from={"model": to_mapping(model_settings)})


def warm_up_model(
    model: Callable[[], nn.Module],
    tokens: "Tokens",
    rows: np.ndarray,
    settings: WarmupSettings,
    folder: Path,
    *,
    made_from: Mapping[str, Any],
) -> list[tuple[Path, float]]:
    """`warm_up` of a model with trainable adapter that `model` makes; it is called only if there is work left."""
    if (folder / _DONE).exists():
        return _read_done(folder)
    ends, sampler = epoch_ends(settings.training, len(rows)), PlanSampler(rows, seed=settings.training.seed)
    work = folder / "run"
    options = FitOptions(made_from=made_from, where="warmup.training")
    try:
        trainer = build_trainer(model, tokens, sampler, settings.training, work, options=options)
        keeper = _KeepEpochs(trainer, folder, ends, Journal(work / "journal" / "taken.bin", _RATE))
        trainer.add_callback(keeper)
        resume(trainer)
        if trainer.is_world_process_zero():
            write_ledger(trainer, tokens, folder / "ledger.parquet")
            rate_S = keeper.rates.read()["rate"]
            if len(rate_S) != ends[-1]:
                raise ConfigError(f"{folder} was begun by an earlier version of flextools; remove it and start again")
            _write_done(folder, ends, mean_rates(rate_S, ends))
        dist.barrier()
    finally:
        forget_engine()
    return _read_done(folder)


class _KeepEpochs(TrainerCallback):
    """Notes each step's learning rate; at the end of an epoch keeps adapter and moments, and a checkpoint."""

    def __init__(self, trainer: PlanTrainer, folder: Path, ends: list[int], rates: Journal) -> None:
        self._trainer, self._folder, self._ends, self.rates = trainer, folder, ends, rates
        self._rate = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.rates.cut(state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._rate = kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step, optimizer = state.global_step, kwargs["optimizer"]
        if state.is_world_process_zero:
            self.rates.append(np.array([(step, self._rate)], dtype=_RATE))
        if step not in self._ends:
            return
        control.should_save = control.should_log = True
        moments = adam_moments(kwargs["model"], optimizer, is_deepspeed=self._trainer.is_deepspeed_enabled)
        numbers = {"step": step, "beta1": args.adam_beta1, "beta2": args.adam_beta2, "eps": args.adam_epsilon}

        def complete(checkpoint: Path) -> None:
            (checkpoint / "README.md").unlink(missing_ok=True)  # a model card of peft, empty but for its headings
            save_moments(checkpoint / "moments.safetensors", moments, **numbers)

        save_model(self._trainer, self._folder / _name(self._ends.index(step)), complete=complete)


def _name(index: int) -> str:
    return f"checkpoint-{index + 1}"


def _write_done(folder: Path, ends: list[int], rates: list[float]) -> None:
    checkpoints = [
        {"folder": _name(index), "step": end, "mean_learning_rate": rate}
        for index, (end, rate) in enumerate(zip(ends, rates, strict=True))
    ]
    write_json(folder / _DONE, {"checkpoints": checkpoints}, indent=1)
    shutil.rmtree(folder / "run", ignore_errors=True)


def _read_done(folder: Path) -> list[tuple[Path, float]]:
    done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    return [(folder / item["folder"], item["mean_learning_rate"]) for item in done["checkpoints"]]
