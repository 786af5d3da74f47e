"""Projections: linear, unbiased, with the error theory gives, and a function of seed and module name alone."""

import numpy as np
import pytest
import torch

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.sketch import make_projection
from tests.helpers import vector

VECTOR = vector("projection_scaling")
SIZES = {"a": 1000, "b": 37, "c": 260}
DIM = 64
RELEASED_COLUMN = [0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 0, 1]
RELEASED_SIGN = [1, 1, -1, -1, -1, -1, 1, -1, 1, 1, -1, 1]
RELEASED_DENSE = [[1, 1, 1, 1, -1, -1, 1, 1], [-1, 1, 1, 1, -1, -1, 1, -1]]


def project(name, grads, *, dim=DIM, seed=0, order=None):
    projection = make_projection(name, {key: value.shape[1] for key, value in grads.items()}, dim, seed=seed)
    out = torch.zeros(len(next(iter(grads.values()))), projection.dim)
    for key in order or grads:
        projection.add(out, grads[key], key)
    return out


def random_grads(num_samples, sizes=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(num_samples, size, generator=generator) for key, size in (sizes or SIZES).items()}


def matrix_of(name, size, *, dim=DIM, seed=0, module="a"):
    return project(name, {module: torch.eye(size)}, dim=dim, seed=seed).numpy()


@pytest.mark.parametrize("name", ["sketch", "rademacher"])
def test_projection_is_the_matrix_product_summed_over_modules(name):
    grads = random_grads(3)
    expected = sum(grads[key].numpy() @ matrix_of(name, SIZES[key], module=key) for key in SIZES)
    np.testing.assert_allclose(project(name, grads).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_sketch_column_has_one_sign_and_a_chunk_never_meets_itself():
    matrix = matrix_of("sketch", 1000)
    np.testing.assert_array_equal(np.abs(matrix).sum(1), np.ones(1000))
    np.testing.assert_array_equal(np.abs(matrix[:DIM]).sum(0), np.ones(DIM))
    assert set(np.unique(matrix)) == {-1.0, 0.0, 1.0}
    assert abs(matrix.sum()) < 4 * 1000**0.5


def test_rademacher_entries_are_balanced_signs_over_root_dim():
    matrix = matrix_of("rademacher", 500) * DIM**0.5
    np.testing.assert_allclose(np.abs(matrix), 1.0, rtol=1e-6)
    assert abs(matrix.mean()) < 4 / matrix.size**0.5
    assert np.abs(matrix.T @ matrix / 500 - np.eye(DIM)).max() < 6 / 500**0.5


@pytest.mark.parametrize("name", ["sketch", "rademacher"])
@pytest.mark.parametrize("dim", [64, 256])
def test_inner_product_error_is_unbiased_and_one_over_root_dim(name, dim):
    sizes = {"a": 1500, "b": 300, "c": 40}
    grads = random_grads(2, sizes)
    full = torch.cat(list(grads.values()), dim=1).double()
    full /= full.norm(dim=1, keepdim=True)
    exact = float(full[0] @ full[1])
    scale = torch.cat(list(grads.values()), dim=1).norm(dim=1).prod()
    trials = 200
    errors = []
    for seed in range(trials):
        out = project(name, grads, dim=dim, seed=seed).double()
        errors.append(float(out[0] @ out[1] / scale) - exact)
    spread = np.std(errors)
    assert abs(np.mean(errors)) < 4 * spread / trials**0.5
    assert 0.8 < spread * dim**0.5 < 1.2  # std of the std over 200 trials is 5 %


def test_rotations_of_two_chunks_meet_with_probability_one_over_dim():
    # two parameters at the same place of different chunks: the worst case of a fixed fold
    meets = [
        np.array_equal(np.flatnonzero(matrix[0]), np.flatnonzero(matrix[8]))
        for matrix in (matrix_of("sketch", 16, dim=8, seed=seed) for seed in range(800))
    ]
    assert abs(np.mean(meets) - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 800) ** 0.5


@pytest.mark.parametrize("name", ["sketch", "rademacher"])
def test_same_row_for_any_batch_and_module_order(name):
    grads = random_grads(5)
    whole = project(name, grads)
    alone = torch.cat([project(name, {key: grads[key][row : row + 1] for key in grads}) for row in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole, project(name, grads, order=["c", "a", "b"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sketch", "rademacher"])
def test_seed_and_module_name_decide_the_numbers(name):
    base = matrix_of(name, 200)
    np.testing.assert_array_equal(base, matrix_of(name, 200))
    assert not np.array_equal(base, matrix_of(name, 200, seed=1))
    assert not np.array_equal(base, matrix_of(name, 200, module="b"))


def test_sketch_numbers_stay_as_they_were_released():
    # stored features of different releases must stay comparable
    matrix = matrix_of("sketch", 12, dim=5)
    np.testing.assert_array_equal(np.abs(matrix).argmax(1), RELEASED_COLUMN)
    np.testing.assert_array_equal(matrix.sum(1), RELEASED_SIGN)


def test_rademacher_numbers_stay_as_they_were_released():
    np.testing.assert_array_equal(np.sign(matrix_of("rademacher", 2, dim=8)), RELEASED_DENSE)


def test_gather_used_on_a_gpu_gives_the_slices_used_on_a_cpu():
    grads = random_grads(3)
    sketch = make_projection("sketch", SIZES, DIM, seed=0)
    out = torch.zeros(3, DIM)
    for key, grad in grads.items():
        sign, shift, _ = sketch._hashes(key, grad.device)
        chunks = len(shift)
        column = (np.arange(DIM) - np.array(shift)[:, None]) % DIM + np.arange(chunks)[:, None] * DIM
        sketch._cache[key, grad.device] = sign, shift, torch.from_numpy(column.ravel().astype(np.int32))
        sketch.add(out, grad, key)
    torch.testing.assert_close(out, project("sketch", grads), rtol=1e-5, atol=1e-5)


def test_none_keeps_the_gradient_in_the_given_order():
    grads = random_grads(2)
    out = project("none", grads, order=["c", "b", "a"])
    assert torch.equal(out, torch.cat(list(grads.values()), dim=1))


def test_scaling_by_root_dim_keeps_the_exact_inner_product():
    given, expected = VECTOR["inputs"], VECTOR["expected"]
    matrix = np.array(given["P"]) / np.sqrt(len(given["P"][0]))
    x, y = np.array(given["x"]) @ matrix, np.array(given["y"]) @ matrix
    assert abs(x @ y - expected["scaled_by_inv_sqrt_k_dot"]) < VECTOR["tolerance"]
    dense = np.abs(matrix_of("rademacher", 3, dim=4))
    np.testing.assert_allclose(dense, np.abs(matrix), rtol=1e-6)


def test_unknown_projection_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'sketch'"):
        make_projection("scetch", SIZES, DIM, seed=0)
