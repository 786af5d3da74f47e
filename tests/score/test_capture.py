"""Per-sample gradients of a batch equal one backward pass per sample."""

import pytest
import torch
from torch import nn

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.models.lora import add_lora
from dataflex_tools.models.settings import LoraSettings
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.capture import PerSampleGradients
from dataflex_tools.score.losses import per_sample_loss
from tests.score.builders import FakeTokens, gradients_one_by_one, tiny_base, tiny_model, trainable

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# 1e-5 of a sample's whole gradient: single entries may cancel to nothing
RELATIVE = 1e-5


def captured(model, batch):
    found = {}
    capture = PerSampleGradients(model, lambda name, grad: found.setdefault(name, []).append(grad.clone()))
    with capture.attached(len(batch["labels"])) as backward:
        sum_B, num_B = per_sample_loss(model, batch)
        backward((sum_B / num_B.clamp(min=1)).sum())
    assert all(len(grads) == 1 for grads in found.values())
    assert set(found) == set(capture.names) == set(trainable(model))
    return {name: found[name][0] for name in capture.names}


def assert_same(found, expected):
    found, expected = torch.cat(list(found.values()), 1), torch.cat([expected[name] for name in found], 1)
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert expected.norm(dim=1).min() > 1e-3
    assert error.max() < RELATIVE


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("tie", "targets", "rslora"),
    [(False, ATTENTION, False), (True, "all-linear", False), (False, "all-linear", True), (True, ("down_proj",), True)],
)
def test_batched_is_one_backward_per_sample(kind, side, tie, targets, rslora):
    model = tiny_model(kind, tie=tie, targets=targets, rslora=rslora)
    tokens = FakeTokens([5, 17, 9, 30, 4])
    found = captured(model, pad_batch(tokens, range(5), side=side, pad_id=7))
    assert_same(found, gradients_one_by_one(model, tokens, range(5)))


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_batch_size_changes_nothing(size):
    model, tokens = tiny_model(targets="all-linear"), FakeTokens([4 + row % 11 for row in range(32)])
    parts = [captured(model, pad_batch(tokens, range(start, min(start + size, 32)))) for start in range(0, 32, size)]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert_same(found, gradients_one_by_one(model, tokens, range(32)))


def test_gradient_checkpointing_changes_nothing():
    model, tokens = tiny_model(targets="all-linear"), FakeTokens([5, 17, 9])
    expected = gradients_one_by_one(model, tokens, range(3))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_same(captured(model, pad_batch(tokens, range(3))), expected)


def test_parameters_keep_no_gradient_and_modules_no_hook():
    model, tokens = tiny_model(), FakeTokens([5, 6])
    captured(model, pad_batch(tokens, range(2)))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_plain_linear_weights_of_the_base_model_work_without_lora():
    model, tokens = tiny_base(), FakeTokens([5, 9, 6])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("up_proj.weight", "lm_head.weight")))
    found = captured(model, pad_batch(tokens, range(3)))
    assert "lm_head.weight" in found
    assert_same(found, gradients_one_by_one(model, tokens, range(3)))


def test_layer_a_batch_does_not_use_has_a_zero_gradient():
    model, tokens = tiny_model(), FakeTokens([5, 6], unlabelled=[0, 1])
    found = captured(model, pad_batch(tokens, range(2)))
    assert all(not grad.any() and grad.shape == (2, trainable(model)[name].numel()) for name, grad in found.items())


def test_dora_is_refused():
    model = add_lora(tiny_base(), LoraSettings(r=2, use_dora=True), seed=0)
    with pytest.raises(ConfigError, match=r"DoRA.*lora\.use_dora"):
        PerSampleGradients(model, print)


def test_what_is_not_a_linear_weight_is_refused_by_name():
    model = tiny_model()
    norm = next(name for name, _ in model.named_parameters() if name.endswith("norm.weight"))
    model.get_parameter(norm).requires_grad_(True)
    with pytest.raises(ConfigError, match=r"norm\.weight of Qwen2RMSNorm"):
        PerSampleGradients(model, print)


def test_tied_trainable_head_is_refused_as_shared():
    model = tiny_base(tie=True)
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="shared"):
        PerSampleGradients(model, print)


def test_nothing_trainable_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        PerSampleGradients(tiny_base().requires_grad_(False), print)


def test_layer_used_twice_is_refused():
    layer = nn.Linear(3, 3, bias=False)
    capture = PerSampleGradients(layer, lambda *_: None)
    with capture.attached(2) as backward, pytest.raises(ConfigError, match="more than once"):
        backward(layer(layer(torch.ones(2, 4, 3))).sum())


def test_inputs_that_mix_samples_are_refused():
    layer = nn.Linear(3, 3, bias=False)
    capture = PerSampleGradients(layer, lambda *_: None)
    with capture.attached(2), pytest.raises(ConfigError, match=r"\(8, 3\)"):
        layer(torch.ones(8, 3))
