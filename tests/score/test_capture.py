"""Per-sample gradients of a batch equal one backward pass per sample."""

import pytest
import torch
from torch import nn

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.capture import NotBatchedError, PerSampleGradients
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
        backward(sum_B / num_B.clamp(min=1))
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


def test_nothing_trainable_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        PerSampleGradients(tiny_base().requires_grad_(False), print)


def tapped(model, batch_BTI):
    """The gradients of a toy model's outputs, summed over a sample, through the batched way."""
    found = {}
    capture = PerSampleGradients(model, lambda name, grad: found.__setitem__(name, grad.clone()))
    with capture.attached(len(batch_BTI)) as backward:
        backward(model(batch_BTI).square().flatten(1).sum(1))
    return found


def test_layer_used_twice_is_not_batched():
    layer = nn.Linear(3, 3, bias=False)
    with pytest.raises(NotBatchedError):
        tapped(nn.Sequential(layer, layer), torch.randn(2, 4, 3))


class Functional(nn.Module):
    """Uses its layer's weight, not its layer; with `also`, the layer as well."""

    def __init__(self, *, also: bool) -> None:
        super().__init__()
        self.layer, self.other, self.also = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), also

    def forward(self, x):
        out = nn.functional.linear(self.other(x), self.layer.weight)
        return out + self.layer(x) if self.also else out


@pytest.mark.parametrize("also", [False, True])
def test_a_weight_that_is_used_behind_its_layers_back_is_not_batched(also):
    with pytest.raises(NotBatchedError):
        tapped(Functional(also=also), torch.randn(3, 4, 3))


class Flattening(nn.Module):
    """Sees all positions of a batch in a row, as OPT's and Qwen2-MoE's feed-forward layers do."""

    def __init__(self, *, is_sample_first: bool) -> None:
        super().__init__()
        self.layer, self.is_sample_first = nn.Linear(3, 3, bias=False), is_sample_first

    def forward(self, x_BTI):
        x = x_BTI if self.is_sample_first else x_BTI.transpose(0, 1)
        out = self.layer(x.reshape(-1, 3)).view(x.shape)
        return out if self.is_sample_first else out.transpose(0, 1)


def test_positions_in_a_row_are_told_apart_by_sample():
    torch.manual_seed(0)
    model, batch = Flattening(is_sample_first=True), torch.randn(3, 4, 3)
    found = tapped(model, batch)["layer.weight"]
    for sample in range(3):
        loss = model(batch[sample : sample + 1]).square().sum()
        (wanted,) = torch.autograd.grad(loss, [model.layer.weight])
        torch.testing.assert_close(found[sample], wanted.flatten())
    with pytest.raises(NotBatchedError):  # rows of positions first: the shapes fit, the samples do not
        tapped(Flattening(is_sample_first=False), batch)


def test_a_layer_that_text_does_not_reach_is_an_error():
    model = nn.ModuleDict({"text": nn.Linear(3, 3), "image": nn.Linear(3, 3)})
    capture = PerSampleGradients(model, lambda *_: None)
    with pytest.raises(ConfigError, match=r"2 of 4 trainable parameters are not used.*image\.weight"):
        capture.of_one(model["text"](torch.ones(1, 3)).sum())


def test_an_expert_that_no_token_goes_to_has_a_zero_gradient():
    model = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(2)])})
    found = {}
    capture = PerSampleGradients(model, lambda name, grad: found.__setitem__(name, grad))
    with capture.attached(2) as backward:
        backward(model["experts"][0](torch.ones(2, 4, 3)).flatten(1).sum(1))
    assert found["experts.0.weight"].any()
    assert not found["experts.1.weight"].any()
