"""The Trainer that follows a plan, as a mixin for any Trainer subclass.

    class PlanSFTTrainer(PlanTrainerMixin, trl.SFTTrainer): ...

The whole training is one pass of the trainer over one endless stream of rows, so resuming is a seek: nothing is read
again, and step t takes positions t * G .. (t + 1) * G - 1 of the stream on any number of ranks (G: global batch size).
Extension points used: get_train_dataloader, training_step, callbacks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import IterableDataset as StreamedDataset
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.sampler.plan_sampler import PlanBatches, PlanSampler, Stream
from dataflex_tools.train.ledger import Ledger
from dataflex_tools.train.router_loss import RouterLoss, balance, router_term, shift_cross_entropy
from dataflex_tools.train.same_rows import GivenRows, check_loaded
from dataflex_tools.train.settings import steps_until

# relative; the same logits give the same loss to float32 rounding, about 1e-6
_SAME_LOSS = 1e-4
ROWS = "plan_rows"  # batch key of the rows a micro-batch holds; a numpy array, so it is never moved to a device

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class PlanTrainerMixin(_Base):
    """Put in front of a Trainer class: batches come from `sampler`, and what was consumed goes to `ledger`.

    Rows of the sampler index the `train_dataset` that is given. Where the base class makes another of it (tokenises, drops
    rows without labels, shuffles), a planned row is taken wherever it stands then; where it is gone, or rows cannot be told
    (packing), nothing is trained. A sampler of a plan artifact also compares the content with the plan's. With
    `args.max_steps` unset, `args.num_train_epochs` counts passes over the sampler's rows. Raises ConfigError for what would
    change the batches behind the plan's back, ArtifactError for data that is not the plan's.
    """

    where = "training"  # what the settings are called in messages

    def __init__(self, *args: Any, sampler: Stream, ledger: Ledger | None = None, **kwargs: Any) -> None:
        mro = type(self).__mro__
        given = GivenRows(mro[mro.index(PlanTrainerMixin) + 1 :], args, kwargs)
        _check_rows(given.dataset, sampler)
        given.number()
        super().__init__(*given.args, **given.kwargs)
        _check_arguments(self.args)
        self.train_dataset, self._place_N = given.settle(self.train_dataset, sampler.chosen_rows, type(self).__name__)
        self._plan_dataset = self.train_dataset
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
        """The base class's loader, fed by the plan. Raises ConfigError if it reads other rows than the plan was told of."""
        if self.train_dataset is not self._plan_dataset:
            raise ConfigError("train_dataset was replaced; make the trainer with the data set it is to train on")
        base = super().get_train_dataloader()
        check_loaded(self.train_dataset, base.dataset)
        self._plan_batches = self._new_batches()
        workers = {
            "prefetch_factor": base.prefetch_factor,
            "persistent_workers": base.persistent_workers,
            "multiprocessing_context": base.multiprocessing_context,
        }
        loader = DataLoader(
            _WithRows(base.dataset, self._place_N),
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
    """`transformers.Trainer` that follows a plan, with one rule for what a loss has beside its cross entropy.

    The load-balancing loss of a mixture of experts is that of the whole global batch (see `router_loss`): with several
    micro-batches a step costs one more forward pass of each. Any other term would depend on how a step is shared out, and
    is refused with a ConfigError once the first batch shows it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        term = router_term(self.model.config) if self.compute_loss_func is None else None
        self.router_loss = RouterLoss(term) if term is not None else None
        self._has_own_loss = self.compute_loss_func is not None
        self._are_terms_known = self._has_own_loss
        self._mask_BT: torch.Tensor | None = None
        if self.router_loss is not None:
            self.compute_loss_func = self._whole_loss

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from a checkpoint's folder if one is given, all of whose weights are loaded whatever they are called."""
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled  # their engines keep names of their own
        if isinstance(resume_from_checkpoint, str) and not is_sharded and isinstance(self.model, PreTrainedModel):
            load_renamed(self.model, Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def looks_ahead(self) -> bool:
        """Whether the micro-batches of a step are run forward before any of them is trained on."""
        return self.router_loss is not None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of a step, looked through where the loss depends on all of them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self._are_terms_known and batches:
            self._check_terms(batches[0])
            self._are_terms_known = True
        if self.looks_ahead and len(batches) > 1:
            self.model_wrapped.train()  # as the step itself will: its first pass comes before the trainer says so
            with torch.no_grad():
                for batch in batches:
                    inputs = self._prepare_inputs({key: value for key, value in batch.items() if key != ROWS})
                    with self.compute_loss_context_manager():
                        self.look(inputs, batch[ROWS])
            self.decide()
        return batches, num_items

    def look(self, inputs: dict[str, Any], row_B: np.ndarray) -> None:
        """Run a micro-batch forward and note what the step's loss needs of it."""
        assert self.router_loss is not None
        outputs = self.model_wrapped(**{key: value for key, value in inputs.items() if key != "labels"})
        self.router_loss.note(outputs, inputs.get("attention_mask"))

    def decide(self) -> None:
        """End a look at all micro-batches of a step."""
        if self.router_loss is not None:
            self.router_loss.settle(lambda total: self.accelerator.reduce(total, reduction="sum"))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Train on a micro-batch whose padding is known."""
        mask_BT = inputs.get("attention_mask")
        self._mask_BT = None if mask_BT is None else mask_BT.to(self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def router_part(self, outputs: Any) -> torch.Tensor:
        """The running micro-batch's part of the global batch's load-balancing loss."""
        assert self.router_loss is not None
        if self.current_gradient_accumulation_steps == 1:
            self.router_loss.note(outputs, self._mask_BT)
            self.router_loss.settle(lambda total: self.accelerator.reduce(total, reduction="sum"))
        return self.router_loss.part(outputs, self._mask_BT)

    def _whole_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """This micro-batch's part of the global batch's loss; the trainer adds parts up and multiplies by ranks."""
        if self.label_smoother is not None:
            loss = self.label_smoother(outputs, labels, shift_labels=True, num_items_in_batch=num_items_in_batch)
        else:
            model = _base_model(self.model)
            size = model.config.get_text_config().vocab_size
            loss = model.loss_function(
                logits=outputs.logits, labels=labels, vocab_size=size, num_items_in_batch=num_items_in_batch
            )
        return loss + self.router_part(outputs)

    def _check_terms(self, batch: dict[str, Any]) -> None:
        """Raise ConfigError if the model's own loss has a term that is not accounted for, by the batch's first sample."""
        one = self._prepare_inputs({key: value[:1] for key, value in batch.items() if key != ROWS})
        labels_BT = one.pop("labels")
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            own = float(self.model(**one, labels=labels_BT, use_cache=False).loss)
            outputs = self.model(**one, use_cache=False)
            wanted = float(shift_cross_entropy(outputs.logits, labels_BT))
            if self.router_loss is not None:
                wanted += float(balance(outputs, self.router_loss.term, one.get("attention_mask")))
        self.model.train(was_training)
        if abs(own - wanted) > _SAME_LOSS * max(1.0, abs(wanted)):
            kind = _base_model(self.model).config.model_type
            terms = "cross entropy" if self.router_loss is None else "cross entropy and load balancing"
            raise ConfigError(
                f"the loss of this {kind} model is {own:.4f} where {terms} alone is {wanted:.4f}: it has a term that would "
                "depend on how a step is shared out; set its coefficient to 0 in the model's config.json "
                "(or output_router_logits to false, if it is the router's)"
            )


def load_renamed(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights of a checkpoint of `model` whose files give some another name or form than the model does.

    So it is with fused experts, which are saved one by one: the base class finds no such names, warns, and would go on from
    the weights it started with. Raises ConfigError if a weight is in no file.
    """
    saved: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved.update(file.keys())
    if not saved or model.state_dict().keys() <= saved:
        return
    loaded, report = type(model).from_pretrained(
        folder, config=model.config, dtype=model.dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if faults := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise ConfigError(
            f"{folder} lacks {len(faults)} weights of the model, e.g. {faults[0]}: nothing can go on from it; remove it"
        )
    model.load_state_dict(loaded.state_dict())


def _base_model(model: Any) -> Any:
    """The model below an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


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
                f"the training loss is {loss} at step {state.global_step}; lower {self._trainer.where}.learning_rate, "
                "or train in another precision"
            )


class _WithRows(Dataset[tuple[int, Any]]):
    """Items of a dataset together with their row; `place_N`: where each row stands in it, if not at its number."""

    def __init__(self, dataset: Any, place_N: np.ndarray | None) -> None:
        self.dataset = dataset
        self._place_N = place_N

    def __len__(self) -> int:
        return len(self.dataset if self._place_N is None else self._place_N)

    def __getitem__(self, row: int) -> tuple[int, Any]:
        return row, self.dataset[row if self._place_N is None else int(self._place_N[row])]


class _CollateRows:
    """Collates the items and adds their rows."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        batch = dict(self._collate([item for _, item in pairs]))
        return {**batch, ROWS: np.array([row for row, _ in pairs], dtype=np.int64)}


def _check_rows(dataset: Any, sampler: Stream) -> None:
    """Raise unless the data set given has the rows that the sampler picks, and is the plan's if that is known."""
    if dataset is None or isinstance(dataset, IterableDataset | StreamedDataset):
        raise ConfigError(f"a plan selects rows by number; train_dataset is {type(dataset).__name__} and has none")
    if sampler.largest_row >= len(dataset):
        raise ConfigError(f"the plan selects row {sampler.largest_row} of {len(dataset)}; use the data it was made for")
    if isinstance(sampler, PlanSampler) and sampler.content is not None:
        sampler.content.check(dataset, sampler.row_k)


def _check_arguments(args: TrainingArguments) -> None:
    for name, wanted in {"auto_find_batch_size": False, "train_sampling_strategy": "random"}.items():
        if (found := getattr(args, name)) != wanted:
            raise ConfigError(f"{name}={found!r} has no effect or breaks the plan; leave it at {wanted!r}")
    if not args.dataloader_in_order:
        raise ConfigError("dataloader_in_order=False breaks the plan; leave it at True")
    if args.accelerator_config.split_batches or args.accelerator_config.dispatch_batches:
        raise ConfigError("accelerator_config split_batches and dispatch_batches break the plan; leave them unset")
