"""Settings are checked before anything is loaded, and reach the Trainer under its own names."""

from pathlib import Path
from typing import Any

import pytest

from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.train.settings import TrainingSettings, micro_batches, num_steps, training_arguments


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
    assert num_steps(TrainingSettings(), 32) == 1
    with pytest.raises(ConfigError, match=r"31 selected samples do not fill one global batch of 32.*at most 31"):
        num_steps(TrainingSettings(), 31)


def test_accumulation_keeps_the_global_batch() -> None:
    assert micro_batches(TrainingSettings(), 1) == (8, 4)
    assert micro_batches(TrainingSettings(), 4) == (8, 1)
    assert micro_batches(TrainingSettings(), 8) == (4, 1)
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
        ({"eval_strategy": "sometimes"}, "sometimes"),
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
