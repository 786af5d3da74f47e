"""The loss of a batch whose domains have weights: against the vector, in parts, and its gradient."""

import numpy as np
import pytest
import torch

from dataflex_tools.ops.group_loss import domain_weighted_loss
from tests.helpers import FLOAT64, vector

DATA = vector("doremi_trajectory")
LAST = DATA["inputs"]["steps"][-1]
WANTED = DATA["expected"]["last_step_proxy_loss"]
ALPHA = np.array(DATA["expected"]["reference_trajectory"][-1]["alpha"])
UNIFORM = np.full(3, 1 / 3)
KINDS = ("paper", "official")


def counts(is_label_BT, domain_B, num=3):
    return np.bincount(np.asarray(domain_B), weights=is_label_BT.sum(dim=1).numpy(), minlength=num)


def vector_batch():
    is_label_BT = torch.tensor(LAST["token_mask"], dtype=torch.bool)
    domain_B = torch.tensor(LAST["domain_ids"])
    return torch.tensor(LAST["proxy_token_loss"], dtype=torch.float64), is_label_BT, domain_B


def random_batch(seed=0, num_rows=12, num=4, num_tokens=7):
    """Domain 2 is not there, and domain 1 has rows without a label."""
    rng = np.random.default_rng(seed)
    domain_B = torch.tensor(rng.choice([0, 1, 3], num_rows))
    is_label_BT = torch.tensor(rng.random((num_rows, num_tokens)) < 0.7) & (domain_B != 1)[:, None]
    loss_BT = torch.tensor(rng.uniform(0, 5, (num_rows, num_tokens)), requires_grad=True)
    return loss_BT, is_label_BT, domain_B, rng.dirichlet(np.ones(num)), rng.dirichlet(np.ones(num) * 9)


def test_the_losses_of_the_vector():
    batch = vector_batch()
    num_K = counts(batch[1], batch[2])
    cases = (
        ("paper", UNIFORM, WANTED["paper_sum_alpha_times_domain_mean"]),
        ("official", UNIFORM, WANTED["token_weighted_uniform_sampling"]),
        (
            "official",
            np.array(DATA["inputs"]["sampling_weights_nonuniform"]),
            WANTED["token_weighted_nonuniform_sampling"],
        ),
    )
    for kind, sampling_K, wanted in cases:
        found = domain_weighted_loss(*batch, ALPHA, num_K, kind=kind, sampling_K=sampling_K)
        assert found.item() == pytest.approx(wanted, rel=1e-12)


def by_loops(loss_BT, is_label_BT, domain_B, weight_K, sampling_K, kind):
    """Paper: sum over domains of weight x mean token loss. Official: every token weighted by alpha / q of its domain."""
    tokens = {}
    for loss_T, is_label_T, domain in zip(loss_BT, is_label_BT, domain_B.tolist(), strict=True):
        tokens.setdefault(domain, []).extend(loss for loss, is_label in zip(loss_T, is_label_T, strict=True) if is_label)
    tokens = {domain: losses for domain, losses in tokens.items() if losses}
    if kind == "paper":
        return sum(weight_K[i] * sum(losses) / len(losses) for i, losses in tokens.items())
    ratio = {i: weight_K[i] / sampling_K[i] for i in tokens}
    return sum(ratio[i] * sum(a) for i, a in tokens.items()) / sum(ratio[i] * len(a) for i, a in tokens.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_those_of_a_loop_over_domains(kind, seed):
    loss_BT, is_label_BT, domain_B, weight_K, sampling_K = random_batch(seed)
    num_K = counts(is_label_BT, domain_B, 4)
    found = domain_weighted_loss(loss_BT, is_label_BT, domain_B, weight_K, num_K, kind=kind, sampling_K=sampling_K)
    wanted = by_loops(loss_BT, is_label_BT, domain_B, weight_K, sampling_K, kind)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, loss_BT)[0].numpy() for loss in (found, wanted)]
    np.testing.assert_allclose(*gradients, **FLOAT64)
    assert not gradients[0][~is_label_BT.numpy()].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_add_up_to_the_batch(kind, size):
    loss_BT, is_label_BT, domain_B, weight_K, sampling_K = random_batch()
    more = {"kind": kind, "sampling_K": sampling_K}
    num_K = counts(is_label_BT, domain_B, 4)
    whole = domain_weighted_loss(loss_BT, is_label_BT, domain_B, weight_K, num_K, **more)
    parts = sum(
        domain_weighted_loss(
            loss_BT[i : i + size], is_label_BT[i : i + size], domain_B[i : i + size], weight_K, num_K, **more
        )
        for i in range(0, len(loss_BT), size)
    )
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, loss_BT)[0].numpy() for loss in (whole, parts)]
    np.testing.assert_allclose(*gradients, **FLOAT64)


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_give_another_loss_and_gradient(kind):
    loss_BT, is_label_BT, domain_B = vector_batch()
    loss_BT.requires_grad_()
    num_K, found = counts(is_label_BT, domain_B), []
    for weight_K in ([0.98, 0.01, 0.01], [0.01, 0.01, 0.98]):
        loss = domain_weighted_loss(loss_BT, is_label_BT, domain_B, weight_K, num_K, kind=kind, sampling_K=UNIFORM)
        found.append((loss.item(), torch.autograd.grad(loss, loss_BT)[0]))
    assert abs(found[0][0] - found[1][0]) > 0.05
    assert (found[0][1] - found[1][1]).abs().max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_positions_without_label_may_hold_anything(kind):
    loss_BT, is_label_BT, domain_B = vector_batch()
    num_K = counts(is_label_BT, domain_B)
    is_label_BT[1] = torch.tensor([True, False, True, False])
    found = []
    for filler in (0.0, float("nan"), float("inf")):
        filled = loss_BT.masked_fill(~is_label_BT, filler).requires_grad_()
        loss = domain_weighted_loss(filled, is_label_BT, domain_B, ALPHA, num_K, kind=kind, sampling_K=UNIFORM)
        assert torch.isfinite(torch.autograd.grad(loss, filled)[0]).all()
        found.append(loss.item())
    assert len(set(found)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_labels_has_no_loss_and_a_gradient_of_0(kind):
    loss_BT, is_label_BT, domain_B = vector_batch()
    loss_BT.requires_grad_()
    none_BT = torch.zeros_like(is_label_BT)
    loss = domain_weighted_loss(loss_BT, none_BT, domain_B, ALPHA, np.zeros(3), kind=kind, sampling_K=UNIFORM)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, loss_BT)[0].any()


def test_half_precision_losses_are_summed_in_float32():
    loss_BT, is_label_BT, domain_B = vector_batch()
    num_K = counts(is_label_BT, domain_B)
    found = domain_weighted_loss(loss_BT.bfloat16(), is_label_BT, domain_B, ALPHA, num_K, kind="paper", sampling_K=UNIFORM)
    assert found.dtype == torch.float32


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="loss kind 'papr', wanted 'paper' or 'official'"):
        domain_weighted_loss(*vector_batch(), ALPHA, np.ones(3), kind="papr", sampling_K=UNIFORM)
