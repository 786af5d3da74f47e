"""Directional derivatives equal those of backward passes, and the weights come back to the last bit."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.directions import gaussian_direction
from dataflex_tools.score import zeroth
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.settings import ZerothSignalSettings
from dataflex_tools.score.zeroth import ZerothSignal, central_differences
from tests.score.builders import VOCAB, FakeTokens, mean_loss, tiny_base, tiny_model, trainable

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "zeroth_spsa.json").read_text())
LENGTHS = [5, 17, 9, 12]
# float32 losses of about 5 nats are off by 5e-7, divided by twice the step of 1e-3
MAGNIFIED = {"rtol": 0, "atol": 1e-3}


def raw(columns):
    return columns["value"].astype(np.float64) * columns["norm"][:, None]


def bits(model):
    return {name: (weight.data_ptr(), weight.detach().numpy().tobytes()) for name, weight in model.named_parameters()}


def test_the_vector_s_derivatives():
    given, expected = VECTOR["inputs"], VECTOR["expected"]
    theta = torch.nn.Parameter(torch.tensor(given["theta"], dtype=torch.float64))
    matrix = np.array(given["A"])

    def losses_at(points):
        def losses():
            return np.array([0.5 * (off := theta.detach().numpy() - point) @ matrix @ off for point in np.array(points)])

        return losses

    def along(xi_QP, points):
        return central_differences(
            {"theta": theta}, lambda number, *_: torch.tensor(xi_QP[number], dtype=torch.float64), losses_at(points),
            num=len(xi_QP), eps=given["eps"],
        )  # fmt: skip

    close = {"rtol": 0, "atol": VECTOR["tolerance"]}
    np.testing.assert_allclose(along([given["xi"]], given["train_points"])[:, 0], expected["p_train"], **close)
    np.testing.assert_allclose(along([given["xi"]], given["val_points"])[:, 0], expected["p_val"], **close)
    train_NQ, val_MQ = (along(given["xi_multi"], given[name]) for name in ("train_points", "val_points"))
    np.testing.assert_allclose((train_NQ @ val_MQ.T / 4).mean(1), expected["score_with_4_directions"], **close)
    assert theta.tolist() == given["theta"]


def direction(number, name, weight):
    return gaussian_direction(weight.numel(), seed=5, number=number, name=name, device=weight.device).view(weight.shape)


def chosen(model, parameters):
    return dict(model.named_parameters()) if parameters == "all" else trainable(model)


@pytest.mark.parametrize("parameters", ["trainable", "all"])
@pytest.mark.parametrize("build", [tiny_base, tiny_model])
def test_signal_is_the_formula_one_sample_and_direction_at_a_time(build, parameters):
    tokens, settings = FakeTokens(LENGTHS), ZerothSignalSettings(num_directions=3, seed=5, parameters=parameters)
    found_BQ = raw(ZerothSignal(build(), replace(settings, storage="float32")).measure_batch(pad_batch(tokens, range(4))))
    for number in range(3):
        loss = {}
        for sign in (1, -1):
            model = build().double()
            with torch.no_grad():
                for name, weight in chosen(model, parameters).items():
                    weight += sign * settings.eps * direction(number, name, weight)
                loss[sign] = np.array([mean_loss(model, tokens, row).item() for row in range(4)])
        np.testing.assert_allclose(found_BQ[:, number], (loss[1] - loss[-1]) / (2 * settings.eps), **MAGNIFIED)


class Smooth(torch.nn.Module):
    """A float64 model throughout; transformers' norms and softmaxes are float32 whatever the weights are."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.into = torch.nn.Parameter(torch.randn(VOCAB, 8, generator=generator, dtype=torch.float64) / 3)
        self.out = torch.nn.Parameter(torch.randn(8, VOCAB, generator=generator, dtype=torch.float64) / 3)

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=torch.tanh(self.into[input_ids]) @ self.out)


def test_a_small_step_gives_the_gradient_times_the_direction():
    model, tokens = Smooth(), FakeTokens(LENGTHS)
    weights = dict(model.named_parameters())
    expected_BQ = np.zeros((4, 3))
    for row in range(4):
        grads = torch.autograd.grad(mean_loss(model, tokens, row), list(weights.values()))
        for number in range(3):
            parts = [grad * direction(number, name, grad) for name, grad in zip(weights, grads, strict=True)]
            expected_BQ[row, number] = sum(part.sum().item() for part in parts)

    def losses():
        return np.array([mean_loss(model, tokens, row).item() for row in range(4)])

    with torch.no_grad():
        found_BQ = central_differences(weights, direction, losses, num=3, eps=1e-5)
    np.testing.assert_allclose(found_BQ, expected_BQ, rtol=1e-6, atol=1e-8)


def test_rows_are_unit_in_the_storage_type_and_a_sample_without_labels_is_zero():
    model, tokens = tiny_model(), FakeTokens([5, 6], unlabelled=[1])
    settings = {storage: ZerothSignalSettings(num_directions=4, storage=storage) for storage in ("float16", "float32")}
    half, single = (ZerothSignal(model, each).measure_batch(pad_batch(tokens, [0, 1])) for each in settings.values())
    assert (half["value"].dtype, half["norm"].dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(half["value"], single["value"].astype(np.float16))
    assert np.linalg.norm(single["value"][0]) == pytest.approx(1, abs=1e-6)
    assert single["norm"][1] == 0
    assert not single["value"][1].any()


def test_weights_come_back_to_the_last_bit_in_the_same_place():
    model, tokens = tiny_model(), FakeTokens(LENGTHS)
    before = bits(model)
    signal = ZerothSignal(model, ZerothSignalSettings(num_directions=3, parameters="all"))
    first = signal.measure_batch(pad_batch(tokens, range(4)))
    assert bits(model) == before
    np.testing.assert_array_equal(signal.measure_batch(pad_batch(tokens, range(4)))["value"], first["value"])


@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_weights_come_back_after_an_error_at_any_forward(failing_call, monkeypatch):
    model, tokens = tiny_model(), FakeTokens(LENGTHS)
    before, calls, real = bits(model), [], zeroth.label_losses

    def fails(*args):
        calls.append(1)
        if len(calls) == failing_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(*args)

    monkeypatch.setattr(zeroth, "label_losses", fails)
    with pytest.raises(torch.OutOfMemoryError):
        ZerothSignal(model, ZerothSignalSettings(num_directions=2)).measure_batch(pad_batch(tokens, range(4)))
    assert bits(model) == before


def test_weights_come_back_after_an_error_while_a_direction_is_drawn():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))

    def interrupted(number, name, weight):
        if name == "second":
            raise KeyboardInterrupt
        return torch.ones(2)

    with pytest.raises(KeyboardInterrupt):
        central_differences({"first": first, "second": second}, interrupted, lambda: np.zeros(1), num=1, eps=0.1)
    assert (first.tolist(), second.tolist()) == ([1, 1], [1, 1])


def test_a_batch_takes_two_forwards_per_direction(monkeypatch):
    model, calls = tiny_model(), []
    model.get_base_model().model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    signal = ZerothSignal(model, ZerothSignalSettings(num_directions=5))
    signal.measure_batch(pad_batch(FakeTokens(LENGTHS), range(4)))
    assert len(calls) == 10


def test_frozen_parameters_are_not_perturbed_unless_asked_for():
    model, seen = tiny_model(), []
    before = model.get_base_model().lm_head.weight.clone()

    def look(module, *_):
        seen.append(torch.equal(module.weight, before))

    model.get_base_model().lm_head.register_forward_hook(look)
    for parameters in ("trainable", "all"):
        signal = ZerothSignal(model, ZerothSignalSettings(num_directions=1, parameters=parameters))
        signal.measure_batch(pad_batch(FakeTokens(LENGTHS), range(4)))
    assert seen == [True, True, False, False]


def test_more_directions_begin_with_the_fewer_and_another_seed_gives_others():
    model, batch = tiny_model(), pad_batch(FakeTokens(LENGTHS), range(4))

    def found(**settings):
        return raw(ZerothSignal(model, ZerothSignalSettings(storage="float32", **settings)).measure_batch(batch))

    two, three, other = found(num_directions=2), found(num_directions=3), found(num_directions=2, seed=1)
    np.testing.assert_allclose(three[:, :2], two, rtol=1e-5)
    assert not np.allclose(other, two, rtol=0.1)


def test_dropout_is_off_and_training_mode_returns():
    model, batch = tiny_model(dropout=0.5), pad_batch(FakeTokens(LENGTHS), range(4))
    signal = ZerothSignal(model, ZerothSignalSettings(num_directions=2))
    expected = signal.measure_batch(batch)["value"]
    model.train()
    np.testing.assert_array_equal(signal.measure_batch(batch)["value"], expected)
    assert model.training


def test_weights_that_would_swallow_the_step_and_models_without_a_trainable_one_are_refused():
    with pytest.raises(ConfigError, match=r"parameters are not, e.g. .*\(bfloat16\); set model.dtype to float32"):
        ZerothSignal(tiny_base().bfloat16(), ZerothSignalSettings())
    frozen = tiny_base().requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        ZerothSignal(frozen, ZerothSignalSettings())
    assert ZerothSignal(frozen, ZerothSignalSettings(parameters="all")).columns.field("value").type.list_size == 16


def test_the_address_holds_what_changes_the_numbers_only():
    base = ZerothSignalSettings()
    assert ZerothSignalSettings(token_budget=7, part_rows=3).address() == base.address()
    for other in ({"num_directions": 3}, {"eps": 1e-2}, {"seed": 1}, {"parameters": "all"}, {"storage": "float32"}):
        assert ZerothSignalSettings(**other).address() != base.address()
    for wrong in ({"num_directions": 0}, {"eps": 0.0}, {"part_rows": 0}, {"token_budget": -1}):
        with pytest.raises(ConfigError, match=f"zeroth.{next(iter(wrong))} is"):
            ZerothSignalSettings(**wrong)
