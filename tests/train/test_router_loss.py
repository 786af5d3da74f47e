"""The load balance of experts is that of the global batch: a step can be shared out in any way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods.doremi import Doremi, DoremiSettings
from dataflex_tools.methods.odm import Odm, OdmSettings
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.train.router_loss import balance, router_term
from dataflex_tools.train.run import FitOptions, TrainingRun, run_training
from tests.train import test_mixing
from tests.train.conftest import VOCABULARY, make_model, make_settings, make_tokens
from tests.train.test_run import KillBefore, Killed, assert_same_run

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "output_router_logits": True,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": {"num_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
}


def make_moe(kind: str = "mixtral", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    values = {"router_aux_loss_coef": 1.0, **COMMON, **KINDS[kind], **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))


def batch_of(tokens: Any, rows: range) -> dict[str, torch.Tensor]:
    from dataflex_tools.train.data import PadCollator, TokensDataset

    return PadCollator(with_mask=True)([TokensDataset(tokens)[row] for row in rows])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_balance_of_one_batch_is_what_the_model_itself_adds(kind: str) -> None:
    model = make_moe(kind).eval()
    term = router_term(model.config)
    assert term is not None
    batch = batch_of(make_tokens(6), range(6))
    with torch.no_grad():
        outputs = model(**batch)
        ours = balance(outputs, term, batch["attention_mask"])
    torch.testing.assert_close(ours, term.coefficient * outputs.aux_loss.float())


def test_a_model_whose_config_does_not_ask_has_no_router_loss() -> None:
    assert router_term(make_moe(output_router_logits=False).config) is None
    assert router_term(make_moe(router_aux_loss_coef=0.0).config) is None
    assert router_term(make_model(lora=False).config) is None


def train_plain(folder: Path, size: int, **changes: Any) -> TrainingRun:
    settings = make_settings(global_batch_size=8, per_device_train_batch_size=size, max_steps=4, logging_steps=1, **changes)
    sampler = PlanSampler(np.arange(30), seed=1)
    return run_training(make_moe, make_tokens(30), sampler, settings, folder)


def train_mixed(mixer: Any) -> Callable[..., TrainingRun]:
    def train(folder: Path, size: int, **changes: Any) -> TrainingRun:
        return test_mixing.train(
            folder, mixer, model=make_moe, per_device_train_batch_size=size, max_steps=4, logging_steps=1, **changes
        )

    return train


TRAININGS = {
    "plan": train_plain,
    "odm": train_mixed(Odm(OdmSettings())),
    "doremi": train_mixed(Doremi(DoremiSettings())),
}


@pytest.mark.parametrize("kind", sorted(TRAININGS))
def test_the_size_of_a_micro_batch_changes_loss_and_weights_by_rounding_only(tmp_path: Path, kind: str) -> None:
    runs = [TRAININGS[kind](tmp_path / str(size), size) for size in (8, 4, 1)]
    losses = [pq.read_table(run.log)["loss"].to_numpy() for run in runs]
    weights = [load_file(run.model / "model.safetensors") for run in runs]
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        np.testing.assert_allclose(loss, losses[0], rtol=1e-5)
        for name, value in weights[0].items():
            # float32 sums in another order, then 4 Adam steps of 1e-2 on gradients that may be near zero
            np.testing.assert_allclose(weight[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("kind", sorted(TRAININGS))
def test_the_first_loss_is_cross_entropy_plus_the_balance_of_the_global_batch(tmp_path: Path, kind: str) -> None:
    run = TRAININGS[kind](tmp_path / "with", 2)
    tokens = make_tokens(30)
    rows = pq.read_table(run.ledger)["row"].to_numpy()[:8]
    model = make_moe()
    with torch.no_grad():
        batch = batch_of(tokens, rows.tolist())
        logged = pq.read_table(run.log)["loss"].to_pylist()[0]
        outputs = model(**batch)
    if kind == "doremi":  # its own loss is a weighted one
        assert logged > float(outputs.aux_loss)
        return
    assert logged == pytest.approx(float(outputs.loss), rel=1e-5)


def test_label_smoothing_keeps_the_balance(tmp_path: Path) -> None:
    run = train_plain(tmp_path / "smooth", 2, extra={"use_cpu": True, "label_smoothing_factor": 0.1})
    plain = train_plain(tmp_path / "plain", 2)
    smooth, hard = (pq.read_table(each.log)["loss"].to_pylist()[0] for each in (run, plain))
    assert smooth == pytest.approx(hard, abs=0.5)
    assert smooth > 5.5  # cross entropy of 64 tokens is about 4.2, the balance of 2 of 4 experts at least 2


class WithAnotherTerm(LlamaForCausalLM):
    """Adds the mean square of its logits, as a z-loss does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if outputs.loss is not None:
            outputs.loss = outputs.loss + outputs.logits.pow(2).mean()
        return outputs


def test_a_term_that_is_not_accounted_for_is_refused_before_the_first_step(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(0)
        return WithAnotherTerm(make_model(lora=False).config)

    with pytest.raises(ConfigError, match=r"loss of this llama model is .* where cross entropy alone is"):
        run_training(model, make_tokens(30), PlanSampler(np.arange(30)), make_settings(), tmp_path)
    assert not list(tmp_path.glob("checkpoints/checkpoint-*"))


def test_a_killed_training_goes_on_exactly(tmp_path: Path) -> None:
    def train(folder: Path, *callbacks: Any) -> TrainingRun:
        settings = make_settings(global_batch_size=8, max_steps=6, save_steps=2)
        options = FitOptions(callbacks=callbacks)
        sampler = PlanSampler(np.arange(30), seed=1)
        return run_training(make_moe, make_tokens(30), sampler, settings, folder, options=options)

    with pytest.raises(Killed):
        train(tmp_path / "killed", KillBefore(5))
    assert_same_run(train(tmp_path / "killed"), train(tmp_path / "whole"))
