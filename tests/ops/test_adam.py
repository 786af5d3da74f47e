"""Adam directions against the shared vector, torch.optim.Adam and a loop."""

import pytest
import torch

from dataflex_tools.ops.adam import CONVENTIONS, AdamScaling, adam_direction
from tests.helpers import vector

VECTOR = vector("less_adam_gamma")
EXPECTED = {
    "optimizer_exact": "gamma_true_adam_step_bias_corrected_with_t_plus_1",
    "less_official": "gamma_eps_inside_no_bias_correction",
    "dataflex": "gamma_eps_outside_no_bias_correction",
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_convention_gives_the_vector(convention):
    given = VECTOR["inputs"]
    g, m, v = (torch.tensor(given[name], dtype=torch.float64) for name in ("g", "m", "v"))
    found = adam_direction(g, m, v, step=given["step_t"], convention=convention)
    expected = torch.tensor(VECTOR["expected"][EXPECTED[convention]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=VECTOR["tolerance"])


def test_optimizer_exact_is_the_step_torch_adam_takes():
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1.0, betas=(0.8, 0.95), eps=1e-5)
    for _ in range(7):
        weight.grad = torch.randn(50, generator=generator, dtype=torch.float64) * 1e-4
        adam.step()
    state = adam.state[weight]
    m, v = state["exp_avg"].clone(), state["exp_avg_sq"].clone()
    before, g = weight.detach().clone(), torch.randn(50, generator=generator, dtype=torch.float64) * 1e-4
    found = adam_direction(g, m, v, step=7, beta1=0.8, beta2=0.95, eps=1e-5)
    weight.grad = g
    adam.step()
    torch.testing.assert_close(found, before - weight.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_batched_in_place_equals_the_formula_one_by_one(convention):
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    m, v = torch.randn(30, generator=generator, dtype=torch.float64), torch.rand(30, generator=generator).double()
    given = {"step": 3, "beta1": 0.7, "beta2": 0.9, "eps": 1e-3, "convention": convention}
    expected = torch.empty_like(g)
    b1, b2, eps = (0.7, 0.9, 1e-3) if convention == "optimizer_exact" else (0.9, 0.999, 1e-8)
    for row in range(4):
        for column in range(30):
            first = b1 * m[column] + (1 - b1) * g[row, column]
            second = b2 * v[column] + (1 - b2) * g[row, column] ** 2
            if convention == "optimizer_exact":
                first, second = first / (1 - b1**4), second / (1 - b2**4)
            is_inside = convention == "less_official"
            expected[row, column] = first / ((second + eps).sqrt() if is_inside else second.sqrt() + eps)
    before = g.clone()
    torch.testing.assert_close(adam_direction(g, m, v, **given), expected, rtol=1e-12, atol=0)
    assert torch.equal(g, before)
    assert AdamScaling(m, v, **given).apply_(g) is g
    torch.testing.assert_close(g, expected, rtol=1e-12, atol=0)


def test_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="optimizer_exact"):
        AdamScaling(torch.zeros(1), torch.zeros(1), step=1, convention="adamw")
