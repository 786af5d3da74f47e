"""Rewards by comparison with the reference."""

import sys

import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.score.rewards.base import RewardRequest
from dataflex_tools.score.rewards.text import ExactMatch, RougeL


def requests(*pairs):
    return [RewardRequest(({"role": "user", "content": "?"},), answer, reference) for answer, reference in pairs]


def test_exact_match_looks_past_white_space_around_the_answer_only():
    asked = requests(("4", "4"), (" 4\n", "4"), ("44", "4"), ("a  b", "a b"), ("", "4"))
    assert list(ExactMatch()(asked)) == [(0, 1.0), (1, 1.0), (2, 0.0), (3, 0.0), (4, 0.0)]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # common subsequence "the cat the mat" of 6 and of 5 words: 2 * 4/6 * 4/5 / (4/6 + 4/5)
    asked = requests(("The cat lies near the mat.", "the cat on the mat"), ("dog", "the cat"), ("", "cat"))
    assert dict(RougeL()(asked)) == pytest.approx({0: 8 / 11, 1: 0, 2: 0})


def test_reference_that_rouge_l_cannot_see_is_an_error_and_not_a_zero():
    with pytest.raises(DataError, match="no word of a-z and 0-9"):
        list(RougeL()(requests(("\u4f60\u597d", "\u4f60\u597d"))))


def test_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ConfigError, match=r"pip install 'flextools\[reward\]'"):
        RougeL()
