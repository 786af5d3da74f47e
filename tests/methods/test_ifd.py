"""IFD against the given ratios and against loops written from the paper."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.plan import Budget, select_rows
from dataflex_tools.methods.ifd import Ifd, IfdSettings
from tests.helpers import FLOAT64, vector
from tests.methods.builders import losses


def select(given, alone, has_labels=None, **settings):
    signals = losses(has_labels, loss=[given], loss_alone=[alone])
    return Ifd(IfdSettings(**settings)).select(signals, rng=np.random.default_rng(0))


def naive_selection(token_losses, count):
    """Rows taken by the paper's rule, from token losses of the answer given the prompt and alone."""
    kept = []
    for row, (given, alone) in enumerate(token_losses):
        mean_given, mean_alone = sum(given) / len(given), sum(alone) / len(alone)
        if mean_alone > 0 and mean_given / mean_alone <= 1:
            kept.append((mean_given / mean_alone, row))
    return [row for _, row in sorted(kept, key=lambda pair: (-pair[0], pair[1]))[:count]]


@pytest.mark.parametrize(
    ("ratio", "key", "picked"),
    [("loss", "ifd_loss_ratio", "selected_top1_by_loss_ratio"),
     ("perplexity", "ifd_ppl_ratio_variant", "selected_top1_by_ppl_ratio")],
)  # fmt: skip
def test_ratios_are_the_given_numbers(ratio, key, picked):
    data = vector("ifd")
    tokens = data["inputs"]["token_losses"]
    plan = select([np.mean(t["cond"]) for t in tokens], [np.mean(t["alone"]) for t in tokens], ratio=ratio)
    np.testing.assert_allclose(plan.detail["ifd"], data["expected"][key], **FLOAT64)
    assert np.flatnonzero(np.isfinite(plan.score_N)).tolist() == data["expected"]["kept"]
    assert select_rows(plan.score_N, np.full(5, 10), Budget(num_samples=1)).tolist() == data["expected"][picked]


@pytest.mark.parametrize("seed", range(4))
def test_the_selection_equals_the_loops_of_the_paper(seed):
    rng = np.random.default_rng(seed)
    tokens = []
    for _ in range(30):
        length = rng.integers(1, 9)
        tokens.append((rng.gamma(2.0, 0.8, size=length), rng.gamma(2.0, 1.0, size=length)))
    plan = select([np.mean(given) for given, _ in tokens], [np.mean(alone) for _, alone in tokens])
    wanted = naive_selection(tokens, 5)
    assert select_rows(plan.score_N, np.full(30, 10), Budget(num_samples=5)).tolist() == wanted


def test_a_ratio_of_one_is_kept_and_above_it_dropped():
    plan = select([2.0, np.nextafter(2.0, 3.0), 1.0], [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(plan.score_N, [1.0, -np.inf, 0.5])


@pytest.mark.parametrize("ratio", ["loss", "perplexity"])
def test_an_answer_whose_own_loss_is_zero_is_skipped(ratio):
    plan = select([0.0, 0.1, 1.0], [0.0, 0.0, 2.0], ratio=ratio)
    np.testing.assert_array_equal(np.isfinite(plan.score_N), [False, False, True])
    assert np.isnan(plan.detail["ifd"][:2]).all()


def test_samples_without_labels_or_loss_are_never_selected():
    plan = select([1.0, np.nan, 1.0, 1.0], [2.0, 2.0, np.nan, 2.0], has_labels=[True, True, True, False])
    np.testing.assert_array_equal(np.isfinite(plan.score_N), [True, False, False, False])


def test_no_sample_left_is_an_error_that_says_why():
    with pytest.raises(DataError, match="of 3 pool samples 2 have both losses and none of these IFD <= 1"):
        select([2.0, 3.0, np.nan], [1.0, 1.0, 1.0])


def test_an_unknown_ratio_is_refused_by_name():
    with pytest.raises(ConfigError, match="ratio is 'bits', wanted one of loss, perplexity"):
        IfdSettings(ratio="bits")
