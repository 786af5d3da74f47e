"""A warm-up leaves the adapter and Adam state of each epoch's end, the same bytes however often it is killed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import get_scheduler

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.models.settings import LoraSettings, ModelSettings
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.score.gradient import load_moments
from dataflex_tools.train import warmup as module
from dataflex_tools.train.settings import TrainingSettings, WarmupSettings
from dataflex_tools.train.warmup import epoch_ends, mean_rates, scheduled_rates, warm_up, warm_up_model, warmup_rows
from tests.helpers import vector
from tests.train.conftest import FakeTokens, make_model, make_settings, make_tokens
from tests.train.test_run import KillBefore, Killed

ROWS = np.arange(1, 12)  # 11 rows, batches of 4: epochs end at steps 3, 6 and 9


def settings(**changes: Any) -> WarmupSettings:
    return WarmupSettings(training=make_settings(**({"num_train_epochs": 3} | changes)))


def warm(folder: Path, model: Callable[[], Any] = make_model) -> list[tuple[Path, float]]:
    return warm_up_model(model, make_tokens(30), ROWS, settings(), folder, made_from={"model": "tiny"})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    warm(folder)
    return folder


def test_every_epoch_leaves_an_adapter_and_its_moments(whole: Path) -> None:
    files = ["adapter_config.json", "adapter_model.safetensors", "moments.safetensors"]
    wanted = {f"checkpoint-{i}/{name}" for i in (1, 2, 3) for name in files}
    assert set(contents(whole)) == wanted | {"ledger.parquet", "warmup.json"}


@pytest.mark.parametrize("step", [2, 4, 6, 7, 9])
def test_kill_and_resume_leaves_the_same_bytes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    build = module.build_trainer

    def build_killed(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        trainer.add_callback(KillBefore(step))
        return trainer

    monkeypatch.setattr(module, "build_trainer", build_killed)
    with pytest.raises(Killed):
        warm(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "warmup.json").exists()
    warm(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_kill_between_adapter_and_checkpoint_leaves_the_same_bytes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = module.save_model

    def save_then_die(trainer: Any, folder: Path, **kwargs: Any) -> None:
        save(trainer, folder, **kwargs)
        if folder.name == "checkpoint-2":
            raise Killed

    monkeypatch.setattr(module, "save_model", save_then_die)
    with pytest.raises(Killed):
        warm(tmp_path)
    monkeypatch.undo()
    warm(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_finished_warm_up_makes_no_model(whole: Path) -> None:
    def never() -> Any:
        raise AssertionError("the model was made")

    first, again = warm(whole, never), warm(whole, never)
    assert first == again
    assert [folder.name for folder, _ in first] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def adam_by_hand(model: Any, rows_by_step: np.ndarray, rates: list[float]) -> dict[str, torch.Tensor]:
    """Clipped gradient of the token mean over each step's rows, then m and v as in Kingma and Ba's algorithm 1."""
    tokens, state = make_tokens(30), {}
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for step, (rows, rate) in enumerate(zip(rows_by_step, rates, strict=True), start=1):
        total, count = torch.zeros(()), 0
        for row in rows:
            ids_T, labels_T = torch.tensor(tokens.input_ids(row)).long(), torch.tensor(tokens.labels(row))
            logits_TV = model(input_ids=ids_T[None]).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits_TV, labels_T[1:], reduction="sum")
            count += int((labels_T[1:] != -100).sum())
        grads = dict(zip(weights, torch.autograd.grad(total / count, list(weights.values())), strict=True))
        scale = min(1.0, 1.0 / (float(torch.sqrt(sum((g**2).sum() for g in grads.values()))) + 1e-6))
        for name, weight in weights.items():
            grad = grads[name] * scale
            m = 0.9 * state.get(f"exp_avg.{name}", 0.0) + 0.1 * grad
            v = 0.999 * state.get(f"exp_avg_sq.{name}", 0.0) + 0.001 * grad**2
            state |= {f"exp_avg.{name}": m, f"exp_avg_sq.{name}": v}
            with torch.no_grad():
                weight -= rate * (m / (1 - 0.9**step)) / (torch.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return state


def test_moments_are_those_of_adam_by_hand(tmp_path: Path) -> None:
    warm(tmp_path, lambda: make_model(dropout=0.0))
    rows_by_step = PlanSampler(ROWS, seed=0).rows_at(0, 24).reshape(6, 4)
    rates = [0.0] + [1e-2 * (1 - t / 8) for t in range(5)]  # before each step: one of warm-up, then linear over 8
    expected = adam_by_hand(make_model(dropout=0.0).eval(), rows_by_step, rates)
    found = load_moments(tmp_path / "checkpoint-2" / "moments.safetensors")
    for name in found.exp_avg:
        # float32 through 6 optimizer steps, relative to the largest entry
        for value, key in ((found.exp_avg[name], "exp_avg"), (found.exp_avg_sq[name], "exp_avg_sq")):
            other = expected[f"{key}.{name}"]
            assert (value - other).abs().max() <= 1e-3 * other.abs().max()


def test_moments_name_every_trainable_parameter_and_the_step(whole: Path) -> None:
    names = {name: p.shape for name, p in make_model().named_parameters() if p.requires_grad}
    for index, step in ((1, 3), (2, 6), (3, 9)):
        moments = load_moments(whole / f"checkpoint-{index}" / "moments.safetensors")
        assert moments.exp_avg.keys() == moments.exp_avg_sq.keys() == names.keys()
        assert {name: value.shape for name, value in moments.exp_avg.items()} == names
        assert (moments.step, moments.beta1, moments.beta2, moments.eps) == (step, 0.9, 0.999, 1e-8)
        assert all(value.dtype == torch.float32 for value in moments.exp_avg.values())


def test_adapter_loads_and_moves_from_epoch_to_epoch(whole: Path) -> None:
    seen = []
    for index in (1, 2, 3):
        model = PeftModel.from_pretrained(make_model(lora=False), str(whole / f"checkpoint-{index}"))
        seen.append(torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora" in name]))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_metadata_is_in_one_order(whole: Path) -> None:
    path = whole / "checkpoint-1" / "moments.safetensors"
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"step", "beta1", "beta2", "eps"}
    raw = path.read_bytes()[8:200]
    places = [raw.index(f'"{name}"'.encode()) for name in ("beta1", "beta2", "eps", "step")]
    assert places == sorted(places)


def test_mean_rates_are_the_given_ones() -> None:
    given = vector("less_checkpoint_weights")
    inputs, expected = given["inputs"], given["expected"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=inputs["peak_lr"])
    scheduler = get_scheduler("linear", optimizer, inputs["warmup_steps"], inputs["total_steps"])
    rates = []
    for _ in range(inputs["total_steps"]):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    found = mean_rates(np.array(rates), inputs["epoch_ends"])
    np.testing.assert_allclose(found, expected["mean_lr"], atol=given["tolerance"])
    np.testing.assert_allclose(np.array(found) / sum(found), expected["weights"], atol=given["tolerance"])


def test_mean_rates_of_a_warm_up_follow_its_schedule(whole: Path) -> None:
    taken = 1e-2 * np.array([0, *(1 - t / 8 for t in range(8))])  # 9 steps, 1 of them warm-up
    np.testing.assert_allclose([rate for _, rate in warm(whole)], taken.reshape(3, 3).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
def test_scheduled_rates_are_those_the_steps_are_taken_with(tmp_path: Path, name: str) -> None:
    chosen = settings(num_train_epochs=3, lr_scheduler_type=name)
    done = warm_up_model(make_model, make_tokens(30), ROWS, chosen, tmp_path / "w", made_from={})
    rate_S = scheduled_rates(chosen.training, len(ROWS))
    ends = epoch_ends(chosen.training, len(ROWS))
    np.testing.assert_allclose([rate for _, rate in done], mean_rates(rate_S, ends), rtol=1e-12)


def test_the_last_step_of_a_linear_schedule_weighs_something() -> None:
    chosen = settings(num_train_epochs=4, global_batch_size=4, learning_rate=2e-5, warmup_ratio=0.0).training
    np.testing.assert_allclose(scheduled_rates(chosen, 4), [2e-5, 1.5e-5, 1e-5, 5e-6])


def test_epochs_end_at_the_first_step_that_has_seen_them_whole() -> None:
    # 13,500 rows are the 5 % of LESS's pool; at batch 128 an epoch has 105.47 steps
    training = TrainingSettings(num_train_epochs=4, global_batch_size=128, per_device_train_batch_size=128)
    assert epoch_ends(training, 13500) == [106, 211, 317, 422]
    assert epoch_ends(TrainingSettings(num_train_epochs=2, global_batch_size=4), 4) == [1, 2]
    with pytest.raises(ConfigError, match="do not fill one global batch"):
        epoch_ends(TrainingSettings(global_batch_size=5), 4)


def test_warm_up_rows_do_not_depend_on_the_order_of_the_pool(tokens: FakeTokens) -> None:
    rows = np.arange(30)
    chosen = warmup_rows(tokens.ids_N16, rows, fraction=0.3, seed=0)
    order = np.random.default_rng(1).permutation(30)
    again = warmup_rows(tokens.ids_N16[order], rows, fraction=0.3, seed=0)
    assert len(chosen) == 9
    assert sorted(order[again]) == chosen.tolist()
    assert warmup_rows(tokens.ids_N16, rows, fraction=0.3, seed=1).tolist() != chosen.tolist()
    assert set(warmup_rows(tokens.ids_N16, rows[::2], fraction=1.0, seed=0)) == set(rows[::2])


@pytest.mark.parametrize("wrong", [{"optim": "sgd"}, {"max_steps": 5}, {"num_train_epochs": 1.5}])
def test_training_settings_that_cannot_warm_up_are_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"warmup\.training"):
        settings(**wrong)


def test_warm_up_from_a_model_folder(tmp_path: Path) -> None:
    make_model(lora=False).save_pretrained(tmp_path / "model")
    lora = LoraSettings(r=2, alpha=4, target_modules=("q_proj", "v_proj"))
    model = ModelSettings(path=str(tmp_path / "model"), dtype="float32", lora=lora)
    checkpoints = warm_up(model, make_tokens(30), ROWS, settings(num_train_epochs=1), tmp_path / "warmup")
    assert len(checkpoints) == 1
    weights = load_file(checkpoints[0][0] / "adapter_model.safetensors")
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)


_ZERO = """
import os, sys
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # nothing to compile
from pathlib import Path
import numpy as np
import torch.distributed
from dataflex_tools.train.settings import WarmupSettings
from dataflex_tools.train.warmup import warm_up_model
from tests.train.conftest import make_model, make_settings, make_tokens
training = make_settings(num_train_epochs=2, per_device_train_batch_size=1, deepspeed=sys.argv[2],
                         extra={"use_cpu": True, "ddp_backend": "gloo"})
warm_up_model(lambda: make_model(dropout=0.0), make_tokens(30), np.arange(1, 12), WarmupSettings(training=training),
              Path(sys.argv[1]), made_from={})
torch.distributed.destroy_process_group()
os._exit(0)
"""


@pytest.mark.e2e
def test_zero_two_on_two_ranks_leaves_the_moments_of_one_process(tmp_path: Path) -> None:
    warm_up_model(lambda: make_model(dropout=0.0), make_tokens(30), ROWS, settings(num_train_epochs=2), tmp_path / "one",
                  made_from={})  # fmt: skip
    sizes = ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping"]
    zero = {**dict.fromkeys(sizes, "auto"), "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    (tmp_path / "ranks.py").write_text(_ZERO)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "ranks.py"),
         str(tmp_path / "two"), str(tmp_path / "zero.json")],
        cwd=root, capture_output=True, check=False, text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("moments", "adapter_model"):
        found = load_file(tmp_path / "two" / "checkpoint-2" / f"{name}.safetensors")
        expected = load_file(tmp_path / "one" / "checkpoint-2" / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # float32 sums over ranks in another order; 4e-7 measured
            assert np.abs(found[key] - value).max() <= 1e-5 * np.abs(value).max()
