"""Sheared loading against the vector, against loops written from the paper, and what its users rely on."""

import math

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.methods.sheared_loading import ShearedLoading, ShearedLoadingSettings
from tests.helpers import FLOAT64, vector
from tests.methods.mixers import (
    NAMES,
    assert_bad_losses_name_the_domain,
    assert_large_losses_are_taken,
    assert_order_of_domains_does_not_matter,
    assert_restart_changes_nothing,
    domains,
    losses,
    random_losses,
    trajectory,
)

DATA = vector("sheared_llama_loading")
FLOAT32 = {"rtol": DATA["tolerance"]}  # the official code, in float32, made the numbers of the bandit
REFERENCE = {"web": 2.0, "code": 1.0, "books": 2.5, "math": 1.5}


def loading(num=3, **settings):
    given = {name: REFERENCE[name] for name in NAMES[:num]}
    return ShearedLoading(ShearedLoadingSettings(**{"reference_losses": given, **settings}))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("paper", DATA["expected"]["paper_clip_no_smoothing"]),
        ("official", DATA["expected"]["code_no_clip_smoothing_1e_4"]),
        ("official_bandit", [DATA["expected"]["code_bandit_first_step"]]),
    ],
)
def test_weights_are_those_of_the_vector(variant, expected):
    given = DATA["inputs"]
    initial, reference = (dict(zip(NAMES, given[key], strict=False)) for key in ("w0", "reference_losses"))
    mixer = loading(variant=variant, initial=initial, reference_losses=reference)
    seen = [losses(50 * (s + 1), mean) for s, mean in enumerate(given["eval_losses"])]
    states = trajectory(mixer, seen)
    for state, wanted in zip(states[1:], expected, strict=False):
        np.testing.assert_allclose(state.weight_K, wanted, **(FLOAT32 if variant == "official_bandit" else FLOAT64))


def naive(seen, weight, variant):
    """Algorithm 1 of the paper, and what the official code does instead, in loops."""
    num, found = len(weight), []
    for one in seen:
        excess = [one.sum_K[i] / one.num_tokens_K[i] - REFERENCE[NAMES[i]] for i in range(num)]
        if variant == "official_bandit":
            raised = [math.exp(weight[i] + excess[i]) for i in range(num)]
        else:
            raised = [weight[i] * math.exp(max(excess[i], 0) if variant == "paper" else excess[i]) for i in range(num)]
        smoothing = 0 if variant == "paper" else 1e-4
        weight = [(1 - smoothing) * r / sum(raised) + smoothing / num for r in raised]
        found.append(weight)
    return found


@pytest.mark.parametrize("variant", ["paper", "official", "official_bandit"])
def test_it_is_the_algorithm_of_its_source(variant):
    seen = random_losses(20, num=4, every=50, missing=0)
    states = trajectory(loading(4, variant=variant), seen)
    np.testing.assert_allclose([s.weight_K for s in states[1:]], naive(seen, [0.1, 0.2, 0.3, 0.4], variant), **FLOAT64)


def test_domains_at_their_reference_keep_their_shares():
    states = trajectory(loading(), [losses(50, [2.0, 0.3, 2.1])])
    np.testing.assert_allclose(states[1].weight_K, states[0].weight_K, **FLOAT64)
    assert not states[1].score_K.any()


@pytest.mark.parametrize("variant", ["paper", "official", "official_bandit"])
def test_laws(variant):
    seen = random_losses(8, num=4, every=50, missing=0)
    assert_restart_changes_nothing(lambda: loading(4, variant=variant), seen)
    assert_order_of_domains_does_not_matter(lambda: loading(4, variant=variant), seen)
    assert_large_losses_are_taken(loading(variant=variant, initial="uniform"), every=50)
    assert_bad_losses_name_the_domain(loading(variant=variant))


def test_a_domain_without_held_out_text_is_an_error():
    mixer = loading()
    with pytest.raises(DataError, match="domain 'books' has no held-out token at step 50; hold out more"):
        mixer.update(mixer.start(domains()), losses(50, [1.0, 2.0, None]))


def test_the_plan_is_the_schedule_unless_told_otherwise():
    mixer, seen = loading(4), random_losses(3, num=4, every=50, missing=0)
    states = trajectory(mixer, seen)
    assert mixer.finish(domains(4), states).step_S.tolist() == [0, 50, 100, 150]
    np.testing.assert_allclose(
        loading(4, follow="last").finish(domains(4), states).weight_SK[0], states[-1].weight_K, **FLOAT64
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "reference_losses has no loss for web, code, books; give each domain"),
        ({"web": 2.0, "code": 1.0}, "reference_losses has no loss for books"),
        ({"web": 2.0, "code": 1.0, "book": 2.0}, "reference_losses names 'book', .* did you mean 'books'"),
    ],
)
def test_each_domain_needs_a_reference_loss(given, message):
    with pytest.raises(ConfigError, match=message):
        loading(reference_losses=given).start(domains())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update_every": 0}, "update_every is 0, wanted at least 1"),
        ({"initial": "even"}, "initial is 'even', wanted 'natural', 'uniform'"),
        ({"reference_losses": {"web": -0.5}}, "the reference loss of 'web' is -0.5"),
        ({"reference_losses": {"web": float("nan")}}, "the reference loss of 'web' is nan"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(ShearedLoadingSettings, settings, where="method 'sheared_loading'")
