"""Reward gradients: those of a policy whose exact gradient is known, and the same rows whatever runs beside or before."""

import hashlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.score import reward_gradient
from dataflex_tools.score.answers import Answers, StoredAnswers
from dataflex_tools.score.reward_gradient import RewardGradientSignal, answer_weights, measure_rewards
from dataflex_tools.score.rewards.stored import StoredRewards
from dataflex_tools.score.settings import GenerationSettings, GradientSettings, RewardGradientSettings, RewardSettings
from tests.helpers import vector
from tests.score.builders import trainable
from tests.score.reward_builders import IidPolicy, SamePrompt, Target

# the vector is float64, gradients are float32
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
EXACT = RewardSettings(kind="exact_match")
PLAIN = GradientSettings(adam="none", projection="none", storage="float32")
FEW = GenerationSettings(num_answers=6, max_new_tokens=6)


class LengthReward:
    """Worth its length; `limit` answers can be asked for before the process is killed."""

    def __init__(self, limit=None):
        self.asked, self._limit = [], limit

    def __call__(self, requests):
        for index, request in enumerate(requests):
            if self._limit is not None and len(self.asked) == self._limit:
                raise KeyboardInterrupt
            self.asked.append(request.key)
            yield index, float(len(request.answer) % 7)


@pytest.fixture
def length_reward(monkeypatch):
    reward = LengthReward()
    monkeypatch.setattr(reward_gradient, "open_reward", lambda _: reward)
    return reward


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return Target(tmp_path_factory.mktemp("target"))


def settings_of(**changes):
    return RewardGradientSettings(**{"reward": EXACT, "generation": FEW, **changes})


def signal_of(target, cache, *, gradient=PLAIN, **changes):
    return RewardGradientSignal(target.model(), target.prompts, gradient, settings_of(**changes), policy="p", cache=cache)


def open_store(folder, signal):
    return SignalStore(folder, {"kind": signal.kind, "settings": dict(signal.settings)}, signal.columns)


def raw_rows(columns):
    return columns["value"] * columns["norm"][:, None]


def by_id(store, target):
    found = {}
    for row_B, value_BD, norm_B in store.rows(target.tokens.ids_N16).blocks():
        for row, value_D, norm in zip(row_B, value_BD, norm_B, strict=True):
            found[target.tokens.ids_N16[row].tobytes()] = value_D * norm
    return np.stack([found[key] for key in sorted(found)])


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*"))}


def test_gradient_is_that_of_the_published_numbers(monkeypatch, tmp_path):
    case = vector("nice_policy_gradient")
    given = case["inputs"]
    sequences = tuple(np.array(ids, np.int32) for ids in given["sequences"])
    monkeypatch.setattr(StoredAnswers, "of", lambda *_: Answers(sequences, sequences))
    monkeypatch.setattr(StoredRewards, "of", lambda _, requests: np.tile(given["rewards"], len(requests) // 4))
    for changes, expected in (
        ({}, case["expected"]["vanilla_sum_official"]),
        ({"variant": "rejection"}, case["expected"]["vanilla_sum_official"]),
        ({"variant": "topk", "topk": given["topk"]}, case["expected"]["topk_sum"]),
        # published as a mean over the four answers; here it is their sum
        ({"baseline": "mean"}, 4 * np.array(case["expected"]["mean_reward_baseline_variant"])),
    ):
        settings = settings_of(generation=GenerationSettings(num_answers=4), **changes)
        signal = RewardGradientSignal(
            IidPolicy(given["theta"]), SamePrompt(end_ids=()), PLAIN, settings, policy="p", cache=tmp_path
        )  # fmt: skip
        found = raw_rows(signal.measure_batch({"rows": torch.tensor([0, 5])}))
        np.testing.assert_allclose(found, [expected, expected], **FLOAT32)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_mean_over_draws_is_the_exact_gradient(monkeypatch, tmp_path, baseline):
    theta = np.array([0.2, -0.1, 0.4])
    worth = {"": 0.3, "1": -0.5, "2": 0.1, "1 1": 1.0, "1 2": 0.2, "2 1": 2.0, "2 2": -1.0}
    monkeypatch.setattr(
        reward_gradient, "open_reward", lambda _: lambda requests: ((i, worth[r.answer]) for i, r in enumerate(requests))
    )
    prob = np.exp(theta) / np.exp(theta).sum()
    exact = np.zeros(3)
    for answer in [(0,), *itertools.product((1, 2), range(3))]:
        reward = worth[" ".join(str(token) for token in answer if token)]
        exact += np.prod(prob[list(answer)]) * reward * sum(prob - np.eye(3)[token] for token in answer)
    num_answers, num_prompts = 40, 150
    generation = GenerationSettings(num_answers=num_answers, max_new_tokens=2)
    settings = settings_of(generation=generation, baseline=baseline)
    signal = RewardGradientSignal(IidPolicy(theta), SamePrompt(), PLAIN, settings, policy="p", cache=tmp_path)
    found = raw_rows(signal.measure_batch({"rows": torch.arange(num_prompts)}))
    # the mean of S rewards holds each answer's own: one part in S of the gradient is lost
    expected = exact * (num_answers if baseline == "zero" else num_answers - 1)
    error = found.std(axis=0) / np.sqrt(num_prompts)
    assert (np.abs(found.mean(axis=0) - expected) < 4 * error).all()
    assert (np.abs(expected) > 10 * error).any()


def test_gradient_is_one_backward_per_answer_of_the_generated_ids(target, tmp_path, length_reward):
    signal = signal_of(target, tmp_path, baseline="mean")
    found = raw_rows(signal.measure_batch({"rows": torch.tensor([0, 3])}))
    model = target.model()
    stored = StoredAnswers(None, FEW, policy="p", cache=tmp_path)
    for index, row in enumerate((0, 3)):
        prompt, total = target.prompts[row], 0.0
        answers = stored.of(prompt)
        rewards = [float(len(text) % 7) for text in answers.texts(prompt, target.tokenizer)]
        for ids, reward in zip(answers.token_ids, rewards, strict=True):
            sequence = torch.tensor([[*prompt.input_ids.tolist(), *ids.tolist()]])
            log_prob = model(input_ids=sequence).logits[0].log_softmax(1)
            start = len(prompt.input_ids) - 1
            nll = -sum(log_prob[start + step, token] for step, token in enumerate(ids.tolist()))
            total = total + (reward - np.mean(rewards)) * nll
        values = torch.autograd.grad(total, list(trainable(model).values()))
        expected = torch.cat([value.flatten() for value in values]).numpy()
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=2e-5)


def test_equal_rewards_under_the_mean_baseline_are_exactly_zero(monkeypatch, target, tmp_path):
    # the mean of twenty times 0.1 is not 0.1
    monkeypatch.setattr(reward_gradient, "open_reward", lambda _: lambda rs: ((i, 0.1) for i, _ in enumerate(rs)))
    signal = signal_of(target, tmp_path, baseline="mean", generation=GenerationSettings(max_new_tokens=3))
    found = signal.measure_batch({"rows": torch.tensor([0])})
    assert found["norm"][0] == 0
    assert not found["value"].any()
    assert found["reward_mean"][0] == pytest.approx(0.1)


def test_variants_drop_answers_and_keep_the_baseline_of_all():
    reward = np.array([2.0, -1.0, 0.0, 2.0, 1.0])
    for changes, expected in (
        ({}, reward),
        ({"variant": "rejection"}, [2, 0, 0, 2, 1]),
        ({"variant": "topk", "topk": 1}, [2, 0, 0, 0, 0]),  # of equal rewards the first
        ({"variant": "topk", "topk": 3}, [2, 0, 0, 2, 1]),
        ({"baseline": "mean"}, reward - 0.8),
        ({"baseline": "mean", "variant": "rejection"}, [1.2, 0, 0, 1.2, 0.2]),
    ):
        np.testing.assert_allclose(answer_weights(reward, settings_of(**changes)), expected)


@pytest.mark.parametrize(("budget", "part_rows"), [(1, 1), (60, 4), (10_000, 100)])
def test_batch_and_part_size_change_nothing(target, tmp_path, length_reward, budget, part_rows):
    found = []
    for name, gradient, rows in (("a", PLAIN, 2), ("b", GradientSettings(adam="none", projection="none", storage="float32",
                                                                         token_budget=budget), part_rows)):  # fmt: skip
        signal = signal_of(target, tmp_path / name, gradient=gradient, part_rows=rows)
        measure_rewards(signal, store := open_store(tmp_path / name / "s", signal), title="test")
        found.append(by_id(store, target))
        files = sorted((tmp_path / name / "answers").rglob("*.arrow"))
        found.append([file.read_bytes() for file in files])
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-4)
    assert found[3] == found[1]


def test_order_of_the_samples_changes_nothing(target, tmp_path, length_reward):
    turned, found = Target(target.folder, order=[3, 0, 5, 1, 4, 2]), []
    for name, each in (("a", target), ("b", turned)):
        signal = signal_of(each, tmp_path / name)
        measure_rewards(signal, store := open_store(tmp_path / name / "s", signal), title="test")
        found.append(by_id(store, each))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_killed_run_resumes_to_the_same_bytes_and_asks_nothing_twice(target, tmp_path, length_reward, monkeypatch):
    signal = signal_of(target, tmp_path / "whole", part_rows=2)
    measure_rewards(signal, open_store(tmp_path / "whole" / "s", signal), title="test")
    killed = LengthReward(limit=len(length_reward.asked) * 2 // 3)
    monkeypatch.setattr(reward_gradient, "open_reward", lambda _: killed)
    signal = signal_of(target, tmp_path / "killed", part_rows=2)
    with pytest.raises(KeyboardInterrupt):
        measure_rewards(signal, open_store(tmp_path / "killed" / "s", signal), title="test")
    assert 0 < len(bytes_of(tmp_path / "killed" / "s")) < 3
    resumed = LengthReward()
    monkeypatch.setattr(reward_gradient, "open_reward", lambda _: resumed)
    signal = signal_of(target, tmp_path / "killed", part_rows=2)
    measure_rewards(signal, open_store(tmp_path / "killed" / "s", signal), title="test")
    assert bytes_of(tmp_path / "killed" / "s") == bytes_of(tmp_path / "whole" / "s")
    assert sorted(killed.asked + resumed.asked) == sorted(length_reward.asked)


def test_a_complete_signal_and_a_lost_signal_ask_nothing(target, tmp_path, length_reward):
    signal = signal_of(target, tmp_path)
    assert measure_rewards(signal, store := open_store(tmp_path / "s", signal), title="test") == 6
    asked = len(length_reward.asked)
    assert measure_rewards(signal, store, title="test") == 0
    signal = signal_of(target, tmp_path, baseline="mean")  # another signal of the same answers and rewards
    assert measure_rewards(signal, open_store(tmp_path / "t", signal), title="test") == 6
    assert len(length_reward.asked) == asked


def test_ranks_together_write_what_one_rank_writes(target, tmp_path, length_reward, monkeypatch):
    signal = signal_of(target, tmp_path / "one", part_rows=2)
    measure_rewards(signal, open_store(tmp_path / "one" / "s", signal), title="test")
    here, meeting = threading.local(), threading.Barrier(2, timeout=60)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: here.rank)
    monkeypatch.setattr(dist, "is_main", lambda: here.rank == 0)
    monkeypatch.setattr(dist, "barrier", meeting.wait)
    turn = threading.Lock()

    def run(rank):
        here.rank = rank
        with turn:
            own = signal_of(target, tmp_path / "two", part_rows=2)
            store = open_store(tmp_path / "two" / "s", own)
        return measure_rewards(own, store, title="test")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [6, 6]
    assert bytes_of(tmp_path / "two" / "s") == bytes_of(tmp_path / "one" / "s")
    assert {path.name for path in (tmp_path / "two" / "rewards").rglob("*")} >= {"rank-0.jsonl", "rank-1.jsonl"}


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_rewards_without_any_difference_are_an_error_now_and_on_the_next_run(target, tmp_path, baseline):
    for _ in range(2):
        signal = signal_of(target, tmp_path, baseline=baseline)  # no answer is an exact match
        with pytest.raises(DataError, match="each of the 6 target prompts got the same reward.*nothing to learn from"):
            measure_rewards(signal, open_store(tmp_path / "s", signal), title="test")


def test_one_prompt_with_a_difference_is_enough(target, tmp_path, monkeypatch):
    first = target.prompts[0].messages

    def reward(requests):
        return ((i, float(i % 2 and r.messages == first)) for i, r in enumerate(requests))

    monkeypatch.setattr(reward_gradient, "open_reward", lambda _: reward)
    signal = signal_of(target, tmp_path)
    measure_rewards(signal, store := open_store(tmp_path / "s", signal), title="test")
    assert (np.linalg.norm(by_id(store, target), axis=1) > 0).sum() == 1


def test_adam_scaling_is_refused(target, tmp_path):
    with pytest.raises(ConfigError, match="not scaled by Adam"):
        signal_of(target, tmp_path, gradient=GradientSettings())


def test_drawing_from_another_distribution_is_said(target, tmp_path, caplog):
    signal_of(target, tmp_path)
    assert "biased" not in caplog.text
    signal_of(target, tmp_path, generation=GenerationSettings(temperature=1.2))
    assert "biased" in caplog.text
