"""ODM against the vectors of all its variants, against loops written from the paper, and what its users rely on."""

import json
import math

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.mixing import Domains, Observation
from dataflex_tools.methods.odm import Odm, OdmSettings
from tests.helpers import FLOAT64, vector
from tests.methods.mixers import (
    assert_bad_losses_name_the_domain,
    assert_large_losses_are_taken,
    assert_order_of_domains_does_not_matter,
    assert_restart_changes_nothing,
    assert_same,
    domains,
    losses,
    random_losses,
    trajectory,
)

DATA = vector("odm_trajectory")
GIVEN = DATA["inputs"]
INITIAL = dict(zip(domains().names, GIVEN["initial_weights"], strict=True))
VARIANTS = ("paper", "smoothed_mean", "smoothed_mean_group", "exp3", "dataflex")
EARLY, LATE = GIVEN["iterations"], GIVEN["iterations_late"]
SINGLE = [([domain], [loss]) for domain, loss in GIVEN["single"]]


def odm(**settings):
    return Odm(OdmSettings(**settings))


def observed(rewards, steps):
    """One observation per update, of the domains and losses of `rewards`."""
    return [
        losses(step, [dict(zip(*pair, strict=True)).get(i) for i in range(3)])
        for pair, step in zip(rewards, steps, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "variant", "rewards", "steps"),
    [
        ("smoothed_mean_update", "smoothed_mean", SINGLE, EARLY),
        ("smoothed_mean_update_late", "smoothed_mean", SINGLE, LATE),
        ("smoothed_mean_group_update_linear", "smoothed_mean_group", GIVEN["group"], EARLY),
        ("smoothed_mean_group_update_linear_late", "smoothed_mean_group", GIVEN["group"], LATE),
        ("exp3_update", "exp3", SINGLE, EARLY),
        ("exp3_group_update", "exp3", GIVEN["group"], EARLY),
        ("dataflex", "dataflex", SINGLE, GIVEN["dataflex"]["step_ids"]),
    ],
)
def test_rewards_and_weights_are_those_of_public_code(name, variant, rewards, steps):
    warmup_steps = GIVEN["dataflex"]["warmup_steps"] if variant == "dataflex" else 0
    mixer = odm(variant=variant, initial=INITIAL, warmup_steps=warmup_steps, smoothing=GIVEN["smoothing_factor"])
    states = trajectory(mixer, observed(rewards, steps))
    for state, wanted in zip(states[1:], DATA["expected"][name], strict=True):
        np.testing.assert_allclose(state.score_K, wanted["R"], **FLOAT64)
        np.testing.assert_allclose(state.weight_K, wanted["pi"], **FLOAT64)


def test_the_paper_variant_draws_each_step_as_the_vector_does():
    states = trajectory(odm(update_every=100), observed(SINGLE, LATE))
    for drawn_by, after, wanted in zip(
        states, states[1:], DATA["expected"]["paper_importance_weighted_ema_late"], strict=False
    ):
        np.testing.assert_allclose(drawn_by.weight_K, wanted["pi"], **FLOAT64)
        np.testing.assert_allclose(after.score_K, wanted["R_after"], **FLOAT64)


def exploration(t, num):
    return min(1 / num, math.sqrt(math.log(num) / (num * t)))


def naive_paper(seen, num, keep):
    """Algorithm 1 of the paper in loops: the weights that draw each step, and the rewards after it."""
    reward, before, drawn, after = [0.0] * num, 1 / num, [], []
    for t, one in enumerate(seen, start=1):
        now = exploration(t, num)
        raised = [math.exp(before * r) for r in reward]
        weight = [(1 - num * now) * r / sum(raised) + now for r in raised]
        for i in range(num):
            if one.num_tokens_K[i] > 0:
                loss = one.sum_K[i] / one.num_tokens_K[i]
                reward[i] = keep * reward[i] + (1 - keep) * loss / weight[i]
        before = now
        drawn.append(weight)
        after.append(list(reward))
    return drawn, after


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_algorithm_of_the_paper(seed):
    seen = random_losses(60, num=5, seed=seed)
    states = trajectory(odm(smoothing=0.8), seen)
    drawn, after = naive_paper(seen, 5, 0.8)
    np.testing.assert_allclose([s.weight_K for s in states[:-1]], drawn, **FLOAT64)
    np.testing.assert_allclose([s.score_K for s in states[1:]], after, **FLOAT64)


def naive_official(seen, num, keep, variant):
    """The updaters of the official repository in loops, from their description."""
    reward, weight, epsilon, found = [0.0] * num, [1 / num] * num, 1 / num, []
    for one in seen:
        for i in range(num):
            if one.num_tokens_K[i] == 0:
                continue
            loss = one.sum_K[i] / one.num_tokens_K[i]
            if variant == "exp3":
                reward[i] += loss / 10 / weight[i]
            else:
                reward[i] = keep * reward[i] + (1 - keep) * math.exp(loss)
        before, epsilon = epsilon, exploration(one.step, num)
        raised = list(reward) if variant == "smoothed_mean_group" else [math.exp(before * r) for r in reward]
        weight = [(1 - num * epsilon) * r / sum(raised) + epsilon for r in raised]
        found.append(weight)
    return found


@pytest.mark.parametrize("variant", ["smoothed_mean", "smoothed_mean_group", "exp3"])
@pytest.mark.parametrize("every", [1, 10])
def test_official_variants_are_their_descriptions(variant, every):
    seen = random_losses(40, num=4, every=every)
    states = trajectory(odm(variant=variant), seen)
    np.testing.assert_allclose([s.weight_K for s in states[1:]], naive_official(seen, 4, 0.9, variant), **FLOAT64)


@pytest.mark.parametrize("variant", VARIANTS)
def test_laws(variant):
    build = lambda: odm(variant=variant, initial="natural", warmup_steps=3)  # noqa: E731
    assert_restart_changes_nothing(build, random_losses(20, missing=0.5))
    assert_order_of_domains_does_not_matter(build, random_losses(20, missing=0.5))
    assert_large_losses_are_taken(odm(variant=variant))
    assert_bad_losses_name_the_domain(odm(variant=variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_domain_is_drawn_less_than_the_exploration_rate(variant):
    for state in trajectory(odm(variant=variant), random_losses(200, num=6))[1:]:
        floor = exploration(state.step + (variant == "paper"), 6)
        assert (state.weight_K >= floor - 1e-12).all()
        assert state.weight_K.sum() == pytest.approx(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_while_warming_up_change_nothing(variant):
    mixer, seen = odm(variant=variant, warmup_steps=50, initial="natural"), random_losses(51, missing=0)
    states = trajectory(mixer, seen)
    for state in states[:51]:
        np.testing.assert_array_equal(state.weight_K, states[0].weight_K)
        assert not state.score_K.any()
    assert states[51].score_K.all()
    assert_same(states[51:], [mixer.update(states[0], seen[50])])


def test_a_linear_policy_without_any_reward_is_uniform():
    (_, state) = trajectory(odm(variant="smoothed_mean_group"), [losses(500, [None, None, None])])
    np.testing.assert_allclose(state.weight_K, [1 / 3] * 3, **FLOAT64)


def test_more_domains_than_dataflex_explores_are_uniform():
    of = domains(6)
    many = type(of)(tuple(f"d{i}" for i in range(40)), np.full(40, 9), np.full(40, 99), 8)
    mixer = odm(variant="dataflex")
    state = mixer.update(mixer.start(many), losses(900, [float(i) for i in range(40)]))
    np.testing.assert_allclose(state.weight_K, [1 / 40] * 40, **FLOAT64)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_domain_has_all_the_weight(variant):
    for state in trajectory(odm(variant=variant), [losses(s, [2.0]) for s in (1, 2, 300)]):
        np.testing.assert_allclose(state.weight_K, [1.0], **FLOAT64)


def test_constant_losses_leave_the_paper_variant_near_uniform_and_not_the_linear_one():
    seen = [losses(step, [2.2, 3.0, 1.4]) for step in range(1, 2001)]
    paper, linear = (trajectory(odm(variant=variant), seen) for variant in ("paper", "smoothed_mean_group"))
    np.testing.assert_allclose(paper[500].weight_K, [0.33, 0.35, 0.32], atol=0.005)
    np.testing.assert_allclose(linear[500].weight_K, [0.28, 0.58, 0.14], atol=0.005)
    assert abs(paper[2000].weight_K - 1 / 3).max() < abs(paper[500].weight_K - 1 / 3).max()
    np.testing.assert_allclose(linear[2000].weight_K, linear[500].weight_K, atol=0.02)


def test_a_schedule_replays_what_drew_each_step():
    mixer = odm(update_every=10)
    states = trajectory(mixer, random_losses(8, every=10))
    plan = mixer.finish(domains(4), states)
    assert plan.step_S.tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    np.testing.assert_array_equal(plan.weight_SK, [s.weight_K for s in states])
    assert plan.facts["num_updates"] == 8
    json.dumps(dict(plan.facts), allow_nan=False)


def test_a_constant_plan_keeps_the_mean_over_steps_or_the_last_weights():
    states = trajectory(odm(), [losses(1, [1.0, 2.0, 3.0]), losses(4, [3.0, 2.0, 1.0]), losses(100, [1.0, 3.0, 1.0])])
    mean_K = (states[0].weight_K + 3 * states[1].weight_K + 96 * states[2].weight_K) / 100
    np.testing.assert_allclose(odm(follow="mean").finish(domains(), states).weight_SK, [mean_K], **FLOAT64)
    np.testing.assert_allclose(odm(follow="last").finish(domains(), states).weight_SK, [states[3].weight_K], **FLOAT64)
    start = odm(follow="mean").finish(domains(), states[:1])
    np.testing.assert_allclose(start.weight_SK, [states[0].weight_K], **FLOAT64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothing": 1.0}, "smoothing is 1.0, wanted a value from 0 to below 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1, wanted a multiple of update_every"),
        ({"update_every": 0}, "update_every is 0, wanted at least 1"),
        ({"initial": "naturl"}, "initial is 'naturl', wanted .* did you mean 'natural'"),
        ({"variant": "exp4"}, "variant: Input should be 'paper', .* found 'exp4'"),
        ({"follow": "mode"}, "follow: Input should be 'schedule', 'mean' or 'last', found 'mode'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(OdmSettings, settings, where="method 'odm'")


def test_initial_weights_fit_the_domains():
    with pytest.raises(ConfigError, match="odm: initial gives 'books' no weight"):
        odm(initial={"web": 1, "code": 2}).start(domains())
    with pytest.raises(ConfigError, match="odm: initial names 'bookz', .* did you mean 'books'"):
        odm(initial={"bookz": 1}).start(domains())


@pytest.mark.parametrize(
    ("settings", "num_domains", "num_steps", "loss", "cause"),
    [
        ({"variant": "dataflex"}, 3, 60, [9000.0, 8000.0, 7000.0], "every reward is at DataFlex's limit of 10000"),
        ({"variant": "dataflex"}, 40, 200, None, "with 40 domains exploration takes all the weight at step 200"),
        ({"variant": "paper"}, 8, 5, None, "with 8 domains exploration takes all the weight at step 5"),
        ({"variant": "paper"}, 3, 200, [2.0, 2.0, 2.0], "the losses are too alike"),
        ({"variant": "dataflex"}, 3, 200, [3.0, 9.0, 4.0], None),
    ],
)
def test_a_plan_that_ends_uniform_says_why(settings, num_domains, num_steps, loss, cause):
    names = tuple(f"d{i}" for i in range(num_domains))
    known = Domains(names, np.full(num_domains, 10), np.full(num_domains, 100), vocab_size=1000)
    mixer = odm(**settings)
    states = [mixer.start(known)]
    loss_K = np.linspace(3, 5, num_domains) if loss is None else np.array(loss)
    for step in range(1, num_steps + 1):
        states.append(mixer.update(states[-1], Observation(step, loss_K * 10, np.full(num_domains, 10.0))))
    warnings = mixer.finish(known, tuple(states)).facts.get("warnings", [])
    assert [cause in text for text in warnings] == ([True] if cause else [])
