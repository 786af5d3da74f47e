"""The Trainer that follows a plan, as a mixin for any Trainer subclass.

    class PlanSFTTrainer(PlanTrainerMixin, trl.SFTTrainer): ...

The whole training is one pass of the trainer over one endless stream of rows, so resuming is a seek: nothing is read
again, and step t takes positions t * G .. (t + 1) * G - 1 of the stream on any number of ranks (G: global batch size).
Extension points used: get_train_dataloader, training_step, callbacks.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.sampler.plan_sampler import PlanBatches, Stream
from dataflex_tools.train.ledger import Ledger
from dataflex_tools.train.settings import steps_until

ROWS = "plan_rows"  # batch key of the rows a micro-batch holds; a numpy array, so it is never moved to a device

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class PlanTrainerMixin(_Base):
    """Put in front of a Trainer class: batches come from `sampler`, and what was consumed goes to `ledger`.

    Rows of the sampler index `train_dataset`. With `args.max_steps` unset, `args.num_train_epochs` counts passes over
    the sampler's rows. Raises ConfigError for arguments that would change the batches behind the plan's back.
    """

    def __init__(self, *args: Any, sampler: Stream, ledger: Ledger | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self.args, self.train_dataset, sampler)
        self.plan_sampler = sampler
        folder = Path(self.args.output_dir or ".") / "journal"
        self.ledger = ledger or Ledger(folder, rank=self.args.process_index)
        self.plan_batch_size = self.get_total_train_batch_size(self.args)
        if self.args.max_steps < 0:
            self.args.max_steps = steps_until(self.args.num_train_epochs, sampler.num_rows, self.plan_batch_size)
        # the trainer would replay the stream to where it stopped; PlanBatches starts there instead
        self.args.ignore_data_skip = True
        self._plan_batches = self._new_batches()
        self.add_callback(_FollowPlan(self))

    def get_train_dataloader(self) -> DataLoader:
        """The base class's loader, fed by the plan."""
        base = super().get_train_dataloader()
        self._plan_batches = self._new_batches()
        workers = {"prefetch_factor": base.prefetch_factor, "persistent_workers": base.persistent_workers}
        loader = DataLoader(
            _WithRows(base.dataset),
            batch_sampler=self._plan_batches,
            collate_fn=_CollateRows(base.collate_fn),
            num_workers=base.num_workers,
            pin_memory=base.pin_memory,
            worker_init_fn=base.worker_init_fn,
            # its own stream: opening the loader must not move the one that dropout draws from
            generator=torch.Generator().manual_seed(self.args.seed),
            **(workers if base.num_workers else {}),
        )
        return self.accelerator.prepare(loader)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Note which rows the micro-batch holds, then train on it."""
        self.ledger.record(inputs.pop(ROWS))
        return super().training_step(model, inputs, num_items_in_batch)

    def seek(self, step: int) -> None:
        """Continue after optimizer step `step`: the next batch is number `step`, counted from 0."""
        self._plan_batches.start = step * self.plan_batch_size // self._train_batch_size
        self.ledger.discard()
        if self.is_world_process_zero():
            self.ledger.cut(step)
        self.accelerator.wait_for_everyone()

    def _new_batches(self) -> PlanBatches:
        num_batches = self.args.max_steps * self.plan_batch_size // self._train_batch_size
        return PlanBatches(self.plan_sampler, batch_size=self._train_batch_size, num_batches=num_batches)


class PlanTrainer(PlanTrainerMixin, Trainer):
    """`transformers.Trainer` that follows a plan."""


class _FollowPlan(TrainerCallback):
    """Seeks at the start, commits the ledger after each step, and keeps the epoch that of the data."""

    def __init__(self, trainer: PlanTrainerMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.seek(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer.ledger.commit(state.global_step)
        state.epoch = state.global_step * trainer.plan_batch_size / trainer.plan_sampler.num_rows
        if control.should_save:
            trainer.ledger.sync()
            # the running mean of the loss is not in a checkpoint: closing it here keeps a resumed log equal
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: Mapping[str, float] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            raise DataError(
                f"the training loss is {loss} at step {state.global_step}; lower training.learning_rate, or train in "
                "another precision"
            )


class _WithRows(Dataset[tuple[int, Any]]):
    """Items of a dataset together with their row."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[int, Any]:
        return row, self.dataset[row]


class _CollateRows:
    """Collates the items and adds their rows."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        batch = dict(self._collate([item for _, item in pairs]))
        return {**batch, ROWS: np.array([row for row, _ in pairs], dtype=np.int64)}


def _check(args: TrainingArguments, dataset: Any, sampler: Stream) -> None:
    if dataset is None or isinstance(dataset, IterableDataset):
        raise ConfigError(f"a plan selects rows by number; train_dataset is {type(dataset).__name__} and has none")
    if sampler.largest_row >= len(dataset):
        raise ConfigError(f"the plan selects row {sampler.largest_row} of {len(dataset)}; use the data it was made for")
    for name, wanted in {"auto_find_batch_size": False, "train_sampling_strategy": "random"}.items():
        if (found := getattr(args, name)) != wanted:
            raise ConfigError(f"{name}={found!r} has no effect or breaks the plan; leave it at {wanted!r}")
    if args.accelerator_config.split_batches or args.accelerator_config.dispatch_batches:
        raise ConfigError("accelerator_config split_batches and dispatch_batches break the plan; leave them unset")
