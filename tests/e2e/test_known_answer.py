"""Mixers on domains whose answer is known: what can still be learned is raised, what cannot is not."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex_tools.core.mixing import Domains, Mixture
from dataflex_tools.methods.doremi import Doremi, DoremiSettings
from dataflex_tools.methods.odm import Odm, OdmSettings
from dataflex_tools.sampler.mixture_sampler import MixtureSampler
from dataflex_tools.score.losses import sample_losses
from dataflex_tools.train.mixing import Loop
from dataflex_tools.train.run import FitOptions, TrainingRun, run_training
from dataflex_tools.train.settings import TrainingSettings

pytestmark = pytest.mark.e2e
VOCABULARY, LENGTH, NUM = 64, 24, 300
# `easy` is one short cycle; `noise` has nothing to learn; `maze` is a fixed map from token to token, learned slowly
NAMES = ("easy", "noise", "maze")


@dataclass(frozen=True)
class Rows:
    """What training and measuring read of packed blocks."""

    ids_NT: np.ndarray
    ids_N16: np.ndarray
    group_N: np.ndarray
    group_names: tuple[str, ...] = NAMES
    render_digest: str = "0" * 64

    def __len__(self) -> int:
        return len(self.ids_NT)

    @property
    def num_tokens_N(self) -> np.ndarray:
        return np.full(len(self), LENGTH)

    def input_ids(self, row: int) -> np.ndarray:
        return self.ids_NT[row]

    def labels(self, row: int) -> np.ndarray:
        return np.r_[-100, self.ids_NT[row][1:]].astype(np.int64)


def make_rows(seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    step = rng.permutation(40)
    maze = np.zeros((NUM, LENGTH), np.int32)
    maze[:, 0] = rng.integers(0, 40, NUM)
    for t in range(1, LENGTH):
        maze[:, t] = step[maze[:, t - 1]]
    easy = (np.arange(LENGTH)[None] + rng.integers(0, 4, NUM)[:, None]) % 4 + 60
    noise = rng.integers(40, 60, (NUM, LENGTH))
    ids_NT = np.concatenate([easy, noise, maze]).astype(np.int32)
    digests = b"".join(hashlib.sha256(str(i).encode()).digest()[:16] for i in range(len(ids_NT)))
    return Rows(ids_NT, np.frombuffer(digests, np.uint8).reshape(-1, 16), np.repeat(np.arange(3, dtype=np.int32), NUM))


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip


def fit(folder: Path, rows: Rows, weights: Any, steps: int, seed: int, loop: Loop | None = None) -> TrainingRun:
    settings = TrainingSettings(
        max_steps=steps, learning_rate=4e-3, global_batch_size=12, per_device_train_batch_size=12, seed=seed,
        lr_scheduler_type="constant", extra={"use_cpu": True},
    )  # fmt: skip
    parts = [range(k * NUM, (k + 1) * NUM) for k in range(3)]
    sampler = MixtureSampler(parts, (np.zeros(1, np.int64), np.asarray(weights)[None]), seed=seed)
    options = FitOptions(loop=loop)
    return run_training(lambda: make_model(seed), rows, sampler, settings, folder, options=options)


class Reference:
    """Token losses of a trained reference model."""

    def __init__(self, model: Any, rows: Rows) -> None:
        from dataflex_tools.score.batches import pad_batch
        from dataflex_tools.score.losses import label_losses, measuring

        with measuring(model):
            flat = label_losses(model, pad_batch(rows, np.arange(len(rows))))[0]
        self.loss_NT = flat.reshape(len(rows), LENGTH - 1)

    def of_rows(self, row_B: np.ndarray) -> np.ndarray:
        return self.loss_NT[row_B].reshape(-1)


def domains() -> Domains:
    return Domains(NAMES, np.full(3, NUM), np.array([80, 15, 5]) * 1000, vocab_size=VOCABULARY)


def loop_for(mixer: Any, rows: Rows, **more: Any) -> Loop:
    return Loop(mixer, domains(), rows.group_N, np.full(len(rows), LENGTH - 1), **more)


@pytest.mark.parametrize("seed", range(3))
def test_doremi_raises_what_can_be_learned_and_not_the_noise(tmp_path: Path, seed: int) -> None:
    rows = make_rows(seed)
    natural = np.array([0.6, 0.25, 0.15])  # the maze is underweighted, and learned by the reference all the same
    run = fit(tmp_path / "reference", rows, natural, 400, seed)
    reference = LlamaForCausalLM.from_pretrained(run.model)
    sum_N, count_N = sample_losses(reference, rows, np.arange(len(rows)))
    easy, noise, maze = (sum_N[rows.group_N == k].sum() / count_N[rows.group_N == k].sum() for k in range(3))
    assert easy < 0.1
    assert maze < 1.0
    assert noise > 0.9 * np.log(20)
    mixer = Doremi(DoremiSettings())
    proxy = fit(
        tmp_path / "proxy", rows, np.full(3, 1 / 3), 80, seed, loop_for(mixer, rows, reference=Reference(reference, rows))
    )
    mixture: Mixture = mixer.finish(domains(), proxy.trajectory)
    weights = dict(zip(NAMES, mixture.weight_SK[-1], strict=True))
    assert weights["maze"] > 0.6 > natural[2]
    assert weights["noise"] < natural[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["paper", "smoothed_mean_group", "exp3"])
def test_odm_raises_the_domain_whose_loss_is_still_high(tmp_path: Path, seed: int, variant: str) -> None:
    rows = make_rows(seed)
    mixer = Odm(OdmSettings(variant=variant))
    run = fit(tmp_path, rows, np.full(3, 1 / 3), 60, seed, loop_for(mixer, rows))
    easy, _, maze = np.mean([state.weight_K for state in run.trajectory[10:]], axis=0)
    assert maze > easy + 0.005
