"""How to train: the names of transformers.TrainingArguments, checked early, and turned into them late."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, did_you_mean, one_line
from dataflex_tools.train.extra import DECIDED, check_names, try_parts

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of one training. A step consumes `global_batch_size` samples over all ranks,
    at most `per_device_train_batch_size` at once on each.

    `max_steps` above 0 replaces `num_train_epochs`; `global_batch_size` None is 32, or fewer where fewer rows are there
    (see `fitted`); `save_steps` 0 saves at the end only; `report_to` may be one text, names with commas between; `extra`
    sets further fields of transformers.TrainingArguments (see `train.extra`).
    """

    num_train_epochs: float = 1.0
    max_steps: int = -1
    learning_rate: float = 2e-5
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    optim: str = "adamw_torch"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    global_batch_size: int | None = None
    per_device_train_batch_size: int = 8
    bf16: bool = False
    gradient_checkpointing: bool = False
    logging_steps: int = 10
    save_steps: int = 0
    save_total_limit: int = 2
    seed: int = 0
    deepspeed: str | None = None
    fsdp: bool = False
    fsdp_config: str | None = None
    report_to: tuple[str, ...] | str = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str):
            names = tuple(name.strip() for name in self.report_to.split(",") if name.strip())
            object.__setattr__(self, "report_to", names)
        has_steps = self.max_steps > 0 or self.max_steps == -1
        require(has_steps, f"training.max_steps is {self.max_steps}, wanted -1 or more than 0")
        require(self.num_train_epochs > 0, f"training.num_train_epochs is {self.num_train_epochs}, wanted more than 0")
        require(self.learning_rate > 0, f"training.learning_rate is {self.learning_rate}, wanted more than 0")
        require(0 <= self.warmup_ratio < 1, f"training.warmup_ratio is {self.warmup_ratio}, wanted a value in [0, 1)")
        for name in ("global_batch_size", "per_device_train_batch_size", "logging_steps", "save_total_limit"):
            value = getattr(self, name)
            require(value is None or value > 0, f"training.{name} is {value}, wanted a positive number")
        require(self.save_steps >= 0, f"training.save_steps is {self.save_steps}, wanted 0 or more")
        require(not (self.deepspeed and self.fsdp), "training.deepspeed and training.fsdp are both set; choose one")
        require(self.fsdp or self.fsdp_config is None, "training.fsdp_config has no effect without training.fsdp")
        for name in self.extra:
            own = f"training.{name}" if name in {f.name for f in dataclasses.fields(self)} else DECIDED.get(name)
            require(own is None, f"training.extra cannot set {name!r}: {own} decides it")


_ADAM = ("adamw_torch", "adamw_torch_fused")
_BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")  # schedules that go by an evaluation loss


def _training() -> TrainingSettings:
    return TrainingSettings(num_train_epochs=4.0)


@dataclass(frozen=True, kw_only=True)
class WarmupSettings:
    """A random `fraction` of the pool is trained on for `training.num_train_epochs` epochs; defaults are those of LESS.

    `fraction` None is 0.05, or more of a pool of which that is less than one batch (see `fitted_warmup`).
    `max_growth`: a finished warm-up is used again for a pool that has grown by at most this share since.
    """

    fraction: float | None = None
    max_growth: float = 0.1
    training: TrainingSettings = field(default_factory=_training)

    def __post_init__(self) -> None:
        training = self.training
        is_share = self.fraction is None or 0 < self.fraction <= 1
        require(is_share, f"warmup.fraction is {self.fraction}, wanted a value in (0, 1]")
        require(self.max_growth >= 0, f"warmup.max_growth is {self.max_growth}, wanted 0 or more")
        require(training.optim in _ADAM, f"warmup.training.optim is {training.optim!r}, wanted one of {_ADAM}")
        require(training.max_steps == -1, "warmup.training.max_steps has no effect; set num_train_epochs")
        epochs = training.num_train_epochs
        require(epochs == int(epochs), f"warmup.training.num_train_epochs is {epochs}, wanted whole epochs")


_BATCH = 32
_FEW_STEPS = 4  # an epoch of fewer rows than a batch has at least so many steps, where there are so many rows
_WARMUP_FRACTION = 0.05
_WARMUP_FRACTIONS = (0.1, 0.2, 0.3, 0.5, 1.0)  # few and far between: a pool that grows a little keeps its warm-up
_WARMUP_ROWS, _WARMUP_STEPS, _WARMUP_BATCH = 64, 8, 8  # of a small pool: rows at least, steps an epoch, largest batch


def fitted(settings: TrainingSettings, num_rows: int) -> TrainingSettings:
    """The settings with a batch size: the one given, else 32, else of fewer rows one that gives an epoch some steps."""
    if settings.global_batch_size is not None:
        return settings
    size = _BATCH if num_rows >= _BATCH else _power_of_two(num_rows / _FEW_STEPS)
    return dataclasses.replace(settings, global_batch_size=size)


def fitted_warmup(settings: WarmupSettings, num_rows: int) -> WarmupSettings:
    """The settings with a fraction and a batch size: those given, else LESS's 5 % in batches of 32.

    Of a pool where that is less than one batch, more rows and smaller batches: 64 rows at least, 8 steps an epoch.
    """
    given, training = settings.fraction, settings.training
    usual = int((given or _WARMUP_FRACTION) * num_rows + 1e-9)
    if usual >= (training.global_batch_size or _BATCH):
        fraction, size = given or _WARMUP_FRACTION, training.global_batch_size or _BATCH
    else:
        wanted = max(_WARMUP_ROWS, training.global_batch_size or 0)
        enough = (share for share in _WARMUP_FRACTIONS if share * num_rows >= wanted)
        fraction = given or next(enough, 1.0)
        few = min(_WARMUP_BATCH, _power_of_two(fraction * num_rows / _WARMUP_STEPS))
        size = training.global_batch_size or few
    training = dataclasses.replace(training, global_batch_size=size)
    return dataclasses.replace(settings, fraction=fraction, training=training)


def _power_of_two(most: float) -> int:
    """The largest power of two that is at most `most`, at least 1."""
    return 1 << max(0, int(most).bit_length() - 1)


def num_steps(settings: TrainingSettings, num_rows: int, *, where: str = "training") -> int:
    """Optimizer steps of a training over `num_rows` selected rows; the last batch is full, so it is rounded up.

    Raises ConfigError if the rows do not fill one global batch; `where` is the settings' place, for the message.
    """
    settings = fitted(settings, num_rows)
    size = settings.global_batch_size
    assert size is not None
    if num_rows < size:
        more = "select more" if where == "training" else f"raise {where.removesuffix('.training')}.fraction"
        raise ConfigError(
            f"{num_rows} selected samples do not fill one global batch of {size}; {more}, or set "
            f"{where}.global_batch_size to at most {num_rows}"
        )
    if settings.max_steps > 0:
        return settings.max_steps
    return steps_until(settings.num_train_epochs, num_rows, size)


def steps_until(num_epochs: float, num_rows: int, global_batch_size: int) -> int:
    """Steps after which `num_epochs` epochs of `num_rows` rows have been consumed, at least one."""
    return max(1, math.ceil(num_epochs * num_rows / global_batch_size - 1e-9))


def micro_batches(settings: TrainingSettings, world_size: int, *, where: str = "training") -> tuple[int, int]:
    """(samples of a micro-batch, micro-batches per step and rank).

    The micro-batch is the largest within `per_device_train_batch_size` that shares the global batch out evenly; its size
    changes the result by rounding only. Raises ConfigError if the global batch is no multiple of the ranks.
    """
    total = settings.global_batch_size or _BATCH
    share, rest = divmod(total, world_size)
    if rest:
        raise ConfigError(
            f"{where}.global_batch_size {total} is not a multiple of {world_size} ranks; use "
            f"{share * world_size or world_size} or {(share + 1) * world_size}"
        )
    size = max(b for b in range(1, settings.per_device_train_batch_size + 1) if share % b == 0)
    return size, share // size


def training_arguments(
    settings: TrainingSettings, folder: Path, *, num_rows: int, world_size: int, where: str = "training"
) -> "TrainingArguments":
    """The settings as transformers.TrainingArguments that write checkpoints to `folder`.

    Raises ConfigError for an unknown name in `extra` or a batch size that does not divide; needs no model.
    """
    settings = fitted(settings, num_rows)
    total = num_steps(settings, num_rows, where=where)
    micro_batch, accumulation = micro_batches(settings, world_size, where=where)
    if settings.deepspeed is not None and not Path(settings.deepspeed).is_file():
        raise ConfigError(f"{where}.deepspeed: {settings.deepspeed} does not exist; give a DeepSpeed JSON file")
    if "ddp_backend" in settings.extra and world_size == 1:
        raise ConfigError(f"{where}.extra.ddp_backend has no effect on one process; start several with `torchrun`")
    import torch
    from transformers import SchedulerType, TrainingArguments
    from transformers.training_args import OptimizerNames

    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    check_names(settings, where)
    for name, names in (("lr_scheduler_type", SchedulerType), ("optim", OptimizerNames)):
        if (found := getattr(settings, name)) not in (options := [str(item.value) for item in names]):
            raise ConfigError(f"{where}.{name} is {found!r}; {did_you_mean(found, options)}")
    if settings.lr_scheduler_type in _BY_EVALUATION:
        raise ConfigError(
            f"{where}.lr_scheduler_type {settings.lr_scheduler_type!r} goes by an evaluation while training, and there is "
            "none; choose another, e.g. linear or cosine"
        )
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": total,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "warmup_steps": settings.warmup_ratio,  # below 1 it is read as a share of all steps
        "save_strategy": "steps",
        "save_steps": settings.save_steps or total,
        "report_to": list(settings.report_to) or "none",
        "fsdp": settings.fsdp or None,
        "use_cpu": not torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,  # adapters use all of theirs; the search costs a pass over the graph
        "logging_nan_inf_filter": False,  # it would hide a diverged training behind the mean of earlier losses
    }
    if settings.gradient_checkpointing:
        name = "activation" if "activation_checkpointing" in known else "gradient"  # renamed in transformers 5
        fields |= {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
    same = {f.name for f in dataclasses.fields(settings)} - set(fields) - {"extra", "warmup_ratio"}
    same -= {"global_batch_size", "gradient_checkpointing"}
    fields |= {name: getattr(settings, name) for name in same} | dict(settings.extra)
    try:
        arguments = TrainingArguments(**fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {one_line(error, limit=400)}") from None
    if arguments.train_batch_size != micro_batch:
        found = arguments.n_gpu
        raise ConfigError(f"one process sees {found} GPUs; start it with `torchrun --nproc_per_node {found} ...`")
    return arguments


def check_training(settings: TrainingSettings, *, world_size: int, where: str = "training") -> None:
    """Raise ConfigError for settings that cannot work on this machine, whatever the model and the data.

    A tracker that is not installed, FSDP without several processes, an optimizer, schedule, loader or kernel that cannot
    be made, and all that `training_arguments` finds; a trainer would say so only once the model is loaded.
    """
    rows = settings.global_batch_size or _BATCH
    arguments = training_arguments(settings, Path("unused"), num_rows=rows, world_size=world_size, where=where)
    if settings.fsdp and world_size == 1:
        raise ConfigError(f"{where}.fsdp shards a model over several processes; start it with `torchrun` or unset it")
    from transformers.integrations import get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    for name in settings.report_to:
        if name not in (*installed, "all", "none"):
            known = f"installed: {', '.join(installed)}" if installed else "no tracker is installed"
            raise ConfigError(f"{where}.report_to: {name!r} is unknown or not installed; {known}")
    try_parts(arguments, settings, where)
