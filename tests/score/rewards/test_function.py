"""Rewards by a function of the user's."""

import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.score.rewards.base import RewardError, RewardRequest
from dataflex_tools.score.rewards.function import FunctionReward
from dataflex_tools.score.settings import RewardSettings

ASKED = [RewardRequest(({"role": "user", "content": "2+2="},), answer, "4") for answer in ("4", "5")]
SOURCE = """
def right(messages, answer, reference):
    assert messages == [{"role": "user", "content": "2+2="}]
    return answer == reference

def text(messages, answer, reference):
    return "good"

def nan(messages, answer, reference):
    return float("nan")

def broken(messages, answer, reference):
    raise ZeroDivisionError

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"rewards_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_function_gets_turns_answer_and_reference(module):
    assert list(FunctionReward(f"{module}:right")(ASKED)) == [(0, 1.0), (1, 0.0)]


@pytest.mark.parametrize(("name", "value"), [("text", "'good'"), ("nan", "nan")])
def test_what_is_no_number_is_an_error_with_the_answer(module, name, value):
    with pytest.raises(RewardError, match=f"{name} gave {value} for the answer '4', wanted a finite number"):
        list(FunctionReward(f"{module}:{name}")(ASKED))


def test_what_the_function_raises_is_not_hidden(module):
    with pytest.raises(ZeroDivisionError):
        list(FunctionReward(f"{module}:broken")(ASKED))


def test_function_that_is_not_there_is_found_before_the_first_answer(module):
    for name, match in (
        ("no_such_package.rewards:right", "no module 'no_such_package.rewards' can be imported"),
        (f"{module}:wrong", "has no 'wrong'"),
        (f"{module}:number", "is int, wanted a function"),
        ("sys:exit", "has no source file"),
    ):
        with pytest.raises(ConfigError, match=match):
            FunctionReward(name)


def test_another_source_is_another_address(module, tmp_path):
    settings = RewardSettings(kind="function", function=f"{module}:right")
    before = settings.address()
    assert before == settings.address()
    (tmp_path / f"{module}.py").write_text(SOURCE + "\nnumber = 4\n")
    assert settings.address() != before
