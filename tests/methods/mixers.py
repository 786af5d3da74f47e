"""Small domains, observations and trajectories for the tests of online mixers, and the laws that all of them keep."""

import json

import numpy as np
import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.core.mixing import Domains, MixState, Observation
from tests.helpers import FLOAT64

# K domains, S observations

NAMES = ("web", "code", "books", "math", "talk", "law")


def domains(num=3, num_tokens=None, vocab_size=8) -> Domains:
    num_tokens_K = np.arange(1, num + 1) * 1000 if num_tokens is None else np.array(num_tokens)
    return Domains(NAMES[:num], num_tokens_K // 10, num_tokens_K, vocab_size)


def losses(step, mean, num_tokens=None) -> Observation:
    """An observation of these means; None for a domain that was not in the batch."""
    num_K = np.array([0 if m is None else 7 for m in mean]) if num_tokens is None else np.array(num_tokens)
    return Observation(step, np.array([0.0 if m is None else m for m in mean]) * num_K, num_K)


def random_losses(num_steps, num=4, seed=0, every=1, missing=0.3) -> list[Observation]:
    rng = np.random.default_rng(seed)
    num_SK = rng.integers(1, 50, (num_steps, num)) * (rng.random((num_steps, num)) >= missing)
    sum_SK = rng.uniform(0, 4, (num_steps, num)) * num_SK
    return [Observation((s + 1) * every, sum_SK[s], num_SK[s]) for s in range(num_steps)]


def trajectory(mixer, seen, of=None) -> tuple[MixState, ...]:
    states = [mixer.start(of or domains(len(seen[0].num_tokens_K)))]
    for one in seen:
        states.append(mixer.update(states[-1], one))
    return tuple(states)


def stored(state) -> MixState:
    """The state as a file gives it back."""
    text = json.dumps([state.step, state.weight_K.tolist(), state.score_K.tolist()])
    step, weight, score = json.loads(text)
    return MixState(step, np.array(weight), np.array(score))


def assert_same(found, wanted) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.step == b.step
        np.testing.assert_array_equal(a.weight_K, b.weight_K)
        np.testing.assert_array_equal(a.score_K, b.score_K)


def assert_restart_changes_nothing(build, seen) -> None:
    """`build()`: a new mixer. Stopped and started again after each update, it goes through the same states."""
    whole, of = trajectory(build(), seen), domains(len(seen[0].num_tokens_K))
    states = [whole[0]]
    for one in seen:
        mixer = build()
        mixer.start(of)
        states.append(mixer.update(stored(states[-1]), one))
    assert_same(states, whole)


def assert_order_of_domains_does_not_matter(build, seen) -> None:
    num = len(seen[0].num_tokens_K)
    order, of = np.random.default_rng(3).permutation(num), domains(num)
    moved = Domains(tuple(of.names[i] for i in order), of.num_rows_K[order], of.num_tokens_K[order], of.vocab_size)
    moved_seen = [
        Observation(o.step, o.sum_K[order], o.num_tokens_K[order], None if o.load_KE is None else o.load_KE[order])
        for o in seen
    ]
    for a, b in zip(trajectory(build(), seen), trajectory(build(), moved_seen, moved), strict=True):
        np.testing.assert_allclose(a.weight_K[order], b.weight_K, **FLOAT64)
        np.testing.assert_allclose(a.score_K[order], b.score_K, **FLOAT64)


def assert_large_losses_are_taken(mixer, every=1) -> None:
    """A loss of 20, and one of 10,000 nats, gives weights that sum to 1 and prefer the domain that has it."""
    for loss in (20.0, 1e4):
        seen = [losses((s + 1) * every, [1.0, loss, 1.2]) for s in range(40)]
        for state in trajectory(mixer, seen):
            assert np.isfinite(state.weight_K).all()
            assert np.isfinite(state.score_K).all()
            assert state.weight_K.sum() == pytest.approx(1)
        assert state.weight_K.argmax() == 1


def assert_bad_losses_name_the_domain(mixer) -> None:
    state = mixer.start(domains())
    for bad in (np.nan, np.inf):
        with pytest.raises(DataError, match=f"domain 'code' is {bad} over 7 tokens at step 4"):
            mixer.update(state, losses(4, [1.0, bad, 2.0]))
