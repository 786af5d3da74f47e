"""DoReMi against the vector, against loops written from the paper, and what its users rely on."""

import json
import math

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.mixing import Observation
from dataflex_tools.methods.doremi import Doremi, DoremiSettings
from tests.helpers import FLOAT64, vector
from tests.methods.mixers import (
    assert_bad_losses_name_the_domain,
    assert_large_losses_are_taken,
    assert_order_of_domains_does_not_matter,
    assert_restart_changes_nothing,
    domains,
    losses,
    random_losses,
    trajectory,
)

DATA = vector("doremi_trajectory")


def doremi(**settings):
    return Doremi(DoremiSettings(**settings))


def excess_by_domain(step, num, number):
    """What a trainer reports of a batch: by domain the sum of max(proxy - reference, 0), and how many."""
    total, count = [0.0] * num, [0] * num
    rows = (step["domain_ids"], step["proxy_token_loss"], step["ref_token_loss"], step["token_mask"])
    for domain, proxy, reference, mask in zip(*rows, strict=True):
        for a, b, is_label in zip(proxy, reference, mask, strict=True):
            total[domain] += max(a - b, 0) * is_label
            count[domain] += is_label
    return Observation(number, np.array(total), np.array(count))


VECTOR_STEPS = [excess_by_domain(step, 3, number + 1) for number, step in enumerate(DATA["inputs"]["steps"])]


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_trajectory_is_that_of_the_official_code(variant):
    states = trajectory(doremi(variant=variant, initial_score="log_vocab"), VECTOR_STEPS)
    np.testing.assert_allclose(states[0].score_K, DATA["inputs"]["initial_score"], **FLOAT64)
    for state, wanted in zip(states[1:], DATA["expected"]["reference_trajectory"], strict=True):
        np.testing.assert_allclose(state.score_K, wanted["lambda_"], **FLOAT64)
        np.testing.assert_allclose(state.weight_K, wanted["alpha"], **FLOAT64)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_each_variant_takes_its_average_and_tells_both(variant):
    mixer = doremi(variant=variant, initial_score="log_vocab")
    plan = mixer.finish(domains(), trajectory(mixer, VECTOR_STEPS))
    wanted = {
        "paper": DATA["expected"]["average_paper_1_to_T"],
        "official": DATA["expected"]["average_including_alpha0_official"],
    }
    np.testing.assert_allclose(plan.weight_SK, [wanted[variant]], **FLOAT64)
    assert plan.step_S.tolist() == [0]
    for name, weights in wanted.items():
        np.testing.assert_allclose(plan.tables["averages"][name], weights, **FLOAT64)
        np.testing.assert_allclose([plan.facts[f"average_{name}"][d] for d in plan.names], weights, **FLOAT64)
    assert len(plan.trajectory) == 6
    json.dumps(dict(plan.facts), allow_nan=False)


def naive(seen, num, eta, smoothing):
    """Algorithm 1 of the paper in loops; a domain that is not in the batch keeps its score."""
    weight, score, history = [1 / num] * num, [0.0] * num, []
    for one in seen:
        for i in range(num):
            if one.num_tokens_K[i] > 0:
                score[i] = one.sum_K[i] / one.num_tokens_K[i]
        raised = [weight[i] * math.exp(eta * score[i]) for i in range(num)]
        weight = [(1 - smoothing) * r / sum(raised) + smoothing / num for r in raised]
        history.append(weight)
    return history


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_algorithm_of_the_paper(seed):
    seen = random_losses(30, num=4, seed=seed)
    mixer = doremi(eta=0.3, smoothing=0.02)
    states, wanted = trajectory(mixer, seen), naive(seen, 4, 0.3, 0.02)
    np.testing.assert_allclose([s.weight_K for s in states[1:]], wanted, **FLOAT64)
    np.testing.assert_allclose(mixer.finish(domains(4), states).weight_SK[0], np.mean(wanted, axis=0), **FLOAT64)


def test_a_domain_without_tokens_keeps_its_score():
    states = trajectory(doremi(), [losses(1, [0.5, None, 0.25]), losses(2, [None, 0.75, None])])
    np.testing.assert_allclose(states[1].score_K, [0.5, 0, 0.25], **FLOAT64)
    np.testing.assert_allclose(states[2].score_K, [0.5, 0.75, 0.25], **FLOAT64)


def test_the_official_variant_starts_from_its_sampling_weights():
    mixer = doremi(variant="official", sampling="natural")
    np.testing.assert_allclose(mixer.start(domains()).weight_K, [1 / 6, 2 / 6, 3 / 6], **FLOAT64)
    np.testing.assert_allclose(doremi(sampling="natural").start(domains()).weight_K, [1 / 3] * 3, **FLOAT64)


def test_the_reference_trains_on_natural_proportions_and_the_proxy_on_uniform_ones():
    mixer = doremi()
    np.testing.assert_allclose(mixer.reference_weights(domains()), [1 / 6, 2 / 6, 3 / 6], **FLOAT64)
    np.testing.assert_allclose(mixer.sampling_weights(domains()), [1 / 3] * 3, **FLOAT64)
    mixer = doremi(reference_weights={"web": 1, "math": 3}, sampling={"web": 1, "code": 1, "books": 1, "math": 1})
    np.testing.assert_allclose(mixer.reference_weights(domains(4)), [0.25, 0, 0, 0.75], **FLOAT64)


def test_a_round_is_settled_when_no_weight_moved_by_the_tolerance():
    mixer, before_K = doremi(tolerance=0.01), np.array([0.5, 0.3, 0.2])
    assert mixer.is_settled(before_K, np.array([0.509, 0.291, 0.2]))
    assert not mixer.is_settled(before_K, np.array([0.511, 0.289, 0.2]))


def test_weights_on_one_domain_are_warned_of():
    mixer = doremi()
    near = mixer.finish(domains(), trajectory(mixer, [losses(s + 1, [9.0, 0.1, 0.1]) for s in range(50)]))
    assert near.facts["warning"].startswith("near one-hot: 'web' has 99")
    assert near.facts["largest_domain"] == "web"
    assert near.facts["entropy"] < 0.1
    even = mixer.finish(domains(), trajectory(mixer, [losses(1, [1.0, 1.0, 1.0])]))
    assert "warning" not in even.facts
    assert even.facts["entropy"] == pytest.approx(math.log(3))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_laws(variant):
    assert_restart_changes_nothing(lambda: doremi(variant=variant), random_losses(12))
    assert_order_of_domains_does_not_matter(lambda: doremi(variant=variant, sampling="natural"), random_losses(12))
    assert_large_losses_are_taken(doremi(variant=variant))
    assert_bad_losses_name_the_domain(doremi(variant=variant))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 0.0}, "eta is 0.0, wanted a finite number above 0"),
        ({"smoothing": 1.0}, "smoothing is 1.0, wanted a value from 0 to below 1"),
        ({"max_rounds": 0}, "max_rounds is 0, wanted at least 1"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"initial_score": "log_vocabulary"}, "initial_score is 'log_vocabulary', wanted 'log_vocab' or nats"),
        ({"initial_score": -1.0}, "initial_score is -1.0"),
        ({"sampling": "unifrom"}, "sampling is 'unifrom', wanted 'natural', 'uniform' .* did you mean 'uniform'"),
        ({"reference_weights": "tokens"}, "reference_weights is 'tokens'"),
        ({"variant": "offical"}, "variant: Input should be 'paper' or 'official', found 'offical'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(DoremiSettings, settings, where="method 'doremi'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": {"web": 1, "code": 1}}, "sampling gives 'books' no weight"),
        ({"sampling": {"web": 1, "cod": 1, "books": 1}}, "sampling names 'cod', .* did you mean 'code'"),
        ({"reference_weights": {"boks": 1}}, "reference_weights names 'boks', .* did you mean 'books'"),
        ({"reference_weights": {"web": -1.0}}, "reference_weights: the weight of 'web' is -1.0"),
    ],
)
def test_settings_that_do_not_fit_the_domains_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(DoremiSettings, settings, where="doremi") and doremi(**settings).start(domains())


def test_a_proxy_that_made_no_step_has_no_weights():
    mixer = doremi()
    with pytest.raises(ConfigError, match="the proxy made no step"):
        mixer.finish(domains(), (mixer.start(domains()),))
