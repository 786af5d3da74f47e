"""A Trainer with an online mixer in the loop: it tells the mixer what each step measured, and does what it says.

A mixer that weighs the loss (DoReMi) decides on the losses of a whole global batch before any of its gradients is taken:
with several micro-batches per step these are run forward once more, without gradient, so that the weights do not depend
on how a step is shared out. A mixer that draws the batches decides after the step; the batch that follows is looked up
after that. Statistics are summed over all ranks, in float64.
Extension points used: get_train_dataloader, get_batch_samples, training_step, compute_loss, callbacks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.mixing import Domains, MixState, Observation
from dataflex_tools.ops.group_loss import domain_weighted_loss
from dataflex_tools.sampler.mixture_sampler import MixtureSampler
from dataflex_tools.train.journal import Journal
from dataflex_tools.train.reference import TokenLosses
from dataflex_tools.train.trainer import ROWS, PlanTrainer

if TYPE_CHECKING:
    from dataflex_tools.methods.base import OnlineMixer

# B samples of a micro-batch, T tokens, K domains, S label tokens, G samples of a global batch

Measure = Callable[[Any, bool], Observation]


@dataclass(frozen=True)
class Loop:
    """What a mixer needs of a training. `group_N`, `num_labels_N`: domain and label tokens of each corpus row.

    `reference`: for `excess_loss`. `measure`: for `held_out_loss` and `router_load`; called by all ranks with the model and
    whether that is sharded, it gives the observation of all of them (its `step` is filled in).
    """

    mixer: "OnlineMixer"
    domains: Domains
    group_N: np.ndarray
    num_labels_N: np.ndarray
    reference: TokenLosses | None = None
    measure: Measure | None = None


class Trajectory:
    """The states of a mixer, a record per optimizer step in a journal, so that a resumed run goes on from any of them."""

    def __init__(self, mixer: "OnlineMixer", domains: Domains, path: Path, *, is_main: bool) -> None:
        names = ("weight", "score", "sum", "num")
        fields = [("step", "<i8"), ("is_update", "<i8"), *((name, "<f8", (len(domains),)) for name in names)]
        self._journal, self._is_main = Journal(path, np.dtype(fields)), is_main
        self._mixer, self._start = mixer, mixer.start(domains)
        self.states = [self._start]
        self.sum_K, self.num_K = np.zeros(len(domains)), np.zeros(len(domains))

    @property
    def state(self) -> MixState:
        """The newest."""
        return self.states[-1]

    def restore(self, step: int, wait: Callable[[], None]) -> None:
        """Go back to how things stood after optimizer step `step`; all ranks call it."""
        if self._is_main:
            self._journal.cut(step)
        wait()
        records = self._journal.read()
        if step and (not len(records) or int(records["step"][-1]) != step):
            raise ConfigError(
                f"{self._journal.path} does not reach step {step}, where the checkpoint is; remove its training"
            )
        self.states = [self._start]
        self.sum_K, self.num_K = np.zeros_like(self.sum_K), np.zeros_like(self.num_K)
        for record in records:
            self.sum_K, self.num_K = np.array(record["sum"]), np.array(record["num"])
            if record["is_update"]:
                self.states.append(MixState(int(record["step"]), np.array(record["weight"]), np.array(record["score"])))

    def add(self, sum_K: np.ndarray, num_K: np.ndarray) -> None:
        """Count what a step measured."""
        self.sum_K, self.num_K = self.sum_K + sum_K, self.num_K + num_K

    def update(self, step: int, seen: Observation | None = None) -> None:
        """Let the mixer decide on `seen`, or on what was counted since its last decision."""
        seen = seen or Observation(step, self.sum_K, self.num_K)
        new = self._mixer.update(self.state, seen)
        self.states.append(MixState(step, new.weight_K, new.score_K))
        self.sum_K, self.num_K = np.zeros_like(self.sum_K), np.zeros_like(self.num_K)

    def commit(self, step: int) -> None:
        """Write down how things stand after optimizer step `step`."""
        if self._is_main:
            now = self.state
            values = (step, now.step == step, now.weight_K, now.score_K, self.sum_K, self.num_K)
            self._journal.append(np.array([values], dtype=self._journal.dtype))

    def sync(self) -> None:
        """Flush to the disk."""
        if self._is_main:
            self._journal.sync()


class MixTrainer(PlanTrainer):
    """A `PlanTrainer` whose `loop` holds a mixer; `trajectory` are the states it went through."""

    def __init__(self, *args: Any, loop: Loop, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = loop
        assert isinstance(self.plan_sampler, MixtureSampler)
        folder = Path(self.args.output_dir or ".").parent / "journal"
        self.trajectory = Trajectory(
            loop.mixer, loop.domains, folder / "mixer.bin", is_main=self.is_world_process_zero()
        )  # fmt: skip
        if self.label_smoother is not None:
            raise ConfigError("label_smoothing_factor has no effect on a mixer's losses; leave it out")
        self.model_accepts_loss_kwargs = False  # the losses below are means over the global batch already
        self.compute_loss_func = None
        self._rows_B = np.empty(0, np.int64)
        self._num_labels_K = np.zeros(len(loop.domains))
        self._seen = np.zeros((2, len(loop.domains)))
        self.add_callback(_FollowMixer(self))

    def get_train_dataloader(self) -> Any:
        """The plan's loader; where the mixer draws the batches, one that looks rows up only when they are due."""
        if self.loop.mixer.weighs_loss:
            return super().get_train_dataloader()
        return _DueRows(self)

    def seek(self, step: int) -> None:
        """Continue after optimizer step `step`, with the mixer as it was then."""
        super().seek(step)
        self.trajectory.restore(step, self.accelerator.wait_for_everyone)
        if not self.loop.mixer.weighs_loss:
            for state in self.trajectory.states[1:]:
                self.plan_sampler.extend(state.step * self.plan_batch_size, state.weight_K)

    @property
    def looks_ahead(self) -> bool:
        """Also where the mixer weighs the loss: it decides on the whole global batch."""
        return super().looks_ahead or self.loop.mixer.weighs_loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of a step; a mixer that weighs the loss has decided when they are returned, unless there is
        only one, whose forward pass serves both."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        start = self.state.global_step * self.plan_batch_size
        row_G = self.plan_sampler.rows_at(start, start + self.plan_batch_size)
        weights_G = self.loop.num_labels_N[row_G].astype(np.float64)
        self._num_labels_K = np.bincount(self.loop.group_N[row_G], weights=weights_G, minlength=len(self.loop.domains))
        return batches, None

    def look(self, inputs: dict[str, Any], row_B: np.ndarray) -> None:
        """Run a micro-batch forward and note what the mixer, and the router's loss, need of it."""
        loss_BT, is_label_BT, outputs = _token_losses(self.model_wrapped, inputs)
        if self.loop.mixer.weighs_loss:
            self._note(loss_BT, is_label_BT, row_B)
        if self.router_loss is not None:
            self.router_loss.note(outputs, inputs.get("attention_mask"))

    def decide(self) -> None:
        """End a look at all micro-batches of a step: a mixer that weighs the loss decides."""
        super().decide()
        if self.loop.mixer.weighs_loss:
            self._decide()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Note which rows the micro-batch holds, then train on it."""
        self._rows_B = inputs[ROWS]
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """This micro-batch's part of the global batch's loss, times ranks and micro-batches, which average it."""
        loss_BT, is_label_BT, outputs = _token_losses(model, inputs)
        weighs, is_alone = self.loop.mixer.weighs_loss, self.args.gradient_accumulation_steps == 1
        if not weighs or is_alone:
            self._note(loss_BT.detach(), is_label_BT, self._rows_B)
        if weighs and is_alone:
            self._decide()
        share = self.args.world_size * self.current_gradient_accumulation_steps
        part = self._part(loss_BT, is_label_BT)
        if self.router_loss is not None:
            part = part + self.router_part(outputs)
        return part * share

    def _part(self, loss_BT: torch.Tensor, is_label_BT: torch.Tensor) -> torch.Tensor:
        loop = self.loop
        if not loop.mixer.weighs_loss:
            return (loss_BT * is_label_BT).sum() / float(self._num_labels_K.sum())
        domain_B = torch.from_numpy(loop.group_N[self._rows_B].astype(np.int64)).to(loss_BT.device)
        return domain_weighted_loss(
            loss_BT, is_label_BT, domain_B, self.trajectory.state.weight_K, self._num_labels_K,
            kind=loop.mixer.loss_kind, sampling_K=loop.mixer.sampling_weights(loop.domains),
        )  # fmt: skip

    def _note(self, loss_BT: torch.Tensor, is_label_BT: torch.Tensor, row_B: np.ndarray) -> None:
        """Count the losses of a micro-batch by domain, for the mixers that look at them."""
        loop = self.loop
        if loop.measure is not None:
            return
        loss_S = loss_BT[is_label_BT].float().cpu().numpy().astype(np.float64)
        if loop.reference is not None:
            loss_S = np.maximum(loss_S - loop.reference.of_rows(row_B), 0)
        num_B = is_label_BT.sum(dim=1).cpu().numpy()
        domain_S = np.repeat(loop.group_N[row_B], num_B)
        size = len(loop.domains)
        self._seen += np.stack(
            [np.bincount(domain_S, weights=loss_S, minlength=size), np.bincount(domain_S, minlength=size)]
        )

    def _reduced(self) -> np.ndarray:
        """What all ranks noted in this step, (2, K); starts anew."""
        seen, self._seen = self._seen, np.zeros_like(self._seen)
        total = self.accelerator.reduce(torch.from_numpy(seen).to(self.args.device), reduction="sum").cpu().numpy()
        if not np.isfinite(total).all():
            names = [name for name, is_bad in zip(self.loop.domains.names, ~np.isfinite(total[0]), strict=True) if is_bad]
            raise DataError(
                f"the loss of {', '.join(names)} is not finite at step {self.state.global_step + 1}; lower "
                f"{self.where}.learning_rate, or train in another precision"
            )
        return np.asarray(total)

    def _decide(self) -> None:
        """Let a mixer that weighs the loss decide on the running step."""
        step = self.state.global_step + 1
        self.trajectory.add(*self._reduced())
        self.trajectory.update(step)

    def close_step(self, step: int, model: Any) -> None:
        """After optimizer step `step`: let a mixer that draws the batches decide, and write down how things stand."""
        mixer = self.loop.mixer
        if not mixer.weighs_loss:
            if self.loop.measure is None:
                self.trajectory.add(*self._reduced())
            if step % mixer.update_every == 0:
                self.trajectory.update(step, self._measured(step, model))
                self.plan_sampler.extend(step * self.plan_batch_size, self.trajectory.state.weight_K)
        self.trajectory.commit(step)

    def _measured(self, step: int, model: Any) -> Observation | None:
        if self.loop.measure is None:
            return None
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        seen = self.loop.measure(model if is_sharded else self.accelerator.unwrap_model(model), is_sharded)
        return Observation(step, seen.sum_K, seen.num_tokens_K, seen.load_KE)


class _FollowMixer(TrainerCallback):
    """Closes each step of the mixer; a checkpoint finds its journal on the disk."""

    def __init__(self, trainer: MixTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.close_step(state.global_step, self._trainer.model_wrapped)
        if control.should_save:
            self._trainer.trajectory.sync()


class _DueRows:
    """Micro-batches of this rank in order; the rows of one are looked up when it is asked for, not before."""

    def __init__(self, trainer: MixTrainer) -> None:
        self._trainer, self.dataset = trainer, trainer.train_dataset
        self.batch_size = trainer.args.per_device_train_batch_size

    def __len__(self) -> int:
        args = self._trainer.args
        return int(args.max_steps) * int(args.gradient_accumulation_steps)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer, args, size = self._trainer, self._trainer.args, self.batch_size
        first = trainer.state.global_step * args.gradient_accumulation_steps
        for number in range(first, len(self)):
            start = (number * args.world_size + args.process_index) * size
            row_B = trainer.plan_sampler.rows_at(start, start + size)
            yield {**trainer.data_collator([self.dataset[row] for row in row_B.tolist()]), ROWS: row_B}


def _token_losses(model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """(loss of each token but the first, nats float32, 0 where there is no label; whether it is a label), (B, T - 1), and
    what the model put out."""
    labels_BT = inputs["labels"][:, 1:]
    outputs = model(**{key: value for key, value in inputs.items() if key != "labels"}, use_cache=False)
    logits = outputs.logits[:, :-1].float().flatten(0, 1)
    loss = F.cross_entropy(logits, labels_BT.flatten(), reduction="none")
    return loss.view(labels_BT.shape), labels_BT != -100, outputs
