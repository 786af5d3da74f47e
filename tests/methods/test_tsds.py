"""TSDS end to end against the numbers of the official code; the assignment itself is tested in tests/ops."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.signals import Signals
from dataflex_tools.methods.tsds import Tsds, TsdsSettings
from tests.helpers import FLOAT64, vector
from tests.methods.builders import samples, vectors
from tests.ops.plain_rows import PlainRows

DATA = vector("tsds_assignment")


def select(signals, seed=0, **settings):
    return Tsds(TsdsSettings(**settings)).select(signals, rng=np.random.default_rng(seed))


def given_signals(block=None):
    """The points of the vector as they are (no unit rows, so not `ArrayRows`), in float32 as its numbers were made from."""
    pool, target = np.array(DATA["inputs"]["xb"]), np.array(DATA["inputs"]["xq"])
    rows = {("embedding", "pool"): [PlainRows(pool, block, dtype=np.float32)], ("embedding", "target"): [PlainRows(target)]}
    return Signals(samples(len(pool)), samples(len(target)), rows)


def random_signals(num=60, num_target=4, has_labels=None, seed=0):
    rng = np.random.default_rng(seed)
    pool, target = rng.normal(size=(num, 5)), rng.normal(size=(num_target, 5))
    return vectors(("embedding", "embedding"), [pool], [target], [0] * num_target, has_labels_N=has_labels)


@pytest.mark.parametrize("case", DATA["inputs"]["cases"])
@pytest.mark.parametrize("block", [7, 120])
def test_probabilities_are_those_of_the_official_code(case, block):
    given, wanted = DATA["inputs"]["cases"][case], DATA["expected"]["end_to_end"][case]
    plan = select(
        given_signals(block),
        alpha=given["alpha"],
        scale=given["C"],
        sigma=given["sigma"],
        num_neighbours=given["max_K"],
        density_neighbours=given["kde_K"],
    )
    expected_N = np.zeros(120)
    for row, probability in wanted["probs_nonzero"].items():
        expected_N[int(row)] = probability
    np.testing.assert_allclose(plan.detail["probability"], expected_N, **FLOAT64)
    assert plan.facts["spread"] == pytest.approx(wanted["s"], rel=1e-9)
    assert plan.facts["search"]["neighbours"] == wanted["K"]
    assert plan.facts["saturated_queries"] == wanted["last_k"].count(wanted["K"] - 2)
    assert plan.facts["is_saturated"] == (case not in ("align", "small_C"))


def test_rows_without_mass_or_labels_are_never_drawn():
    has_labels = np.arange(60) % 4 > 0
    plan = select(random_signals(has_labels=has_labels))
    np.testing.assert_array_equal(np.isfinite(plan.score_N), plan.detail["probability"] > 0)
    assert not plan.detail["probability"][~has_labels].any()
    assert plan.detail["probability"].sum() == pytest.approx(1)
    assert plan.facts["drawable_rows"] == np.isfinite(plan.score_N).sum()


def test_the_first_row_is_drawn_with_its_probability():
    signals, counts = random_signals(), np.zeros(60)
    for seed in range(400):
        plan = select(signals, seed, sigma=0)
        counts[plan.score_N.argmax()] += 1
    probability_N = plan.detail["probability"]
    deviation = np.sqrt(400 * probability_N * (1 - probability_N))
    assert (abs(counts - 400 * probability_N) <= 4.5 * deviation + 1e-9).all()


def test_near_duplicates_share_the_place_of_one():
    # the 30 nearest of 300: 20 copies of one row, then 10 rows that differ; all mass is spread evenly (alpha 0)
    rng = np.random.default_rng(0)
    direction = np.eye(40)
    pool = np.concatenate([np.tile(direction[0] + 0.5 * direction[1], (20, 1)), direction[0] + 0.6 * direction[2:12]])
    pool = np.concatenate([pool, -direction[0] + rng.normal(size=(270, 40)) / 40])
    signals = vectors(("embedding", "embedding"), [pool], [direction[:1]], [0])
    without, with_density = (select(signals, sigma=s, alpha=0.0).detail["probability"][:20].sum() for s in (0.0, 0.5))
    assert without == pytest.approx(20 / 29)  # the last of a list gets what is left: nothing
    assert with_density < 0.15


def test_a_tiny_pool_still_has_two_neighbours():
    plan = select(random_signals(num=3, num_target=2))
    assert plan.facts["search"]["neighbours"] == 2
    with pytest.raises(ConfigError, match="tsds needs at least 2 neighbours of each target sample, found 1"):
        select(random_signals(num=1, num_target=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.1}, "alpha is 1.1, wanted a value from 0 to 1"),
        ({"scale": 0.0}, "scale is 0.0, wanted more than 0"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"num_neighbours": 1}, "num_neighbours is 1, wanted at least 2"),
        ({"density_neighbours": 0}, "density_neighbours is 0, wanted at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TsdsSettings(**settings)
