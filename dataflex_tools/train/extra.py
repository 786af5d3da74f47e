"""`training.extra`: each field of transformers.TrainingArguments is followed exactly, or refused with what to do instead.

A field is refused if a killed run could not go on exactly, if it needs an evaluation set (a training here has none), if it
would change the batches behind the plan's back, or if it has no effect. A field that is in no table, of a version of
transformers that came later, is refused too: nobody has looked whether it keeps the promises.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataflex_tools.core.errors import ConfigError, did_you_mean, one_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from dataflex_tools.train.settings import TrainingSettings

# what the plan, or another setting, decides
DECIDED = {
    "output_dir": "the run's folder",
    "gradient_accumulation_steps": "training.global_batch_size",
    "warmup_steps": "training.warmup_ratio",
    "activation_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing_kwargs": "training.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "training.gradient_checkpointing",
    "save_strategy": "training.save_steps",
    "logging_strategy": "training.logging_steps",
    "train_sampling_strategy": "the plan",
    "length_column_name": "the plan",
    "data_seed": "training.seed",
    "dataloader_drop_last": "the plan",
    "dataloader_in_order": "the plan",
    "ignore_data_skip": "the plan",
    "auto_find_batch_size": "training.per_device_train_batch_size",
    "remove_unused_columns": "the plan",
    "label_names": "the plan",
    "logging_nan_inf_filter": "the plan",
    "disable_tqdm": "the terminal",
    "local_rank": "the launcher (torchrun, accelerate)",
    "resume_from_checkpoint": "the run's folder, whose last checkpoint a run goes on from",
}

# followed; how a run is shared out, watched and kept, not what it computes: may differ when it is resumed
FREE = frozenset(
    {
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "accelerator_config",
        "torch_empty_cache_steps",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
        "logging_first_step",
        "log_on_each_node",
        "log_level",
        "log_level_replica",
        "include_num_input_tokens_seen",
        "skip_memory_metrics",
        "debug",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
    }
)

# followed; decides what a run computes: a resume must agree
DECISIVE = frozenset(
    {
        "lr_scheduler_kwargs",
        "optim_args",
        "optim_target_modules",
        "label_smoothing_factor",
        "neftune_noise_alpha",
        "fp16",
        "tf32",
        "use_cpu",
        "full_determinism",
        "use_liger_kernel",
        "liger_kernel_config",
    }
)

_EVALUATES = "a training has no evaluation set; run `flextools evaluate` on the finished run"
_UPLOADS = "nothing is uploaded, and a token would be kept in the manifest; upload the finished run's model folder"
_COMPILES = "a kernel is compiled for the shapes that came before, so a killed run would not go on exactly"
_NO_EFFECT = "it has no effect here"

REFUSED = {
    **dict.fromkeys(
        (
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "eval_on_start",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "include_for_metrics",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "do_eval",
        ),
        _EVALUATES,
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        _UPLOADS,
    ),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILES),
    "do_train": _NO_EFFECT,
    "do_predict": _NO_EFFECT,
    "use_cache": f"{_NO_EFFECT}: training keeps no cache of keys and values",
    "restore_callback_states_from_checkpoint": f"{_NO_EFFECT}: a resume restores all there is",
    "dataloader_persistent_workers": f"{_NO_EFFECT}: a whole training is one pass of the loader",
    "save_only_model": "a killed run would start optimizer and schedule anew; training.save_total_limit bounds "
    "the checkpoints, and those nobody asked for are removed at the end",
    "enable_jit_checkpoint": "it would save in the middle of a step; a kill at any moment is resumed from the "
    "last checkpoint of training.save_steps",
    "save_on_each_node": "ranks share the run's folder; give an --out that all nodes see",
    "average_tokens_across_devices": "tokens are averaged over all ranks, so that a run does not depend on their number",
    "parallelism_config": "ranks take different samples; shard a model with training.deepspeed or training.fsdp",
}

# settings without effect unless another one is set
_NEEDS_WORKERS = ("dataloader_prefetch_factor", "dataloader_multiprocessing_context")
_OF_TRACKIO = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
_WARMUP_RATIO = 0.03  # the default of TrainingSettings
# accelerate's settings that share nothing out; the others would change batches or the accumulation
_ACCELERATOR = ("non_blocking",)


def deciding(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `extra` that decides what a training computes."""
    return {name: value for name, value in extra.items() if name not in FREE}


def check_names(settings: "TrainingSettings", where: str) -> None:
    """Raise ConfigError for a field of `extra` that is unknown, refused, of the wrong type, or without effect."""
    from transformers import TrainingArguments

    kinds = {item.name: item.type for item in dataclasses.fields(TrainingArguments) if item.init}
    wanted: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,)}
    for name, value in settings.extra.items():
        at = f"{where}.extra.{name}"
        if name not in kinds:
            known = (FREE | DECISIVE | {item.name for item in dataclasses.fields(settings)}) & kinds.keys()
            raise ConfigError(f"{where}.extra has no setting {name!r}; {did_you_mean(name, known)}")
        if name in REFUSED:
            raise ConfigError(f"{at} is not followed: {REFUSED[name]}; leave it out")
        if name not in FREE | DECISIVE:
            raise ConfigError(
                f"{at} is new in transformers, and nobody has looked whether a killed run "
                "would still go on exactly; leave it out"
            )
        kind = kinds[name]
        if kind in wanted and not isinstance(value, wanted[kind]):
            raise ConfigError(f"{at} is {value!r}, wanted {getattr(kind, '__name__', kind)}")
    _check_effect(settings, where)


def _check_effect(settings: "TrainingSettings", where: str) -> None:
    extra = settings.extra
    lacking = dict.fromkeys(_NEEDS_WORKERS, "dataloader_num_workers above 0")
    lacking = {} if extra.get("dataloader_num_workers", 0) else lacking
    if not settings.report_to:
        lacking["run_name"] = "report_to, a tracker that shows it"
    if not {"trackio", "all"} & set(settings.report_to):
        lacking |= dict.fromkeys(_OF_TRACKIO, "report_to=trackio")
    if not extra.get("use_liger_kernel"):
        lacking["liger_kernel_config"] = "use_liger_kernel=true"
    for name, need in lacking.items():
        if name in extra:
            raise ConfigError(f"{where}.extra.{name} has no effect without {need}; set that too, or leave it out")
    given = extra.get("accelerator_config", {})
    if not isinstance(given, Mapping) or (others := sorted(set(given) - set(_ACCELERATOR))):
        found = f"sets {', '.join(others)}" if isinstance(given, Mapping) else f"is {given!r}"
        raise ConfigError(
            f"{where}.extra.accelerator_config {found}; wanted a mapping of "
            f"{', '.join(_ACCELERATOR)}: all else shares out the batches, as the plan does"
        )


def try_parts(arguments: "TrainingArguments", settings: "TrainingSettings", where: str) -> None:
    """Make optimizer class, schedule, loader and kernels once without a model. Raises ConfigError for what cannot be."""
    _try_optimizer(arguments, settings, where)
    _try_schedule(arguments, where)
    _try_loader(arguments, where)
    _try_kernels(arguments, where)


def _try_optimizer(arguments: "TrainingArguments", settings: "TrainingSettings", where: str) -> None:
    from transformers import Trainer

    has_targets = any(name in settings.optim for name in ("galore", "apollo"))
    if not has_targets and arguments.optim_target_modules is not None:
        raise ConfigError(f"{where}.extra.optim_target_modules has no effect on {settings.optim}; leave it out")
    if has_targets:
        return  # these look for their layers in the model
    try:
        found = Trainer.get_optimizer_cls_and_kwargs(arguments)
        plain = copy.copy(arguments)
        plain.optim_args = None
        if arguments.optim_args and found == Trainer.get_optimizer_cls_and_kwargs(plain):
            raise ConfigError(
                f"{where}.extra.optim_args {arguments.optim_args!r} has no effect on {settings.optim}; leave it out"
            )
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}.optim {settings.optim!r} cannot be used: {one_line(error)}") from None


def _try_schedule(arguments: "TrainingArguments", where: str) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    name = str(arguments.lr_scheduler_type.value)
    given = arguments.lr_scheduler_kwargs
    steps = arguments.max_steps
    if given and name.startswith("constant"):
        raise ConfigError(f"{where}.extra.lr_scheduler_kwargs has no effect on {name!r}; leave it out")
    if name == "constant" and arguments.warmup_steps not in (0, _WARMUP_RATIO):
        raise ConfigError(f"{where}.warmup_ratio has no effect on 'constant'; use constant_with_warmup")
    try:
        get_scheduler(
            name,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=given,
        )
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{where}.lr_scheduler_type {name!r} cannot be made with {where}.extra.lr_scheduler_kwargs "
            f"{given or 'unset'}: {one_line(error)}"
        ) from None


def _try_loader(arguments: "TrainingArguments", where: str) -> None:
    from torch.utils.data import DataLoader

    workers = arguments.dataloader_num_workers
    try:
        DataLoader(
            [0],
            num_workers=workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            multiprocessing_context=arguments.dataloader_multiprocessing_context,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{where}.extra: a loader with these dataloader_ settings cannot be made: {one_line(error)}"
        ) from None


def _try_kernels(arguments: "TrainingArguments", where: str) -> None:
    import torch

    has_device = torch.accelerator.is_available() and not arguments.use_cpu
    if arguments.fp16 and not has_device:
        raise ConfigError(f"{where}.extra.fp16 needs an accelerator, and this machine has none; use {where}.bf16")
    if arguments.use_liger_kernel:
        from transformers.utils import is_liger_kernel_available

        if not is_liger_kernel_available():
            raise ConfigError(
                f"{where}.extra.use_liger_kernel: liger-kernel is not installed; install it, or leave use_liger_kernel out"
            )
        if not has_device:
            raise ConfigError(f"{where}.extra.use_liger_kernel needs an accelerator, and this machine has none")
