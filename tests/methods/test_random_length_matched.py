"""The control has the reference's lengths at every budget and nothing else of it."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import Budget, best_copies, select_rows, stable_order
from dataflex_tools.core.signals import Samples, Signals
from dataflex_tools.methods.random import Random, RandomSettings
from dataflex_tools.methods.random_length_matched import RandomLengthMatched, RandomLengthMatchedSettings, _length_bins


def signals_of(num_tokens, has_labels, score) -> Signals:
    num = len(num_tokens)
    return Signals(Samples(num_tokens, has_labels, np.zeros(num, int), ("pool",)), reference_score_N=score)


@pytest.fixture
def signals():
    rng = np.random.default_rng(1)
    num_tokens = rng.integers(5, 300, size=400)
    has_labels = rng.random(400) > 0.05
    score = np.where(has_labels, num_tokens + rng.normal(size=400) * 30, -np.inf)
    return signals_of(num_tokens, has_labels, score)


@pytest.mark.parametrize("k", [1, 17, 100, 350])
def test_every_budget_holds_as_many_samples_of_each_length_bin_as_the_reference(signals, k):
    settings = RandomLengthMatchedSettings(num_bins=10)
    plan = RandomLengthMatched(settings).select(signals, rng=np.random.default_rng(0))
    open_rows = np.flatnonzero(signals.pool.has_labels_N)
    bin_of = np.full(400, -1)
    for b, members in enumerate(_length_bins(signals.pool.num_tokens_N[open_rows], 10)):
        bin_of[open_rows[members]] = b
    ours, theirs = stable_order(plan.score_N)[:k], stable_order(signals.reference_score_N)[:k]
    np.testing.assert_array_equal(np.bincount(bin_of[ours], minlength=10), np.bincount(bin_of[theirs], minlength=10))


def test_the_pick_differs_from_the_reference(signals):
    plan = RandomLengthMatched(RandomLengthMatchedSettings(num_bins=10)).select(signals, rng=np.random.default_rng(0))
    shared = set(stable_order(plan.score_N)[:40]) & set(stable_order(signals.reference_score_N)[:40])
    assert len(shared) < 30


def test_bins_hold_every_sample_once_and_part_no_equal_lengths():
    lengths = np.array([5, 5, 5, 5, 6, 7, 8, 8, 9, 9])
    bins = _length_bins(lengths, 4)
    assert sorted(np.concatenate(bins).tolist()) == list(range(10))
    assert all(len(set(map(tuple, [b for b in bins if i in b]))) == 1 for i in range(10))
    of = {int(i): b for b, members in enumerate(bins) for i in members}
    assert of[0] == of[3]
    assert of[6] == of[7]
    assert of[8] == of[9]


def test_no_reference_is_an_error_that_says_how_to_give_one(signals):
    without = Signals(signals.pool)
    with pytest.raises(ConfigError, match="--reference"):
        RandomLengthMatched(RandomLengthMatchedSettings()).select(without, rng=np.random.default_rng(0))


def test_random_takes_each_labelled_row_equally_often(signals):
    taken = np.zeros(400)
    for seed in range(200):
        plan = Random(RandomSettings()).select(signals, rng=np.random.default_rng(seed))
        taken[stable_order(plan.score_N)[:100]] += 1
    assert taken[~signals.pool.has_labels_N].sum() == 0
    share = taken[signals.pool.has_labels_N] / 200
    # 200 draws of probability about 0.26: five standard deviations is 0.16
    assert abs(share - 100 / signals.pool.has_labels_N.sum()).max() < 0.16


@pytest.fixture
def with_copies():
    """400 rows of 150 contents, with the reference's scores of copies apart, as a draw gives them."""
    rng = np.random.default_rng(2)
    content = np.sort(rng.integers(0, 150, size=400))
    copy_of = np.searchsorted(content, content)
    lengths, has_labels = rng.integers(5, 300, size=150)[content], np.ones(400, bool)
    samples = Samples(lengths, has_labels, np.zeros(400, int), ("pool",), copy_of_N=copy_of)
    return Signals(samples, reference_score_N=lengths + rng.normal(size=400) * 30)


def pick(score, signals, k):
    return select_rows(score, signals.pool.num_tokens_N, Budget(num_samples=k), content_N=signals.pool.copy_of_N)


@pytest.mark.parametrize("k", [1, 17, 60, 140])
def test_with_copies_the_picks_have_equal_lengths_too(with_copies, k):
    plan = RandomLengthMatched(RandomLengthMatchedSettings(num_bins=10)).select(with_copies, rng=np.random.default_rng(0))
    score, lengths = with_copies.reference_score_N, with_copies.pool.num_tokens_N
    counted = np.flatnonzero(best_copies(score, with_copies.pool.copy_of_N) == np.arange(400))
    bin_of = np.full(150, -1)
    for b, members in enumerate(_length_bins(lengths[counted], 10)):
        bin_of[np.unique(with_copies.pool.copy_of_N, return_inverse=True)[1][counted[members]]] = b
    content = np.unique(with_copies.pool.copy_of_N, return_inverse=True)[1]
    ours, theirs = (bin_of[content[pick(s, with_copies, k)]] for s in (plan.score_N, score))
    np.testing.assert_array_equal(np.bincount(ours, minlength=10), np.bincount(theirs, minlength=10))


def test_a_content_is_no_likelier_in_the_random_pick_for_its_copies():
    num, copies = 40, 200
    copy_of = np.concatenate([np.arange(num), np.zeros(copies, int)])  # the first content stands there 201 times
    total = num + copies
    samples = Samples(np.full(total, 9), np.ones(total, bool), np.zeros(total, int), ("pool",), copy_of_N=copy_of)
    signals, hits = Signals(samples), 0
    for seed in range(400):
        score = Random(RandomSettings()).select(signals, rng=np.random.default_rng(seed)).score_N
        assert len(np.unique(score[copy_of == 0])) == 1
        hits += 0 in copy_of[pick(score, signals, 10)]
    assert hits / 400 == pytest.approx(0.25, abs=0.08)
