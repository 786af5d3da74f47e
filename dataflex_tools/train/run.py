"""One training in one folder: started, killed, started again, finished.

<folder>/model/          the adapter or model, in the formats of peft and transformers
<folder>/ledger.parquet  step, row, sample_id, domain, weight of every consumed sample
<folder>/log.parquet     step, loss, grad_norm, learning_rate
<folder>/run.json        what the run was started with; a later start must agree
<folder>/checkpoints/, <folder>/journal/   what a resume needs
"""

import gc
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from dataflex_tools.artifact.files import write_bytes
from dataflex_tools.core import dist
from dataflex_tools.core.config import differences, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.fingerprint import canonical_json, ids_digest
from dataflex_tools.core.mixing import MixState
from dataflex_tools.sampler.plan_sampler import Stream
from dataflex_tools.train import extra
from dataflex_tools.train.data import PadCollator, dataset_of
from dataflex_tools.train.ledger import Ledger
from dataflex_tools.train.mixing import Loop, MixTrainer
from dataflex_tools.train.progress import ReportProgress, write_log
from dataflex_tools.train.router_loss import RouterTerm, router_term
from dataflex_tools.train.settings import TrainingSettings, fitted, training_arguments
from dataflex_tools.train.trainer import PlanTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from dataflex_tools.data.tokenized import Tokens

logger = logging.getLogger("flextools")

# how a run is shared out, watched and kept, not what it computes: may differ when it is resumed
FREE = ("per_device_train_batch_size", "logging_steps", "save_steps", "save_total_limit", "report_to", "deepspeed",
         "fsdp", "fsdp_config", "gradient_checkpointing")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What a training may be given besides rows and settings.

    `made_from`: further facts a resume must agree with, such as the digests of model and plan. `loop`: an online mixer
    that decides while the model trains; the sampler is then a `MixtureSampler`. `where`: what the settings are called in
    messages.
    """

    collator: Callable[[Any], Any] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    callbacks: Sequence[TrainerCallback] = ()
    made_from: Mapping[str, Any] = field(default_factory=dict)
    loop: Loop | None = None
    where: str = "training"


@dataclass(frozen=True)
class TrainingRun:
    """A finished training: where its model, ledger and log are, how many optimizer steps it took, and the states of its
    mixer if it had one.
    """

    model: Path
    ledger: Path
    log: Path
    num_steps: int
    trajectory: tuple[MixState, ...] = ()


def run_training(
    model: nn.Module | Callable[[], nn.Module],
    tokens: "Tokens",
    sampler: Stream,
    settings: TrainingSettings,
    folder: Path,
    *,
    options: FitOptions | None = None,
) -> TrainingRun:
    """Train `model` on the sampler's rows, resuming from the last whole checkpoint in `folder` if there is one.

    A `model` given as a function is called after everything else has been checked. Raises ConfigError if `folder` holds
    a run that was started with something else, DataError if the loss stops being finite.
    """
    try:
        return _trained(model, tokens, sampler, settings, folder, options or FitOptions())
    finally:
        forget_engine()


def _trained(
    model: nn.Module | Callable[[], nn.Module], tokens: "Tokens", sampler: Stream, settings: TrainingSettings, folder: Path,
    options: FitOptions,
) -> TrainingRun:  # fmt: skip
    trainer = build_trainer(model, tokens, sampler, settings, folder, options=options)
    resume(trainer)
    save_model(trainer, folder / "model", complete=options.tokenizer and options.tokenizer.save_pretrained)
    states = tuple(trainer.trajectory.states) if isinstance(trainer, MixTrainer) else ()
    steps = trainer.state.global_step
    run = TrainingRun(folder / "model", folder / "ledger.parquet", folder / "log.parquet", steps, states)
    if trainer.is_world_process_zero():
        write_ledger(trainer, tokens, run.ledger)
        write_log(trainer.state, run.log)
    dist.barrier()  # not the trainer's: writing may take longer than its time-out
    return run


def forget_engine() -> None:
    """Let go of what a Trainer leaves behind in the process.

    transformers keeps DeepSpeed's settings in a global: after a ZeRO-3 training every model loaded later would be sharded,
    those of other stages too. A Trainer is a cycle of references, so its model and optimizer outlive it until collected.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    gc.collect()


def build_trainer(
    model: nn.Module | Callable[[], nn.Module],
    tokens: "Tokens",
    sampler: Stream,
    settings: TrainingSettings,
    folder: Path,
    *,
    options: FitOptions,
) -> PlanTrainer:
    """The trainer of a run, before its first or next step; arguments and errors are those of `run_training`."""
    checkpoints, world_size = folder / "checkpoints", dist.world_size()
    settings = fitted(settings, sampler.num_rows)
    arguments = training_arguments(
        settings, checkpoints, num_rows=sampler.num_rows, world_size=world_size, where=options.where
    )
    arguments.disable_tqdm = not sys.stderr.isatty()
    identity = _identity(tokens, sampler, settings, options)
    _check_same_run(folder, identity)
    pad_id = options.tokenizer.pad_token_id if options.tokenizer is not None else None
    built = model if isinstance(model, nn.Module) else model()
    _record_run(folder, identity)  # not before: a model that cannot be loaded leaves no folder
    given = {"callbacks": list(options.callbacks), "sampler": sampler}
    given |= {"ledger": Ledger(folder / "journal", rank=dist.rank())}
    term = router_term(built.config)
    collator = options.collator or PadCollator(pad_id or 0, with_mask=term is not None)
    parts = (built, arguments, collator, dataset_of(tokens))
    trainer = PlanTrainer(*parts, **given) if options.loop is None else MixTrainer(*parts, **given, loop=options.loop)
    batch_size = settings.global_batch_size
    trainer.add_callback(ReportProgress(folder / "log.parquet", sampler, tokens.num_tokens_N, batch_size))
    trainer.where = options.where
    if term is not None:
        _say_router_loss(term, arguments)
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the command's answer
    return trainer


def _say_router_loss(term: RouterTerm, arguments: "TrainingArguments") -> None:
    count = arguments.gradient_accumulation_steps
    cost = f"; for it a step of {count} micro-batches takes one more forward pass of each" if count > 1 else ""
    logger.info("the loss has %g times the load balance of the experts over each global batch%s", term.coefficient, cost)


def resume(trainer: PlanTrainer) -> None:
    """Train to the end, from the last whole checkpoint if there is one."""
    checkpoints = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        _remove_unfinished(checkpoints)
    trainer.accelerator.wait_for_everyone()
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    logger.info(
        "training %s steps of %d samples from %s selected rows%s", f"{trainer.args.max_steps:,}",
        trainer.plan_batch_size, f"{trainer.plan_sampler.num_rows:,}", f", resuming {Path(last).name}" if last else "",
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last)


def save_model(trainer: PlanTrainer, folder: Path, *, complete: Callable[[Path], Any] | None = None) -> None:
    """Write the trained adapter or model to `folder` in one step; all ranks must call it.

    `complete` adds further files, on one rank, before the folder appears.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")  # one name for all ranks
    if trainer.is_world_process_zero():
        shutil.rmtree(temporary, ignore_errors=True)
    dist.barrier()
    try:
        trainer.save_model(str(temporary))
        dist.barrier()
        if trainer.is_world_process_zero():
            (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle
            _sort_targets(temporary / "adapter_config.json")
            if complete is not None:
                complete(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(temporary, ignore_errors=True)  # what a full disk left
    dist.barrier()


def _sort_targets(path: Path) -> None:
    """peft keeps its targets as sets: written in hash order, another one in each process."""
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        for name in ("target_modules", "target_parameters"):
            if isinstance(config.get(name), list):
                config[name].sort()
        path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def write_ledger(trainer: PlanTrainer, tokens: "Tokens", path: Path) -> None:
    """Merge the ranks' journals into one Parquet file; one rank calls it, after the last step of all."""
    trainer.ledger.write(path, ids_N16=tokens.ids_N16, group_N=tokens.group_N, group_names=tokens.group_names)


def deciding(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that decide what a training computes, not how it is shared out, watched and kept."""
    own = {name: value for name, value in to_mapping(settings).items() if name not in FREE}
    return own | {"extra": extra.deciding(own["extra"])}


def _identity(tokens: "Tokens", sampler: Stream, settings: TrainingSettings, options: FitOptions) -> dict[str, Any]:
    return {
        **{f"training.{name}": value for name, value in deciding(settings).items()},
        "selected rows": sampler.digest,
        "data": ids_digest(tokens.ids_N16),
        "rendering": tokens.render_digest,
        **to_mapping(options.made_from),
    }


def _check_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError if an earlier start recorded something else."""
    path, now = folder / "run.json", json.loads(canonical_json(identity))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path} was changed: it is not JSON; choose another --out, or remove the folder") from None
        # an earlier version recorded what may differ, too
        before["training.extra"] = extra.deciding(before.get("training.extra") or {})
        if names := differences(before, now):
            raise ConfigError(
                f"{folder} holds a training that was started with something else ({'; '.join(names[:5])}); choose another "
                "--out, or remove the folder"
            )
    dist.barrier()  # no rank writes before all have looked


def _record_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note what the run is started with, for a later start to compare itself with."""
    if dist.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        now = json.loads(canonical_json(identity))
        write_bytes(folder / "run.json", json.dumps(now, indent=1, sort_keys=True).encode())


def _remove_unfinished(checkpoints: Path) -> None:
    """Remove checkpoints a kill left half-written: the trainer's state is their last file."""
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.info("%s was not finished: removed", folder)
            shutil.rmtree(folder)
