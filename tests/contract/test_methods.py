"""Laws for every registered method, and for those that select; a new one is tested without writing anything."""

import dataclasses
import json

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.signals import ArrayRows, Samples, Signals
from dataflex_tools.methods import METHODS
from dataflex_tools.methods.base import Selector

NUM, NUM_TARGET, DIM = 40, 6, 8
SELECTORS = [name for name in METHODS.names() if issubclass(METHODS.find(name), Selector)]

# Signals of numbers, by kind: (rng, size, checkpoint) -> (size,). Losses fall, and answers alone are harder than with
# prompts, so that each labelled sample of the generic pool can be taken.
COLUMNS = {
    "loss": lambda rng, size, checkpoint: rng.uniform(1.5, 2, size) - 0.5 * checkpoint,
    "loss_alone": lambda rng, size, checkpoint: rng.uniform(2, 3, size),
}


def signals_for(method, seed=0, order=None):
    rng = np.random.default_rng(seed)
    order = np.arange(NUM) if order is None else order
    pool = Samples(rng.integers(5, 90, NUM)[order], (rng.random(NUM) > 0.1)[order], np.zeros(NUM, int), ("pool",))
    target = Samples(np.full(NUM_TARGET, 9), np.ones(NUM_TARGET, bool), np.arange(NUM_TARGET) % 2, ("a", "b"))
    rows, columns = {}, {}
    for need in method.needs():
        count = 2 if need.at_checkpoints else 1
        size = NUM if need.side == "pool" else NUM_TARGET
        if need.kind in COLUMNS:
            has_labels = (pool if need.side == "pool" else target).has_labels_N
            losses = [COLUMNS[need.kind](rng, size, checkpoint) for checkpoint in range(count)]
            losses = [np.where(has_labels, a[order] if need.side == "pool" else a, np.nan) for a in losses]
            columns[need.kind, need.side] = [{"loss": a, "loss_sum": a * 9} for a in losses]
            continue
        arrays = [rng.normal(size=(size, DIM)) for _ in range(count)]
        rows[need.kind, need.side] = [ArrayRows(a[order] if need.side == "pool" else a) for a in arrays]
    weight = np.array([0.7, 0.3])
    return Signals(pool, target, rows, columns, checkpoint_weight_C=weight, reference_score_N=rng.normal(size=NUM)[order])


def build(name):
    cls = METHODS.find(name)
    return cls(cls.Settings())


@pytest.mark.parametrize("name", METHODS.names())
def test_it_says_what_it_is(name):
    cls = METHODS.find(name)
    assert cls.kind in ("selector", "mixer")
    assert cls.paper
    assert cls.cost
    assert dataclasses.is_dataclass(cls.Settings)
    assert cls.Settings.__dataclass_params__.frozen


@pytest.mark.parametrize("name", METHODS.names())
def test_all_settings_have_defaults_and_an_unknown_one_is_an_error_with_the_nearest(name):
    cls = METHODS.find(name)
    cls.Settings()
    for field in dataclasses.fields(cls.Settings):
        with pytest.raises(ConfigError, match=f"no setting '{field.name}x'; did you mean '{field.name}'"):
            from_mapping(cls.Settings, {f"{field.name}x": 1}, where=name)


@pytest.mark.parametrize("name", SELECTORS)
def test_each_row_gets_one_score_and_rows_without_labels_none(name):
    method = build(name)
    signals = signals_for(method)
    plan = method.select(signals, rng=np.random.default_rng(0))
    assert plan.score_N.shape == (NUM,)
    assert not np.isnan(plan.score_N).any()
    is_ranked_N = np.isfinite(plan.score_N)
    assert is_ranked_N.any()
    assert not is_ranked_N[~signals.pool.has_labels_N].any()
    if method.ranks_all_rows:
        np.testing.assert_array_equal(is_ranked_N, signals.pool.has_labels_N)
    json.dumps(dict(plan.facts), allow_nan=False)
    assert all(column.shape == (NUM,) for column in plan.detail.values())


@pytest.mark.parametrize("name", SELECTORS)
def test_the_same_seed_gives_the_same_plan(name):
    method = build(name)
    plans = [method.select(signals_for(method), rng=np.random.default_rng(7)).score_N for _ in range(2)]
    np.testing.assert_array_equal(*plans)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown method 'lesss'; did you mean 'less'"):
        METHODS.find("lesss")
