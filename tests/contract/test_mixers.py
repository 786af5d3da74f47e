"""Laws for every registered mixer; a new one whose settings have defaults is tested without writing anything."""

import contextlib
import json
from typing import get_args

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.mixing import Domains, MixState, Observation, Observed
from dataflex_tools.methods import METHODS
from dataflex_tools.methods.base import Mixer, OnlineMixer, StaticMixer, SwarmMixer
from tests.helpers import FLOAT64

# K domains, E experts, S runs

NAMES = ("wiki", "code", "math", "chat")
TOKENS_K, ROWS_K = np.array([60_000, 25_000, 10_000, 5_000]), np.array([600, 300, 90, 60])
NUM_EXPERTS, NUM_UPDATES = 6, 8

# what has no default that fits any data, and what would take minutes by default
GIVEN = {
    "sheared_loading": {"reference_losses": {"wiki": 2.0, "code": 1.2, "math": 1.7, "chat": 2.4}},
    "regmix": {"num_runs": 24, "num_rounds": 20, "num_candidates": 2000, "num_best": 16, "num_folds": 3},
}

MIXERS = [name for name in METHODS.names() if issubclass(METHODS.find(name), Mixer)]
ONLINE = [name for name in MIXERS if issubclass(METHODS.find(name), OnlineMixer)]
HELD_OUT = ("held_out_loss", "router_load")  # all domains are there, or rows are missing

every_mixer = pytest.mark.parametrize("name", MIXERS)
every_online_mixer = pytest.mark.parametrize("name", ONLINE)


def build(name):
    cls = METHODS.find(name)
    return cls(from_mapping(cls.Settings, GIVEN.get(name, {}), where=name))


def domains(place=range(4)):
    place = list(place)
    return Domains(tuple(NAMES[k] for k in place), ROWS_K[place], TOKENS_K[place], vocab_size=50)


def seen_at(update, method, place=range(4), absent=()):
    """The observation of the update with this number, from 0, of domains in the order of `place`."""
    rng, place = np.random.default_rng(update), list(place)
    num_tokens_K = rng.integers(50, 500, 4)
    sum_K = rng.uniform(0.5, 3, 4) * num_tokens_K
    load_KE = rng.integers(1, 200, (4, NUM_EXPERTS)).astype(np.float64)
    for k in absent:
        num_tokens_K[k], sum_K[k], load_KE[k] = 0, 0.0, 0.0
    step = (update + 1) * method.update_every
    load = load_KE[place] if method.observes == "router_load" else None
    return Observation(step, sum_K[place], num_tokens_K[place], load)


def trajectory(name, updates=range(NUM_UPDATES), place=range(4), state=None):
    """The states of an online mixer, its start or the given state included."""
    method = build(name)
    start = method.start(domains(place))
    states = [start if state is None else state]
    for update in updates:
        states.append(method.update(states[-1], seen_at(update, method, place)))
    return states


def losses(weight_SK, place):
    """Held-out losses after trainings on the mixtures, the same of a domain wherever it stands."""
    level_K, fall_K = np.array([2.0, 1.5, 1.0, 3.0])[place], np.array([1.0, 2.0, 3.0, 0.2])[place]
    return level_K + fall_K * np.exp(-5 * weight_SK)


def mixture_of(name, place=range(4), seed=0):
    method, place, rng = build(name), list(place), np.random.default_rng(seed)
    if isinstance(method, StaticMixer):
        return method.mix(domains(place), rng=rng)
    if isinstance(method, SwarmMixer):
        weight_SK = method.mixtures(domains(place), rng=rng)
        return method.fit(domains(place), weight_SK, losses(weight_SK, place), rng=rng)
    return method.finish(domains(place), tuple(trajectory(name, place=place)))


def through_json(state):
    values = json.loads(json.dumps([state.step, state.weight_K.tolist(), state.score_K.tolist()], allow_nan=False))
    return MixState(values[0], np.array(values[1]), np.array(values[2]))


def assert_same_states(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.step == b.step
        np.testing.assert_array_equal(a.weight_K, b.weight_K)
        np.testing.assert_array_equal(a.score_K, b.score_K)


def assert_proportions(weight_SK):
    assert np.isfinite(weight_SK).all()
    assert (weight_SK >= 0).all()
    np.testing.assert_allclose(weight_SK.sum(axis=1), 1, **FLOAT64)


@every_mixer
def test_it_decides_proportions_of_the_domains_from_the_first_step_on(name):
    mixture = mixture_of(name)
    assert mixture.names == NAMES
    assert mixture.step_S[0] == 0
    assert_proportions(mixture.weight_SK)


@every_mixer
def test_facts_are_json_and_tables_are_columns(name):
    mixture = mixture_of(name)
    json.dumps(dict(mixture.facts), allow_nan=False)
    for columns in mixture.tables.values():
        assert len({np.asarray(column).shape for column in columns.values()}) == 1
        assert all(np.asarray(column).ndim == 1 for column in columns.values())


@every_mixer
def test_the_same_seed_and_the_same_losses_give_the_same_mixture(name):
    first, second = mixture_of(name, seed=7), mixture_of(name, seed=7)
    np.testing.assert_array_equal(first.weight_SK, second.weight_SK)
    np.testing.assert_array_equal(first.step_S, second.step_S)


@every_mixer
@pytest.mark.parametrize("place", [(3, 2, 1, 0), (1, 3, 0, 2)])
def test_domains_in_another_order_get_the_same_weights(name, place):
    np.testing.assert_allclose(mixture_of(name, place).weight_SK, mixture_of(name).weight_SK[:, place], **FLOAT64)


@pytest.mark.parametrize("name", [name for name in MIXERS if issubclass(METHODS.find(name), SwarmMixer)])
def test_a_swarm_is_as_many_different_proportions_as_asked_for(name):
    method = build(name)
    weight_SK = method.mixtures(domains(), rng=np.random.default_rng(0))
    assert weight_SK.shape == (method.settings.num_runs, 4)
    assert_proportions(weight_SK)
    assert len(np.unique(weight_SK, axis=0)) == len(weight_SK)


@every_online_mixer
def test_each_state_has_proportions_and_the_step_that_was_seen(name):
    method, states = build(name), trajectory(name)
    assert method.update_every >= 1
    assert method.observes in get_args(Observed)
    assert [state.step for state in states] == [update * method.update_every for update in range(NUM_UPDATES + 1)]
    assert_proportions(np.stack([state.weight_K for state in states]))
    assert all(np.isfinite(state.score_K).all() and state.score_K.shape == (4,) for state in states)
    assert_proportions(method.sampling_weights(domains())[None])


@every_online_mixer
def test_what_was_seen_moves_the_weights(name):
    first, last = trajectory(name)[0], trajectory(name)[-1]
    assert np.abs(first.weight_K - last.weight_K).max() > 1e-6


@every_online_mixer
def test_an_update_leaves_what_it_reads_and_gives_the_same_again(name):
    method = build(name)
    state, seen = method.start(domains()), seen_at(0, method)
    for array in (state.weight_K, state.score_K, seen.sum_K, seen.num_tokens_K, seen.load_KE):
        if array is not None:
            array.setflags(write=False)
    assert_same_states([method.update(state, seen)], [method.update(state, seen)])


@every_online_mixer
@pytest.mark.parametrize("stopped_after", [0, 1, NUM_UPDATES - 1])
def test_a_restart_from_a_stored_state_gives_the_same_trajectory(name, stopped_after):
    states = trajectory(name)
    rest = trajectory(name, range(stopped_after, NUM_UPDATES), state=through_json(states[stopped_after]))
    assert_same_states(states[stopped_after:], rest)


@every_online_mixer
@pytest.mark.parametrize("absent", [(2,), (0, 1, 3)])
def test_a_domain_missing_from_a_batch_does_no_harm_and_from_held_out_rows_is_named(name, absent):
    method = build(name)
    state = method.update(method.start(domains()), seen_at(0, method))
    if method.observes in HELD_OUT:
        refused = pytest.raises(DataError, match=repr(NAMES[absent[0]]))
    else:
        refused = contextlib.nullcontext()
    with refused:
        state = method.update(state, seen_at(1, method, absent=absent))
    assert_proportions(state.weight_K[None])
    assert np.isfinite(state.score_K).all()


@every_online_mixer
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_domain(name):
    method = build(name)
    state, seen = method.start(domains()), seen_at(0, method)
    seen.sum_K[1] = np.nan
    if seen.load_KE is not None:
        seen.load_KE[1] = np.nan
    with pytest.raises(DataError, match="'code'"):
        method.update(state, seen)


@every_online_mixer
@pytest.mark.parametrize("loss", [0.0, 20.0, 1e4])
def test_no_size_of_the_losses_overflows(name, loss):
    method = build(name)
    state = method.start(domains())
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for update in range(3):
            seen = seen_at(update, method)
            loss_K = np.array([loss, 1.0, 0.0, loss / 2])
            state = method.update(state, Observation(seen.step, loss_K * seen.num_tokens_K, seen.num_tokens_K, seen.load_KE))
    assert_proportions(state.weight_K[None])
