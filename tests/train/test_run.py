"""A training that is killed and started again ends as one that was not, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from transformers import TrainerCallback

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.train.run import FitOptions, TrainingRun, run_training
from tests.train.conftest import FakeTokens, make_model, make_settings, make_tokens

ROWS = np.arange(2, 24, 2)  # 11 rows: epochs end inside batches


class Killed(BaseException):
    """Nothing but the test catches it, as nothing can catch SIGKILL."""


class KillBefore(TrainerCallback):
    def __init__(self, step: int, *, for_real: bool = False) -> None:
        self.step, self.for_real = step, for_real

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            if self.for_real:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed


def train(folder: Path, *, callbacks: tuple[TrainerCallback, ...] = (), lora: bool = True, **changes: Any) -> TrainingRun:
    settings = make_settings(**({"num_train_epochs": 4, "save_steps": 4} | changes))
    options = FitOptions(callbacks=callbacks)
    tokens, sampler = make_tokens(30), PlanSampler(ROWS, seed=1)
    return run_training(lambda: make_model(lora=lora), tokens, sampler, settings, folder, options=options)


def assert_same_run(run: TrainingRun, other: TrainingRun) -> None:
    names = [path.name for path in run.model.glob("*.safetensors")]
    assert names
    for name in names:
        weights, expected = load_file(run.model / name), load_file(other.model / name)
        assert weights.keys() == expected.keys()
        for key in weights:
            np.testing.assert_array_equal(weights[key], expected[key])
    assert pq.read_table(run.ledger).equals(pq.read_table(other.ledger))
    assert pq.read_table(run.log).equals(pq.read_table(other.log))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return train(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("step", [1, 4, 5, 7, 11])
def test_kill_and_resume_is_the_uninterrupted_run(whole: TrainingRun, tmp_path: Path, step: int) -> None:
    with pytest.raises(Killed):
        train(tmp_path, callbacks=(KillBefore(step),))
    assert_same_run(train(tmp_path), whole)


def test_two_kills_and_full_weights(tmp_path: Path) -> None:
    for step in (6, 10):
        with pytest.raises(Killed):
            train(tmp_path / "killed", callbacks=(KillBefore(step),), lora=False)
    assert_same_run(train(tmp_path / "killed", lora=False), train(tmp_path / "whole", lora=False))


@pytest.mark.e2e
def test_kill_minus_nine_and_resume_is_the_uninterrupted_run(whole: TrainingRun, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.train.test_run import KillBefore, train; "
        f"train(Path({str(tmp_path)!r}), callbacks=(KillBefore(7, for_real=True),))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "ledger.parquet").exists()
    assert_same_run(train(tmp_path), whole)


def test_a_half_written_checkpoint_is_passed_over(whole: TrainingRun, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, callbacks=(KillBefore(11),))
    state = tmp_path / "checkpoints" / "checkpoint-8" / "trainer_state.json"
    state.write_text(state.read_text()[:-20])
    assert_same_run(train(tmp_path), whole)


def test_starting_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = train(tmp_path)
    before = {path: path.read_bytes() for path in [first.ledger, first.log, *first.model.glob("*.safetensors")]}
    train(tmp_path)
    assert before == {path: path.read_bytes() for path in before}


def test_ledger_is_the_plan(whole: TrainingRun) -> None:
    tokens, ledger = make_tokens(30), pq.read_table(whole.ledger)
    row_L = ledger.column("row").to_numpy()
    np.testing.assert_array_equal(row_L, PlanSampler(ROWS, seed=1).rows_at(0, 11 * 4))
    np.testing.assert_array_equal(ledger.column("step").to_numpy(), np.repeat(np.arange(1, 12), 4))
    assert ledger.column("sample_id").to_pylist() == [tokens.ids_N16[row].tobytes() for row in row_L]
    assert ledger.column("domain").to_pylist() == [tokens.group_names[tokens.group_N[row]] for row in row_L]
    assert set(ledger.column("weight").to_pylist()) == {1.0}


def test_log_holds_the_rate_and_loss_of_logged_and_saved_steps(whole: TrainingRun) -> None:
    log = pq.read_table(whole.log).to_pydict()
    assert log["step"] == [3, 4, 6, 8, 9, 11]
    assert np.isfinite(log["loss"]).all()
    assert log["learning_rate"] == sorted(log["learning_rate"], reverse=True)


def test_micro_batches_share_out_a_step_without_changing_it(whole: TrainingRun, tmp_path: Path) -> None:
    # dropout draws differ with the micro-batch, so the comparison is made without it: full weights have none
    runs = [train(tmp_path / str(b), lora=False, per_device_train_batch_size=b) for b in (1, 2, 4)]
    weights = [load_file(run.model / "model.safetensors") for run in runs]
    for other in weights[1:]:
        for key, value in weights[0].items():
            # float32 sums in another order, then 11 Adam steps of 1e-2 on gradients that may be near zero
            np.testing.assert_allclose(other[key], value, atol=2e-4)
    assert pq.read_table(runs[0].ledger).equals(pq.read_table(runs[2].ledger))


def test_model_folder_holds_no_pickle(whole: TrainingRun) -> None:
    names = {path.name for path in whole.model.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]


def test_a_folder_of_another_run_is_an_error_before_the_model_is_made(whole: TrainingRun) -> None:
    def never() -> Any:
        raise AssertionError("the model was made")

    settings = make_settings(num_train_epochs=4, save_steps=4, learning_rate=0.5)
    arguments = (never, make_tokens(30), PlanSampler(ROWS, seed=1), settings, whole.model.parent)
    with pytest.raises(ConfigError, match=r"training.learning_rate: 0.01, now 0.5.*choose another --out"):
        run_training(*arguments)
    with pytest.raises(ConfigError, match="selected rows"):
        run_training(never, make_tokens(30), PlanSampler(ROWS, seed=2), make_settings(), whole.model.parent)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, tokens: FakeTokens) -> None:
    def broken() -> Any:
        model = make_model(lora=False)
        model.lm_head.weight.data[:] = float("nan")
        return model

    with pytest.raises(DataError, match="the training loss is nan at step 3"):
        run_training(broken, tokens, PlanSampler(ROWS), make_settings(), tmp_path)


def test_run_json_is_readable_and_complete(whole: TrainingRun) -> None:
    recorded = json.loads((whole.model.parent / "run.json").read_text())
    assert recorded["training.learning_rate"] == 1e-2
    assert recorded["selected rows"] == PlanSampler(ROWS, seed=1).digest


def test_rows_outside_the_data_are_an_error(tmp_path: Path, full_model: Callable[[], Any], tokens: FakeTokens) -> None:
    with pytest.raises(ConfigError, match="the plan selects row 99 of 30"):
        run_training(full_model, tokens, PlanSampler(np.arange(90, 100)), make_settings(), tmp_path)


def test_deepspeeds_settings_do_not_outlive_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    from dataflex_tools.train import run

    held = []

    def trainer_with_zero3(*args: Any, **kwargs: Any) -> Any:
        held.append(HfDeepSpeedConfig({"zero_optimization": {"stage": 3}}))  # transformers keeps it, as its Trainer does
        assert is_deepspeed_zero3_enabled()
        raise Killed

    monkeypatch.setattr(run, "build_trainer", trainer_with_zero3)
    with pytest.raises(Killed):
        train(tmp_path)
    assert not is_deepspeed_zero3_enabled()


def test_a_resume_may_load_data_in_another_way_and_ends_the_same(whole: TrainingRun, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, callbacks=(KillBefore(5),))
    extra = {"use_cpu": True, "dataloader_num_workers": 1, "logging_first_step": False}
    assert_same_run(train(tmp_path, extra=extra), whole)


def test_a_run_whose_way_of_loading_was_recorded_as_a_fact_goes_on(whole: TrainingRun, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, callbacks=(KillBefore(5),))
    path = tmp_path / "run.json"
    before = json.loads(path.read_text())
    before["training.extra"]["dataloader_num_workers"] = 2  # as an earlier version did
    path.write_text(json.dumps(before))
    assert_same_run(train(tmp_path), whole)


def test_another_setting_of_extra_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, callbacks=(KillBefore(5),))
    with pytest.raises(ConfigError, match=r"training\.extra\.label_smoothing_factor: not set, now 0\.1"):
        train(tmp_path, extra={"use_cpu": True, "label_smoothing_factor": 0.1})
