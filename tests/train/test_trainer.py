"""The mixin follows the plan in front of any Trainer, from public extension points only."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.train.data import PadCollator, TokensDataset
from dataflex_tools.train.run import run_training
from dataflex_tools.train.trainer import PlanTrainer, PlanTrainerMixin
from tests.train.conftest import FakeTokens, make_model, make_settings, make_tokens


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    values = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "use_cpu": True, "report_to": "none",
              "save_strategy": "no", "disable_tqdm": True}  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **(values | changes))


class Watcher(TrainerCallback):
    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epochs.append(state.epoch)


class Doubled(Trainer):
    """Somebody's Trainer with its own loss."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)


class PlanDoubled(PlanTrainerMixin, Doubled):
    pass


def consumed(trainer: PlanTrainerMixin) -> list[int]:
    return [int(row) for block in trainer.ledger.lines() for row in block["row"]]


def test_mixin_follows_the_plan_in_front_of_another_trainer(tmp_path: Path, tokens: FakeTokens) -> None:
    items = [TokensDataset(tokens)[row] for row in range(30)]
    data = Dataset.from_list([{name: array.tolist() for name, array in item.items()} | {"note": "x"} for item in items])
    sampler = PlanSampler(np.arange(3, 20), seed=4)
    trainer = PlanDoubled(make_model(), arguments(tmp_path, num_train_epochs=2), PadCollator(), data, sampler=sampler)
    trainer.train()
    assert trainer.state.global_step == 9  # 2 * 17 / 4, rounded up
    assert consumed(trainer) == sampler.rows_at(0, 36).tolist()


def test_epoch_is_that_of_the_data_and_workers_change_nothing(tmp_path: Path, tokens: FakeTokens) -> None:
    sampler, watcher = PlanSampler(np.arange(10), seed=4), Watcher()
    args = arguments(tmp_path, max_steps=5, dataloader_num_workers=2)
    data = TokensDataset(tokens)
    trainer = PlanTrainer(make_model(), args, PadCollator(), data, sampler=sampler)
    trainer.add_callback(watcher)
    trainer.train()
    assert watcher.epochs == [0.4, 0.8, 1.2, 1.6, 2.0]
    assert consumed(trainer) == sampler.rows_at(0, 20).tolist()


def test_a_seek_reads_nothing_before_it(tmp_path: Path, tokens: FakeTokens) -> None:
    read: list[int] = []

    class Noted(TokensDataset):
        def __getitem__(self, row: int) -> dict[str, np.ndarray]:
            read.append(row)
            return super().__getitem__(row)

    sampler = PlanSampler(np.arange(30), seed=0)
    args = arguments(tmp_path, max_steps=12, save_strategy="steps", save_steps=10)
    PlanTrainer(make_model(), args, PadCollator(), Noted(tokens), sampler=sampler).train()
    read.clear()
    again = PlanTrainer(make_model(), args, PadCollator(), Noted(tokens), sampler=sampler)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert read == sampler.rows_at(40, 48).tolist()
    assert consumed(again) == sampler.rows_at(0, 48).tolist()
    assert again.state.epoch == 48 / 30


def test_training_twice_starts_the_plan_again(tmp_path: Path, tokens: FakeTokens) -> None:
    sampler = PlanSampler(np.arange(30), seed=0)
    args = arguments(tmp_path, max_steps=2)
    trainer = PlanTrainer(make_model(), args, PadCollator(), TokensDataset(tokens), sampler=sampler)
    trainer.train()
    trainer.train()
    assert consumed(trainer) == sampler.rows_at(0, 8).tolist()


@pytest.mark.parametrize(
    "wrong", [{"auto_find_batch_size": True}, {"train_sampling_strategy": "sequential"},
              {"accelerator_config": {"split_batches": True}}],
)  # fmt: skip
def test_arguments_that_break_the_plan_are_an_error(tmp_path: Path, tokens: FakeTokens, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="breaks? the plan"):
        PlanTrainer(make_model(), arguments(tmp_path, **wrong), PadCollator(), TokensDataset(tokens),
                    sampler=PlanSampler(np.arange(9)))  # fmt: skip


def test_a_dataset_without_rows_is_an_error(tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            yield from ()

    args = arguments(tmp_path, max_steps=1)
    with pytest.raises(ConfigError, match="train_dataset is Stream and has none"):
        PlanTrainer(make_model(), args, PadCollator(), Stream(), sampler=PlanSampler(np.arange(9)))


_RANKS = """
import os, sys
from pathlib import Path
import numpy as np
import torch.distributed
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.train.run import run_training
from tests.train.conftest import make_model, make_settings, make_tokens
extra = {"use_cpu": True, "ddp_backend": "gloo"}
for steps in (2, 5):  # the second start resumes the first
    settings = make_settings(max_steps=5, save_steps=2, per_device_train_batch_size=1, extra=extra)
    if steps == 2:
        from transformers import TrainerCallback
        from dataflex_tools.train.run import FitOptions
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 3:
                    raise KeyboardInterrupt
        options = FitOptions(callbacks=[Stop()])
    else:
        options = None
    try:
        run_training(lambda: make_model(lora=False), make_tokens(30), PlanSampler(np.arange(13), seed=1), settings,
                     Path(sys.argv[1]), options=options)
    except KeyboardInterrupt:
        pass
torch.distributed.destroy_process_group()
os._exit(0)
"""


@pytest.mark.e2e
def test_two_ranks_consume_and_learn_what_one_does(tmp_path: Path) -> None:
    settings = make_settings(max_steps=5, save_steps=2, per_device_train_batch_size=1)
    one = run_training(lambda: make_model(lora=False), make_tokens(30), PlanSampler(np.arange(13), seed=1), settings,
                       tmp_path / "one")  # fmt: skip
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    (tmp_path / "ranks.py").write_text(_RANKS)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launched, str(tmp_path / "ranks.py"), str(tmp_path / "two")],
        cwd=root, env=environment, capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two"
    assert pq.read_table(two / "ledger.parquet").equals(pq.read_table(one.ledger))
    weights, expected = load_file(two / "model" / "model.safetensors"), load_file(one.model / "model.safetensors")
    for key, value in expected.items():
        # float32 sums over ranks in another order, then 5 Adam steps of 1e-2 on gradients that may be near zero
        np.testing.assert_allclose(weights[key], value, atol=2e-4)
    assert json.loads((two / "checkpoints" / "checkpoint-5" / "trainer_state.json").read_text())["global_step"] == 5
    assert torch.isfinite(torch.tensor(pq.read_table(two / "log.parquet").column("loss").to_pylist())).all()
