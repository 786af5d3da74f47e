"""Tokens per expert, against the routers' own outputs one sample at a time, for the families transformers has."""

import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.models.lora import seeded
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.router_load import check_router, router_loads
from tests.score.builders import VOCAB, FakeTokens

BASE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOP_2_OF_4, TOP_2_OF_8 = {"num_experts_per_tok": 2, "num_local_experts": 4}, {"num_experts_per_tok": 2, "num_experts": 8}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
          "num_key_value_heads": 4}  # fmt: skip
GROUPED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
           "first_k_dense_replace": 1, "moe_intermediate_size": 24}  # fmt: skip
SMALL = {"moe_intermediate_size": 24, "head_dim": 8}
# experts are chosen by their logits alone: E, where the last router is, what its config says
BY_LOGITS = {
    "mixtral": (4, TOP_2_OF_4 | {"router_jitter_noise": 0.5}),
    "qwen2_moe": (8, TOP_2_OF_8 | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": (8, TOP_2_OF_8 | SMALL),
    "olmoe": (8, TOP_2_OF_8),
    "gpt_oss": (4, TOP_2_OF_4 | {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "granitemoe": (4, TOP_2_OF_4),
    "flex_olmo": (8, TOP_2_OF_8),
    "jamba": (8, TOP_2_OF_8 | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}),
}
BY_MORE = {
    "deepseek_v2": (8, LATENT | GROUPED | {"topk_method": "group_limited_greedy"}),
    "deepseek_v3": (8, LATENT | GROUPED),
    "glm4_moe": (8, {"head_dim": 8} | GROUPED),
}
FAMILIES = BY_LOGITS | BY_MORE
LENGTHS = [5, 17, 9, 12, 30, 4, 8]
TOKENS = FakeTokens(LENGTHS, unlabelled=[3])


def config_of(kind, **changes):
    return AutoConfig.for_model(kind, **{**BASE, **FAMILIES[kind][1], **changes})


def make_model(kind="mixtral", *, dtype=torch.float64, **changes):
    """In float64 no rounding can move a token to another expert, whatever the batch."""
    with seeded(0):
        model = AutoModelForCausalLM.from_config(config_of(kind, **changes), experts_implementation="eager")
        for name, tensor in model.state_dict().items():
            if tensor.dim() > 1:
                tensor.normal_(0, 0.3)
            elif "correction_bias" in name:
                tensor.normal_(0, 0.5)
    return model.to(dtype).eval()


def batches_of(rows, size, **padding):
    return [pad_batch(TOKENS, rows[start : start + size], **padding) for start in range(0, len(rows), size)]


ALL = np.arange(len(TOKENS))


def last_router(model):
    routers = [m for name, m in model.named_modules() if re.search(r"\.(gate|router)$", name)]
    return routers[-1]


def largest(score_E, k, allowed=None):
    chosen = []
    for _ in range(k):
        best = None
        for expert, score in enumerate(score_E):
            if expert not in chosen and (allowed is None or expert in allowed) and (best is None or score > score_E[best]):
                best = expert
        chosen.append(best)
    return chosen


def chosen_of(kind, logit_E, router):
    """Experts of one token as the family's paper chooses them; DeepSeek-V2 section 2.2.2, DeepSeek-V3 section 2.1.2."""
    if kind in BY_LOGITS:
        return largest(logit_E, 2)
    groups = [range(start, start + 2) for start in range(0, 8, 2)]
    if kind == "deepseek_v2":
        score_G = [max(logit_E[expert] for expert in group) for group in groups]
        score_E = logit_E
    else:
        bias_E = router.e_score_correction_bias.tolist()
        score_E = [1 / (1 + np.exp(-logit)) + bias for logit, bias in zip(logit_E, bias_E, strict=True)]
        score_G = [sum(score_E[expert] for expert in group) for group in groups]
    return largest(score_E, 2, {expert for group in largest(score_G, 2) for expert in groups[group]})


def loads_one_by_one(model, kind, num_experts):
    """A forward per sample without padding, a hook on the last router's logits, and loops."""
    load_E, logits = np.zeros(num_experts), []
    router = last_router(model)
    handle = router.register_forward_hook(lambda _, args, out: logits.append(out[0]))
    for row in ALL:
        with torch.no_grad():
            model(input_ids=torch.from_numpy(TOKENS.input_ids(row)).long()[None], use_cache=False)
        for logit_E, label in zip(logits.pop().tolist(), TOKENS.labels(row), strict=True):
            if label != -100:
                for expert in chosen_of(kind, logit_E, router):
                    load_E[expert] += 1
    handle.remove()
    return load_E


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_loads_are_those_counted_from_the_last_router_one_sample_at_a_time(kind):
    model = make_model(kind)
    found = router_loads(model, batches_of(ALL, 3))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, loads_one_by_one(model, kind, FAMILIES[kind][0]))
    assert found.sum() == 2 * sum(TOKENS.num_labels_N)
    assert (found > 0).sum() > 2


@pytest.mark.parametrize("kind", list(BY_LOGITS))
def test_loads_are_the_top_choices_of_the_logits_that_the_model_gives_out(kind):
    model, batch = make_model(kind), pad_batch(TOKENS, ALL)
    with torch.no_grad():
        logit_SE = model(input_ids=batch["input_ids"], output_router_logits=True).router_logits[-1]
    choice_Sk = logit_SE.topk(2).indices[batch["labels"].flatten() != -100]
    np.testing.assert_array_equal(
        router_loads(model, [batch]), np.bincount(choice_Sk.flatten(), minlength=logit_SE.shape[1])
    )


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3", "jamba"])
def test_batch_size_order_and_padding_change_nothing(kind):
    model = make_model(kind)
    expected = router_loads(model, batches_of(ALL, 1))
    for size in (2, 3, 7):
        np.testing.assert_array_equal(router_loads(model, batches_of(ALL[::-1], size)), expected)
    for pad_id in (0, 63):
        np.testing.assert_array_equal(router_loads(model, batches_of(ALL, 7, pad_id=pad_id)), expected)


def test_padding_on_either_side_is_not_counted_with_a_mask():
    model = make_model()
    expected = router_loads(model, batches_of(ALL, 1))
    np.testing.assert_array_equal(router_loads(model, batches_of(ALL, 4, side="left")), expected)
    right = pad_batch(TOKENS, ALL)
    lengths = torch.tensor(LENGTHS)
    right["attention_mask"] = (torch.arange(right["input_ids"].shape[1]) < lengths[:, None]).long()
    np.testing.assert_array_equal(router_loads(model, [right]), expected)


def test_without_labels_every_token_of_the_mask_counts():
    model = make_model()
    every = [{"input_ids": torch.from_numpy(TOKENS.input_ids(row)).long()[None]} for row in ALL]
    every = [{**batch, "labels": batch["input_ids"]} for batch in every]
    masked = [{name: batch[name] for name in batch if name != "labels"} for batch in batches_of(ALL, 4, side="left")]
    found = router_loads(model, masked)
    np.testing.assert_array_equal(found, router_loads(model, every))
    assert found.sum() == 2 * sum(LENGTHS)


def test_the_last_layer_with_experts_counts_even_if_layers_without_follow():
    model = make_model("qwen2_moe", num_hidden_layers=4, mlp_only_layers=[1, 3])
    np.testing.assert_array_equal(router_loads(model, batches_of(ALL, 3)), loads_one_by_one(model, "qwen2_moe", 8))
    assert last_router(model) is model.model.layers[2].mlp.gate


class _Engine(torch.nn.Module):
    """A wrapper with a config of its own, as DeepSpeed's."""

    def __init__(self, module):
        super().__init__()
        self.module, self.config = module, {"zero_optimization": {"stage": 3}}

    def forward(self, **inputs):
        return self.module(**inputs)


def test_a_wrapped_model_gives_the_loads_of_the_model():
    model = make_model()
    expected = router_loads(model, batches_of(ALL, 3))
    np.testing.assert_array_equal(router_loads(_Engine(model), batches_of(ALL, 3)), expected)


def test_no_batch_gives_zeros():
    np.testing.assert_array_equal(router_loads(make_model(), []), np.zeros(4))


@pytest.mark.parametrize("is_training", [True, False])
def test_model_mode_random_stream_gradients_and_hooks_are_left_as_they_were(is_training):
    model = make_model(attention_dropout=0.5)
    model(**pad_batch(TOKENS, ALL[:2])).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.train(is_training)
    random = torch.get_rng_state()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    expected = router_loads(model, batches_of(ALL, 3))
    assert torch.equal(torch.get_rng_state(), random)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert {module.training for module in model.modules()} == {is_training}
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    np.testing.assert_array_equal(router_loads(model.eval(), batches_of(ALL, 3)), expected)


def test_mode_and_hooks_return_when_a_batch_fails():
    model = make_model().train()

    def failing():
        yield pad_batch(TOKENS, ALL[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        router_loads(model, failing())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_under_bfloat16_autocast_loads_are_those_routed_and_the_next_step_learns_the_same():
    model, batch = make_model("qwen3_moe", dtype=torch.float32), pad_batch(TOKENS, ALL)

    def step(*, is_measured):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = router_loads(model, [batch]) if is_measured else None
            out = model(**batch, output_router_logits=True)
        out.loss.backward()
        return found, out, [parameter.grad for parameter in model.parameters()]

    found, out, gradients = step(is_measured=True)
    probability_SE = out.router_logits[-1].float().softmax(-1)
    choice_Sk = probability_SE.topk(2).indices[batch["labels"].flatten() != -100]
    np.testing.assert_array_equal(found, np.bincount(choice_Sk.flatten(), minlength=8))
    for with_loads, without in zip(gradients, step(is_measured=False)[2], strict=True):
        assert torch.equal(with_loads, without)


class _Loads(TrainerCallback):
    def __init__(self):
        self.found = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.found.append(router_loads(model, batches_of(ALL, 4)))


def trained(folder, callbacks, *, seed=0):
    model = make_model(dtype=torch.float32, attention_dropout=0.2, output_router_logits=True)
    data = [{"input_ids": TOKENS.input_ids(row), "labels": TOKENS.labels(row)} for row in ALL]
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, bf16=True, max_steps=3, per_device_train_batch_size=1, learning_rate=1e-2,
        gradient_accumulation_steps=2, gradient_checkpointing=True, save_strategy="no", report_to=[], seed=seed,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
    trainer.train()
    return model


def test_measuring_in_the_middle_of_a_training_does_not_change_it(tmp_path):
    loads = _Loads()
    measured, alone = trained(tmp_path, [loads]), trained(tmp_path, [])
    for one, other in zip(measured.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(loads.found) == 3
    assert all(load_E.sum() == 2 * sum(TOKENS.num_labels_N) for load_E in loads.found)
    assert any((load_E != loads.found[0]).any() for load_E in loads.found[1:])


def test_an_adapter_on_attention_and_experts_is_part_of_the_model():
    expected = router_loads(make_model(), batches_of(ALL, 3))
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )  # fmt: skip
    model = get_peft_model(make_model(), lora).double().eval()
    np.testing.assert_array_equal(router_loads(model, batches_of(ALL, 3)), expected)
    with torch.no_grad(), seeded(0):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 1)
    found = router_loads(model, batches_of(ALL, 3))
    assert (found != expected).any()
    np.testing.assert_array_equal(found, loads_one_by_one(model, "mixtral", 4))


def config_folder(folder, config):
    """A configuration and nothing else: reading a weight would fail."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return ModelSettings(path=str(folder))


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_number_of_experts_comes_from_the_configuration_alone(kind, tmp_path):
    assert check_router(config_folder(tmp_path, config_of(kind).to_dict())) == FAMILIES[kind][0]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2_moe", {"mlp_only_layers": [0, 1], "num_experts": 8}),
        ("deepseek_v3", LATENT | GROUPED | {"first_k_dense_replace": 2}),
        ("jetmoe", TOP_2_OF_4 | {"kv_channels": 8}),
        ("llama4_text", {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8}),
    ],
)
def test_a_model_without_experts_to_observe_is_refused_before_its_weights_are_read(kind, changes, tmp_path):
    config = AutoConfig.for_model(kind, **{**BASE, **changes})
    settings = config_folder(tmp_path / "given", config.to_dict())
    with pytest.raises(ConfigError, match=rf"given is a {kind} model.*choose a mixture-of-experts model, e.g. mixtral"):
        check_router(settings)
    with seeded(0):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=f"the model is a {kind} model"):
        router_loads(model, [])


def test_a_family_that_may_give_a_token_to_no_expert_is_refused(tmp_path):
    config = AutoConfig.for_model("zaya", **{**BASE, "num_experts": 4, "moe_intermediate_size": 24})
    with pytest.raises(ConfigError, match="zaya model, which may give a token to no expert"):
        check_router(config_folder(tmp_path, config.to_dict()))


def test_experts_that_a_kernel_leaves_out_are_an_error_and_not_zeros():
    model = make_model()
    model.model.layers[-1].mlp.forward = lambda hidden_BTH: hidden_BTH
    with pytest.raises(ConfigError, match=r"were not called: a fused kernel.*use_kernels=False"):
        router_loads(model, batches_of(ALL, 3))


def test_virtual_tokens_of_an_adapter_are_an_error():
    from peft import PromptTuningConfig

    model = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).double()
    with pytest.raises(ConfigError, match=r"routes 24 tokens of a batch of 18"):
        router_loads(model, [{"input_ids": torch.ones(2, 9).long(), "labels": torch.ones(2, 9).long()}])


def test_an_expert_number_out_of_range_is_an_error():
    model = make_model()
    gate = model.model.layers[-1].mlp.gate

    def as_another_rank(module, args, out):
        logits, weights, choice_Sk = out
        return logits, weights, choice_Sk.masked_fill(choice_Sk == 3, 4)

    gate.register_forward_hook(as_another_rank)
    with pytest.raises(ConfigError, match=r"expert 4 of 4.*without expert parallelism"):
        router_loads(model, batches_of(ALL, 3))
