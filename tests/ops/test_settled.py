"""A trajectory that has not come to rest is told, one that has is not."""

import numpy as np

from dataflex_tools.ops.settled import is_uniform, unsettled

NAMES = ("code", "web", "books")


def test_weights_at_rest_say_nothing_and_drifting_ones_name_the_domain():
    rest_SK = np.tile([0.5, 0.3, 0.2], (40, 1))
    assert unsettled(NAMES, rest_SK, rest_SK.mean(axis=0)) == ""
    drift_SK = np.stack([np.linspace(0.33, 0.99, 41), *(np.linspace(0.67, 0.01, 41) / 2,) * 2], axis=1)
    said = unsettled(NAMES, drift_SK, drift_SK[1:].mean(axis=0))
    assert said.startswith("the weights have not settled: 'code' had 99.0% after the last of 40 updates")
    assert "66.8% in the plan" in said


def test_a_swing_at_the_end_is_told_also_where_the_average_is_steady():
    swing_SK = np.tile([[0.9, 0.05, 0.05], [0.1, 0.45, 0.45]], (20, 1))
    assert "have not settled" in unsettled(NAMES, swing_SK, swing_SK.mean(axis=0))


def test_uniform_is_told_to_a_hundredth_and_not_of_one_domain():
    assert is_uniform(np.full(4, 0.25))
    assert is_uniform(np.array([0.501, 0.499]))
    assert not is_uniform(np.array([0.51, 0.49]))
    assert not is_uniform(np.ones(1))
