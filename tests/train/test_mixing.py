"""A mixer in the loop decides the same however a step is shared out, and its word has an effect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.mixing import Domains, Observation
from dataflex_tools.methods.doremi import Doremi, DoremiSettings
from dataflex_tools.methods.odm import Odm, OdmSettings
from dataflex_tools.methods.sheared_loading import ShearedLoading, ShearedLoadingSettings
from dataflex_tools.sampler.mixture_sampler import MixtureSampler
from dataflex_tools.train.mixing import Loop
from dataflex_tools.train.run import FitOptions, TrainingRun, run_training
from tests.train.conftest import FakeTokens, make_model, make_settings, make_tokens
from tests.train.test_run import KillBefore, Killed, assert_same_run

NAMES = ("code", "maths", "web")
STEPS = 12
# float32 losses summed in another order, carried on by Adam
SHARED_OUT = {"rtol": 2e-5, "atol": 1e-6}


class ConstantReference:
    """The same reference loss for every label token."""

    def __init__(self, tokens: FakeTokens, loss: float) -> None:
        self.tokens, self.loss = tokens, loss

    def of_rows(self, row_B: np.ndarray) -> np.ndarray:
        count = sum(int((self.tokens.labels(int(row))[1:] != -100).sum()) for row in row_B)
        return np.full(count, self.loss, np.float32)


def loop_for(mixer: Any, tokens: FakeTokens, **more: Any) -> Loop:
    num_labels_N = np.array([int((tokens.labels(row)[1:] != -100).sum()) for row in range(len(tokens))])
    domains = Domains(NAMES, np.bincount(tokens.group_N), np.bincount(tokens.group_N) * 9, vocab_size=64)
    if mixer.observes == "excess_loss":
        more.setdefault("reference", ConstantReference(tokens, 3.9))
    return Loop(mixer, domains, tokens.group_N, num_labels_N, **more)


def train(
    folder: Path, mixer: Any, *, callbacks: tuple[Any, ...] = (), loop: Loop | None = None,
    model: Callable[[], Any] = lambda: make_model(lora=False), **changes: Any,
) -> TrainingRun:  # fmt: skip
    tokens = make_tokens(30)
    settings = make_settings(**({"max_steps": STEPS, "save_steps": 4, "global_batch_size": 8} | changes))
    loop = loop or loop_for(mixer, tokens)
    weights = mixer.sampling_weights(loop.domains) if mixer.weighs_loss else mixer.start(loop.domains).weight_K
    rows_K = [np.flatnonzero(tokens.group_N == k) for k in range(3)]
    sampler = MixtureSampler(rows_K, (np.zeros(1, np.int64), weights[None]), seed=3)
    options = FitOptions(callbacks=callbacks, loop=loop)
    return run_training(model, tokens, sampler, settings, folder, options=options)


def doremi(**settings: Any) -> Doremi:
    return Doremi(DoremiSettings(**settings))


def odm(**settings: Any) -> Odm:
    return Odm(OdmSettings(**settings))


MIXERS: dict[str, Callable[[], Any]] = {"doremi": doremi, "official": lambda: doremi(variant="official"), "odm": odm}


def weights(run: TrainingRun) -> np.ndarray:
    return np.stack([state.weight_K for state in run.trajectory])


@pytest.mark.parametrize("name", MIXERS)
def test_weights_do_not_depend_on_how_a_step_is_shared_out(tmp_path: Path, name: str) -> None:
    whole = train(tmp_path / "1", MIXERS[name](), per_device_train_batch_size=8)
    parts = train(tmp_path / "4", MIXERS[name](), per_device_train_batch_size=2)
    assert len(whole.trajectory) == STEPS + 1
    np.testing.assert_allclose(weights(parts), weights(whole), **SHARED_OUT)
    np.testing.assert_array_equal(*(pq.read_table(run.ledger).column("row").to_numpy() for run in (whole, parts)))
    assert np.ptp(weights(whole), axis=0).max() > 1e-3  # it moved


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("step", [3, 6, 11])
def test_kill_and_resume_gives_the_same_weights_to_the_last_bit(tmp_path: Path, name: str, step: int) -> None:
    whole = train(tmp_path / "whole", MIXERS[name]())
    with pytest.raises(Killed):
        train(tmp_path / "killed", MIXERS[name](), callbacks=(KillBefore(step),))
    again = train(tmp_path / "killed", MIXERS[name]())
    np.testing.assert_array_equal(weights(again), weights(whole))
    assert_same_run(again, whole)


def test_a_resume_between_two_updates_keeps_what_was_counted(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", odm(update_every=5))
    with pytest.raises(Killed):
        train(tmp_path / "killed", odm(update_every=5), callbacks=(KillBefore(9),))  # the checkpoint is at step 8
    again = train(tmp_path / "killed", odm(update_every=5))
    assert [state.step for state in again.trajectory] == [0, 5, 10]
    np.testing.assert_array_equal(weights(again), weights(whole))


def losses_of(model: Any, tokens: FakeTokens, row: int) -> torch.Tensor:
    """Losses of one sample's label tokens, by itself."""
    ids, labels = torch.tensor(tokens.input_ids(row)[None].astype(np.int64)), torch.tensor(tokens.labels(row))
    logits = model(input_ids=ids).logits[0, :-1].float()
    return F.cross_entropy(logits[labels[1:] != -100], labels[1:][labels[1:] != -100], reduction="none")


@pytest.mark.parametrize("name", ["doremi", "official"])
@pytest.mark.parametrize("per_device", [8, 2])
def test_doremi_steps_are_the_papers_written_as_loops(tmp_path: Path, name: str, per_device: int) -> None:
    run = train(tmp_path, MIXERS[name](), per_device_train_batch_size=per_device, max_steps=4, lr_scheduler_type="constant",
                warmup_ratio=0.0, optim="sgd", learning_rate=0.1, max_grad_norm=1e9)  # fmt: skip
    tokens, model = make_tokens(30), make_model(lora=False)
    ledger = pq.read_table(run.ledger)
    alpha, score = np.full(3, 1 / 3), np.zeros(3)
    for step in range(1, 5):
        rows = ledger.filter(np.array(ledger["step"]) == step)["row"].to_pylist()
        per_row = {row: losses_of(model, tokens, row) for row in set(rows)}
        for k in range(3):
            excess = [max(float(loss) - 3.9, 0.0) for row in rows if tokens.group_N[row] == k for loss in per_row[row]]
            if excess:
                score[k] = sum(excess) / len(excess)
        raised = alpha * np.exp(score)
        alpha = 0.999 * raised / raised.sum() + 0.001 / 3
        np.testing.assert_allclose(run.trajectory[step].weight_K, alpha, rtol=1e-4)
        domains = {k: torch.cat([per_row[row] for row in rows if tokens.group_N[row] == k]) for k in range(3)
                   if any(tokens.group_N[row] == k for row in rows)}  # fmt: skip
        if name == "doremi":
            loss = sum(alpha[k] * losses.mean() for k, losses in domains.items())
        else:
            top = sum(3 * alpha[k] * losses.sum() for k, losses in domains.items())
            loss = top / sum(3 * alpha[k] * len(losses) for k, losses in domains.items())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad


def test_other_weights_give_another_loss(tmp_path: Path) -> None:
    runs = [train(tmp_path / str(eta), doremi(eta=eta), max_steps=3, logging_steps=1) for eta in (1e-9, 5.0)]
    first, second = (pq.read_table(run.log).column("loss").to_numpy() for run in runs)
    assert np.abs(first - second).min() > 1e-4


def test_what_odm_says_decides_the_next_batch(tmp_path: Path) -> None:
    class OnlyMaths(Odm):
        def update(self, state: Any, seen: Observation) -> Any:
            new = super().update(state, seen)
            weight_K = np.array([1e-12, 1.0, 1e-12]) if seen.step >= 4 else new.weight_K
            return type(new)(new.step, weight_K, new.score_K)

    run = train(tmp_path, OnlyMaths(OdmSettings()))
    ledger = pq.read_table(run.ledger)
    late = np.array(ledger["step"]) > 4
    assert set(np.array(ledger["domain"].to_pylist())[late]) == {"maths"}
    assert len(set(np.array(ledger["domain"].to_pylist())[~late])) == 3


def test_a_plain_odm_step_trains_on_the_mean_token_loss(tmp_path: Path) -> None:
    run = train(tmp_path, odm(), max_steps=1, logging_steps=1, per_device_train_batch_size=2)
    tokens, model = make_tokens(30), make_model(lora=False)
    rows = pq.read_table(run.ledger)["row"].to_pylist()
    with torch.no_grad():
        wanted = torch.cat([losses_of(model, tokens, row) for row in rows]).mean()
    np.testing.assert_allclose(pq.read_table(run.log)["loss"][0].as_py(), float(wanted), rtol=1e-4)  # logged rounded


def test_held_out_measuring_comes_at_its_steps_only(tmp_path: Path) -> None:
    calls = []

    def measure(model: Any, is_sharded: bool) -> Observation:
        calls.append(model)
        return Observation(0, np.array([3.0, 2.0, 5.0]), np.ones(3))

    references = dict.fromkeys(NAMES, 1.0)
    mixer = ShearedLoading(ShearedLoadingSettings(reference_losses=references, update_every=5))
    run = train(tmp_path, mixer, loop=loop_for(mixer, make_tokens(30), measure=measure))
    assert [state.step for state in run.trajectory] == [0, 5, 10]
    assert len(calls) == 2
    assert run.trajectory[-1].weight_K.argmax() == 2


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_domain(tmp_path: Path) -> None:
    tokens = make_tokens(30)
    reference = ConstantReference(tokens, float("nan"))
    with pytest.raises(DataError, match=r"code.*not finite at step 1"):
        train(tmp_path, doremi(), loop=loop_for(doremi(), tokens, reference=reference))
