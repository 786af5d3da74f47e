"""The gradient signal equals gradient -> Adam -> projection done one sample at a time."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.models.lora import add_lora
from dataflex_tools.models.settings import LoraSettings
from dataflex_tools.ops.adam import CONVENTIONS, adam_direction
from dataflex_tools.ops.sketch import make_projection
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.gradient import GradientSettings, GradientSignal, ProjectedGradients, load_moments
from tests.score.builders import (
    TYPES,
    FakeTokens,
    gradients_one_by_one,
    random_moments,
    tiny_base,
    tiny_model,
    tiny_of_type,
    trainable,
)

ROWS = range(4)
FUSED_EXPERTS = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3")  # "all-linear" puts adapters on their experts


def expected_rows(model, tokens, settings, moments):
    grads = gradients_one_by_one(model, tokens, ROWS)
    sizes = {name: grad.shape[1] for name, grad in grads.items()}
    projection = make_projection(settings.projection, sizes, settings.dim, seed=settings.seed)
    out = torch.zeros(len(ROWS), projection.dim)
    for name, grad in grads.items():
        if moments is not None:
            m, v = moments.exp_avg[name].flatten(), moments.exp_avg_sq[name].flatten()
            grad = adam_direction(grad, m, v, step=moments.step, convention=settings.adam)
        projection.add(out, grad, name)
    return out.numpy()


@pytest.mark.parametrize("adam", [*CONVENTIONS, "none"])
@pytest.mark.parametrize("projection", ["sketch", "rademacher", "none"])
def test_signal_is_gradient_adam_and_projection_one_sample_at_a_time(adam, projection):
    model, tokens = tiny_model(targets="all-linear"), FakeTokens([5, 17, 9, 12])
    settings = GradientSettings(dim=128, projection=projection, adam=adam, storage="float32")
    moments = None if adam == "none" else random_moments(model)
    found = GradientSignal(model, settings, moments).measure_batch(pad_batch(tokens, ROWS))
    expected = expected_rows(model, tokens, settings, moments)
    norm = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(found["norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(found["value"], expected / norm[:, None], atol=1e-5)
    assert np.linalg.norm(found["value"], axis=1) == pytest.approx(1, abs=1e-6)


def drawn(model):
    """The model with a drawn B: at the start of training it is zero, and so is every gradient of A."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def assert_exact(model, *, is_batched):
    tokens = FakeTokens([5, 17, 9, 12])
    gradients = ProjectedGradients(model, GradientSettings(adam="none", projection="none"))
    found = gradients.rows(pad_batch(tokens, ROWS), lambda sum_B, num_B: sum_B / num_B.clamp(min=1))
    expected = torch.cat(list(gradients_one_by_one(model, tokens, ROWS).values()), 1)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-5
    assert gradients._capture.is_batched == is_batched
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_adapters_on_all_layers_of_any_type_are_exact(kind):
    model = drawn(add_lora(tiny_of_type(kind), LoraSettings(r=4, alpha=8, target_modules="all-linear"), seed=1))
    found = assert_exact(model, is_batched=kind not in FUSED_EXPERTS)
    start = 0
    for name, parameter in trainable(model).items():
        assert found[:, start : start + parameter.numel()].any(), name
        start += parameter.numel()


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"target_modules": ("q_proj", "embed_tokens")}], ids=["dora", "embeddings"]
)
def test_what_is_no_weight_of_a_linear_layer_is_exact_one_sample_at_a_time(lora):
    assert_exact(drawn(add_lora(tiny_base(), LoraSettings(r=2, **lora), seed=1)), is_batched=False)


def test_all_weights_of_a_model_are_exact_one_sample_at_a_time():
    for tie in (False, True):
        assert_exact(tiny_base(tie=tie), is_batched=False)


def test_weights_of_losses_by_place_hold_one_sample_at_a_time():
    tokens, weight_B = FakeTokens([5, 17, 9, 12]), torch.tensor([1.0, -2.0, 0.5, 3.0])
    gradients = ProjectedGradients(tiny_base(), GradientSettings(adam="none", projection="none"))
    found = gradients.rows(pad_batch(tokens, ROWS), lambda sum_B, _: sum_B * weight_B)
    plain = gradients.rows(pad_batch(tokens, ROWS), lambda sum_B, _: sum_B)
    torch.testing.assert_close(found, plain * weight_B[:, None])


def test_float16_storage_rounds_unit_rows_only():
    model, tokens = tiny_model(), FakeTokens([5, 17, 9, 12])
    rows = {
        storage: GradientSignal(model, GradientSettings(dim=64, adam="none", storage=storage)).measure_batch(
            pad_batch(tokens, ROWS)
        )
        for storage in ("float16", "float32")
    }
    assert rows["float16"]["value"].dtype == np.float16
    np.testing.assert_array_equal(rows["float16"]["norm"], rows["float32"]["norm"])
    np.testing.assert_array_equal(rows["float16"]["value"], rows["float32"]["value"].astype(np.float16))


def test_zero_gradient_stays_a_zero_row():
    model, tokens = tiny_model(), FakeTokens([5, 6], unlabelled=[1])
    found = GradientSignal(model, GradientSettings(dim=64, adam="none")).measure_batch(pad_batch(tokens, [0, 1]))
    assert found["norm"][0] > 0
    assert found["norm"][1] == 0
    assert not found["value"][1].any()


def test_dropout_is_off_and_training_mode_returns():
    model, tokens = tiny_model(dropout=0.5), FakeTokens([5, 17, 9, 12])
    signal, batch = GradientSignal(model, GradientSettings(dim=64, adam="none")), pad_batch(tokens, ROWS)
    expected = signal.measure_batch(batch)["value"]
    model.train()
    np.testing.assert_array_equal(signal.measure_batch(batch)["value"], expected)
    assert model.training


def test_address_holds_what_changes_the_numbers_only():
    base = GradientSettings()
    assert base.address() == GradientSettings(token_budget=7, part_rows=3).address()
    for other in ({"dim": 64}, {"seed": 1}, {"adam": "none"}, {"storage": "float32"}, {"projection": "rademacher"}):
        assert GradientSettings(**other).address() != base.address()
    assert "dim" not in GradientSettings(projection="none").address()


def test_moments_missing_or_without_effect_are_refused():
    model = tiny_model()
    with pytest.raises(ConfigError, match="without optimizer moments"):
        GradientSignal(model, GradientSettings())
    with pytest.raises(ConfigError, match="no effect"):
        GradientSignal(model, GradientSettings(adam="none"), random_moments(model))


def test_moments_of_other_parameters_are_refused_by_name():
    moments = random_moments(tiny_model(targets=("q_proj",)))
    with pytest.raises(ArtifactError, match="4 parameters, the model trains 16; 12 differ"):
        GradientSignal(tiny_model(), GradientSettings(), moments)


def test_moments_come_back_from_their_file(tmp_path):
    model = tiny_model()
    moments = random_moments(model)
    tensors = {f"exp_avg.{name}": value for name, value in moments.exp_avg.items()}
    tensors |= {f"exp_avg_sq.{name}": value for name, value in moments.exp_avg_sq.items()}
    path = tmp_path / "moments.safetensors"
    save_file(tensors, path, metadata={"step": "10", "beta1": "0.9", "beta2": "0.999", "eps": "1e-08"})
    found = load_moments(path)
    assert (found.step, found.beta1, found.beta2, found.eps) == (10, 0.9, 0.999, 1e-8)
    assert set(found.exp_avg) == set(trainable(model))
    assert all(torch.equal(found.exp_avg_sq[name], value) for name, value in moments.exp_avg_sq.items())


def test_file_that_holds_no_moments_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        load_moments(tmp_path / "moments.safetensors")
    for name, write in {
        "text": lambda path: path.write_text("no"),
        "other": lambda path: save_file({"weight": torch.zeros(1)}, path),
        "bare": lambda path: save_file({"exp_avg.a": torch.zeros(1)}, path),
    }.items():
        write(tmp_path / name)
        with pytest.raises(ArtifactError, match="holds no optimizer moments"):
            load_moments(tmp_path / name)
