"""Settings are checked before anything is loaded, and reach the Trainer under its own names."""

from pathlib import Path
from typing import Any

import pytest

from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.train import extra
from dataflex_tools.train.settings import (
    TrainingSettings,
    WarmupSettings,
    check_training,
    fitted,
    fitted_warmup,
    micro_batches,
    num_steps,
    training_arguments,
)


@pytest.mark.parametrize(
    ("num_rows", "epochs", "batch", "steps"),
    [(32, 1, 32, 1), (33, 1, 32, 2), (63, 1, 32, 2), (64, 1, 32, 2), (65, 1, 32, 3),
     (100, 0.5, 10, 5), (100, 0.51, 10, 6), (10, 0.01, 10, 1)],
)  # fmt: skip
def test_steps_cover_the_epochs(num_rows: int, epochs: float, batch: int, steps: int) -> None:
    assert num_steps(TrainingSettings(num_train_epochs=epochs, global_batch_size=batch), num_rows) == steps


def test_max_steps_replaces_epochs() -> None:
    assert num_steps(TrainingSettings(max_steps=7, num_train_epochs=3), 1000) == 7


def test_fewer_rows_than_a_batch_is_an_error() -> None:
    assert num_steps(TrainingSettings(global_batch_size=32), 32) == 1
    with pytest.raises(ConfigError, match=r"31 selected samples do not fill one global batch of 32.*at most 31"):
        num_steps(TrainingSettings(global_batch_size=32), 31)


def test_accumulation_keeps_the_global_batch() -> None:
    assert micro_batches(TrainingSettings(global_batch_size=32), 1) == (8, 4)
    assert micro_batches(TrainingSettings(global_batch_size=32), 4) == (8, 1)
    assert micro_batches(TrainingSettings(global_batch_size=32), 8) == (4, 1)
    assert micro_batches(TrainingSettings(global_batch_size=12), 2) == (6, 1)
    with pytest.raises(ConfigError, match="32 is not a multiple of 3 ranks; use 30 or 33"):
        micro_batches(TrainingSettings(), 3)


def test_settings_reach_the_trainer_under_their_names(tmp_path: Path) -> None:
    settings = TrainingSettings(learning_rate=3e-4, optim="sgd", weight_decay=0.1, seed=5, gradient_checkpointing=True,
                                extra={"use_cpu": True, "label_smoothing_factor": 0.2})  # fmt: skip
    arguments = training_arguments(settings, tmp_path, num_rows=320, world_size=1)
    assert (arguments.learning_rate, arguments.optim, arguments.weight_decay, arguments.seed) == (3e-4, "sgd", 0.1, 5)
    assert (arguments.max_steps, arguments.gradient_accumulation_steps) == (10, 4)
    assert arguments.label_smoothing_factor == 0.2
    assert arguments.get_warmup_steps(420) == 13
    assert arguments.save_steps == 10
    assert arguments.report_to == []
    assert arguments.activation_checkpointing


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lerning_rate": 1.0}, "no setting 'lerning_rate'; did you mean 'learning_rate'"),
        ({"neftune_noise": 1.0}, "did you mean 'neftune_noise_alpha'"),
        ({"learning_rate": 1.0}, "cannot set 'learning_rate': training.learning_rate decides it"),
        ({"output_dir": "x"}, "cannot set 'output_dir': the run's folder decides it"),
        ({"gradient_accumulation_steps": 2}, "training.global_batch_size decides it"),
        ({"eval_strategy": "steps"}, "eval_strategy is not followed.*flextools evaluate"),
    ],
)
def test_a_wrong_extra_setting_is_an_error(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        training_arguments(TrainingSettings(extra=extra), tmp_path, num_rows=320, world_size=1)


@pytest.mark.parametrize(
    "wrong",
    [{"max_steps": 0}, {"num_train_epochs": 0}, {"learning_rate": 0}, {"warmup_ratio": 1.0}, {"global_batch_size": 0},
     {"save_steps": -1}, {"deepspeed": "a.json", "fsdp": True}, {"fsdp_config": "a.json"}],
)  # fmt: skip
def test_a_value_out_of_range_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="training"):
        TrainingSettings(**wrong)


def test_a_missing_deepspeed_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json does not exist"):
        training_arguments(TrainingSettings(deepspeed="nowhere.json"), tmp_path, num_rows=320, world_size=1)


def test_settings_survive_json() -> None:
    settings = TrainingSettings(report_to=("tensorboard",), extra={"use_cpu": True})
    assert from_mapping(TrainingSettings, to_mapping(settings), where="training") == settings


def check(**changes: Any) -> None:
    check_training(TrainingSettings(**changes), world_size=1)


def test_every_field_of_the_installed_version_is_followed_or_refused() -> None:
    import dataclasses

    from transformers import TrainingArguments

    own = {item.name for item in dataclasses.fields(TrainingSettings)}
    tables = [own, extra.DECIDED.keys(), extra.REFUSED.keys(), extra.FREE, extra.DECISIVE]
    known = set().union(*tables)
    assert {item.name for item in dataclasses.fields(TrainingArguments)} - known == set()
    assert len(known) == sum(map(len, tables)), "a field is in two tables"


@pytest.mark.parametrize("name", sorted(extra.REFUSED))
def test_a_field_that_is_not_followed_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"training.extra.{name} is not followed: .*; leave it out"):
        check(extra={name: True})


def test_a_field_that_nobody_has_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "FREE", extra.FREE - {"ddp_timeout"})
    with pytest.raises(ConfigError, match="ddp_timeout is new in transformers"):
        check(extra={"ddp_timeout": 60})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": {"dataloader_prefetch_factor": 2}}, "no effect without dataloader_num_workers above 0"),
        ({"extra": {"dataloader_multiprocessing_context": "fork"}}, "no effect without dataloader_num_workers"),
        (
            {"extra": {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "knife"}},
            "loader with these dataloader_ settings cannot be made",
        ),
        ({"extra": {"run_name": "a"}}, "no effect without report_to"),
        ({"extra": {"project": "a"}}, "no effect without report_to=trackio"),
        ({"extra": {"liger_kernel_config": {"rope": True}}}, "no effect without use_liger_kernel=true"),
        ({"extra": {"optim_target_modules": ["a"]}}, "no effect on adamw_torch"),
        ({"extra": {"optim_args": "scale=2"}}, "optim_args 'scale=2' has no effect on adamw_torch"),
        ({"extra": {"lr_scheduler_kwargs": {"num_cycles": 2}}}, "'linear' cannot be made with"),
        (
            {"lr_scheduler_type": "constant", "extra": {"lr_scheduler_kwargs": {"num_cycles": 2}}},
            "lr_scheduler_kwargs has no effect on 'constant'",
        ),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, "warmup_ratio has no effect on 'constant'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr.* cannot be made"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "goes by an evaluation"),
        ({"extra": {"accelerator_config": {"split_batches": True}}}, "sets split_batches"),
        ({"extra": {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}}}}, "wanted a mapping"),
        ({"extra": {"fp16": True, "use_cpu": True}}, "fp16 needs an accelerator"),
        ({"extra": {"debug": "everything"}}, "everything"),
    ],
)
def test_what_has_no_effect_or_cannot_be_made_is_found_without_a_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3}},
        {"lr_scheduler_type": "cosine", "extra": {"lr_scheduler_kwargs": {"num_cycles": 2}}},
        {"lr_scheduler_type": "cosine_with_min_lr", "extra": {"lr_scheduler_kwargs": {"min_lr": 1e-6}}},
        {"optim": "adafactor", "extra": {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0}},
        {"extra": {"accelerator_config": {"non_blocking": True}, "ddp_timeout": 60}},
    ],
)
def test_what_works_is_let_through(changes: dict[str, Any]) -> None:
    check(**changes)


def test_trackers_may_be_one_text() -> None:
    assert TrainingSettings(report_to="wandb, tensorboard").report_to == ("wandb", "tensorboard")
    assert TrainingSettings(report_to="wandb") == TrainingSettings(report_to=("wandb",))
    assert from_mapping(TrainingSettings, {"report_to": "wandb"}, where="training").report_to == ("wandb",)
    with pytest.raises(ConfigError, match="report_to is 3, wanted a list of values"):
        from_mapping(TrainingSettings, {"report_to": 3}, where="training")


@pytest.mark.parametrize(
    ("num_rows", "fraction", "batch"),
    [(13500 * 20, 0.05, 32), (640, 0.05, 32), (639, 0.2, 8), (240, 0.3, 8), (241, 0.3, 8), (64, 1.0, 8), (20, 1.0, 2)],
)
def test_a_small_pool_warms_up_on_more_of_it_in_smaller_batches(num_rows: int, fraction: float, batch: int) -> None:
    found = fitted_warmup(WarmupSettings(), num_rows)
    assert (found.fraction, found.training.global_batch_size) == (fraction, batch)
    assert num_steps(found.training, int(fraction * num_rows)) >= 4


def test_what_is_given_of_a_small_pool_s_warm_up_is_kept() -> None:
    given = WarmupSettings(fraction=0.1, training=TrainingSettings(num_train_epochs=4.0))
    assert fitted_warmup(given, 100).fraction == 0.1
    assert fitted_warmup(given, 100).training.global_batch_size == 1
    given = WarmupSettings(training=TrainingSettings(num_train_epochs=4.0, global_batch_size=16))
    assert fitted_warmup(given, 100).training.global_batch_size == 16
    given = WarmupSettings(fraction=0.1, training=TrainingSettings(num_train_epochs=4.0, global_batch_size=32))
    assert fitted_warmup(given, 100) == given


@pytest.mark.parametrize(("num_rows", "batch"), [(10**6, 32), (32, 32), (31, 4), (12, 2), (3, 1), (1, 1)])
def test_few_rows_are_trained_on_in_smaller_batches_unless_one_is_given(num_rows: int, batch: int) -> None:
    assert fitted(TrainingSettings(), num_rows).global_batch_size == batch
    assert fitted(TrainingSettings(global_batch_size=5), num_rows).global_batch_size == 5
