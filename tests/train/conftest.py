"""Tokens and a model built in code: 2 layers, 32 wide, a vocabulary of 64."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex_tools.train.settings import TrainingSettings

VOCABULARY = 64


@dataclass(frozen=True)
class FakeTokens:
    """What training reads of `data.tokenized.Tokens`."""

    ids: list[np.ndarray]
    ids_N16: np.ndarray
    group_N: np.ndarray
    group_names: tuple[str, ...]
    render_digest: str = "0" * 64

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_tokens_N(self) -> np.ndarray:
        return np.array([len(row) for row in self.ids])

    def input_ids(self, row: int) -> np.ndarray:
        return self.ids[row]

    def labels(self, row: int) -> np.ndarray:
        labels_T = self.ids[row].astype(np.int64)
        labels_T[:3] = -100
        return labels_T


def make_tokens(num_rows: int) -> FakeTokens:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, VOCABULARY, size=rng.integers(6, 14)).astype(np.int32) for _ in range(num_rows)]
    digests = b"".join(hashlib.sha256(row.tobytes()).digest()[:16] for row in ids)
    ids_N16 = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)
    return FakeTokens(ids, ids_N16, np.arange(num_rows, dtype=np.int32) % 3, ("code", "maths", "web"))


def make_model(*, lora: bool = True, dropout: float = 0.1) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attention_dropout=0.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if not lora:
        return model
    lora_config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
    return get_peft_model(model, lora_config)


def make_settings(**changes: Any) -> TrainingSettings:
    values = {"global_batch_size": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 3}
    return TrainingSettings(**(values | {"extra": {"use_cpu": True}} | changes))


@pytest.fixture
def tokens() -> FakeTokens:
    return make_tokens(30)


@pytest.fixture
def lora_model() -> Callable[[], Any]:
    return make_model


@pytest.fixture
def full_model() -> Callable[[], Any]:
    return lambda: make_model(lora=False)


@pytest.fixture
def settings() -> Callable[..., TrainingSettings]:
    return make_settings
