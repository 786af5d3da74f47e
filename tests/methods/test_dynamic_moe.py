"""Dynamic MoE against the vector, against loops written from the paper, and what its users rely on."""

import math

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.mixing import Observation
from dataflex_tools.methods.dynamic_moe import DynamicMoe, DynamicMoeSettings, mean_distances
from tests.helpers import FLOAT64, vector
from tests.methods.builders import cosine
from tests.methods.mixers import (
    NAMES,
    assert_order_of_domains_does_not_matter,
    assert_restart_changes_nothing,
    domains,
    trajectory,
)

DATA = vector("moe_gate_load_mixer")
LOADS = np.array(DATA["inputs"]["raw_loads"])
INITIAL = dict(zip(NAMES, DATA["inputs"]["weights"], strict=False))


def moe(**settings):
    return DynamicMoe(DynamicMoeSettings(**settings))


def routed(step, load_KE):
    num = len(load_KE)
    return Observation(step, np.zeros(num), np.zeros(num), np.asarray(load_KE, dtype=np.float64))


def random_loads(num_updates, num=4, num_experts=6, seed=0):
    rng = np.random.default_rng(seed)
    return [routed(100 * (s + 1), rng.integers(1, 200, (num, num_experts))) for s in range(num_updates)]


def test_distances_are_those_of_public_code():
    np.testing.assert_allclose(mean_distances(LOADS, kind="l2"), DATA["expected"]["delta_l2"], **FLOAT64)
    np.testing.assert_allclose(mean_distances(LOADS, kind="cos"), DATA["expected"]["delta_cos"], **FLOAT64)


def test_weights_are_those_of_public_code():
    wanted = DATA["expected"]
    states = trajectory(moe(initial=INITIAL), [routed(100, LOADS), routed(200, LOADS)])
    np.testing.assert_allclose(states[0].weight_K, DATA["inputs"]["weights"], **FLOAT64)
    np.testing.assert_allclose(states[1].weight_K, wanted["new_weights"], **FLOAT64)
    np.testing.assert_allclose(states[2].weight_K, wanted["new_weights_second_update_same_loads"], **FLOAT64)
    states = trajectory(moe(initial=INITIAL, distance="cos"), [routed(100, LOADS)])
    np.testing.assert_allclose(states[1].weight_K, wanted["new_weights_cos"], **FLOAT64)


def naive(seen, weight, distance, eta, smoothing):
    """Algorithm 1 of the paper in loops."""
    num, found = len(weight), []
    for one in seen:
        share = [[x / sum(row) for x in row] for row in one.load_KE.tolist()]
        delta = []
        for a in share:
            apart = [math.dist(a, b) if distance == "l2" else 1 - cosine(a, b) for b in share]
            delta.append(sum(apart) / num)
        raised = [w * math.exp(eta * d) for w, d in zip(weight, delta, strict=True)]
        weight = [(1 - smoothing) * r / sum(raised) + smoothing / num for r in raised]
        found.append(weight)
    return found


@pytest.mark.parametrize("distance", ["l2", "cos"])
def test_it_is_the_algorithm_of_the_paper(distance):
    seen = random_loads(10)
    states = trajectory(moe(distance=distance, eta=7.0, smoothing=0.1), seen)
    np.testing.assert_allclose([s.weight_K for s in states[1:]], naive(seen, [0.25] * 4, distance, 7.0, 0.1), **FLOAT64)


def test_an_anchored_mixer_does_not_drift():
    states = trajectory(moe(initial=INITIAL, anchored=True), [routed(100 * (s + 1), LOADS) for s in range(5)])
    for state in states[1:]:
        np.testing.assert_allclose(state.weight_K, DATA["expected"]["new_weights"], **FLOAT64)


def test_how_many_tokens_were_counted_does_not_matter():
    once, more = (trajectory(moe(), [routed(100, loads)])[1] for loads in (LOADS, LOADS * [[1], [3], [50]]))
    np.testing.assert_allclose(once.weight_K, more.weight_K, **FLOAT64)


@pytest.mark.parametrize("anchored", [False, True])
def test_laws(anchored):
    build = lambda: moe(anchored=anchored, initial="natural")  # noqa: E731
    assert_restart_changes_nothing(build, random_loads(8))
    assert_order_of_domains_does_not_matter(build, random_loads(8))


def test_the_plan_is_the_schedule_unless_told_otherwise():
    states = trajectory(moe(), random_loads(3))
    assert moe().finish(domains(4), states).step_S.tolist() == [0, 100, 200, 300]
    assert moe(follow="mean").finish(domains(4), states).step_S.tolist() == [0]


@pytest.mark.parametrize("load", [[0.0, 0.0, 0.0, 0.0], [1.0, math.nan, 2.0, 3.0], [1.0, -1.0, 2.0, 3.0]])
def test_loads_that_are_no_token_counts_name_the_domain(load):
    mixer = moe()
    with pytest.raises(DataError, match="router loads of domain 'code' at step 100 are .*, wanted tokens per expert"):
        mixer.update(mixer.start(domains()), routed(100, [LOADS[0], load, LOADS[2]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": -1.0}, "eta is -1.0, wanted a finite number above 0"),
        ({"smoothing": 1.5}, "smoothing is 1.5, wanted a value from 0 to below 1"),
        ({"update_every": 0}, "update_every is 0, wanted at least 1"),
        ({"initial": "gleich"}, "initial is 'gleich', wanted 'natural', 'uniform'"),
        ({"distance": "l1"}, "distance: Input should be 'l2' or 'cos', found 'l1'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(DynamicMoeSettings, settings, where="method 'dynamic_moe'")
