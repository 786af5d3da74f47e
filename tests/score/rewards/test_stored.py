"""Stored rewards: every one is asked for once, whatever happens in between."""

import json

import numpy as np
import pytest

from dataflex_tools.core import dist
from dataflex_tools.score.rewards.base import RewardError, RewardRequest
from dataflex_tools.score.rewards.stored import StoredRewards
from dataflex_tools.score.settings import RewardSettings

SETTINGS = RewardSettings(kind="exact_match")
TURNS = ({"role": "user", "content": "?"},)
ASKED = [RewardRequest(TURNS, text, "r") for text in ("a", "bbb", "cc", "a")]


class Lengths:
    """Worth its length, given in reverse order; fails at `worst` after the others."""

    def __init__(self, worst=None):
        self.asked, self._worst = [], worst

    def __call__(self, requests):
        for index in reversed(range(len(requests))):
            self.asked.append(requests[index].answer)
            if requests[index].answer == self._worst:
                raise RewardError("broken")
            yield index, len(requests[index].answer) / 3


def test_rewards_stay_with_their_answers_and_equal_requests_are_asked_once(tmp_path):
    reward = Lengths()
    np.testing.assert_array_equal(StoredRewards(reward, SETTINGS, tmp_path).of(ASKED), [1 / 3, 1, 2 / 3, 1 / 3])
    assert reward.asked == ["cc", "bbb", "a"]


def test_the_next_run_asks_nothing_and_reads_the_same_numbers(tmp_path):
    first, reward = StoredRewards(Lengths(), SETTINGS, tmp_path).of(ASKED), Lengths()
    np.testing.assert_array_equal(StoredRewards(reward, SETTINGS, tmp_path).of(ASKED[::-1]), first[::-1])
    assert reward.asked == []


def test_what_came_before_a_failure_is_kept(tmp_path):
    with pytest.raises(RewardError):
        StoredRewards(Lengths(worst="a"), SETTINGS, tmp_path).of(ASKED)
    reward = Lengths()
    StoredRewards(reward, SETTINGS, tmp_path).of(ASKED)
    assert reward.asked == ["a"]


def test_a_line_cut_by_a_kill_is_asked_again_and_spoils_no_other(tmp_path, caplog):
    stored = StoredRewards(Lengths(), SETTINGS, tmp_path)
    stored.of(ASKED)
    (path,) = stored.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-5])  # the last line is that of "a"
    reward = Lengths()
    StoredRewards(reward, SETTINGS, tmp_path).of(ASKED)
    assert reward.asked == ["a"]
    assert "1 lines are not whole" in caplog.text
    reward = Lengths()
    np.testing.assert_array_equal(StoredRewards(reward, SETTINGS, tmp_path).of(ASKED), [1 / 3, 1, 2 / 3, 1 / 3])
    assert reward.asked == []


def test_every_line_is_there_when_the_reward_comes_in(tmp_path):
    lines = []

    def watching(requests):
        for index in range(len(requests)):
            yield index, 1.0
            lines.append(len(path.read_bytes().splitlines()))

    stored = StoredRewards(watching, SETTINGS, tmp_path)
    path = stored.folder / "rank-0.jsonl"
    stored.of(ASKED)
    assert lines == [1, 2, 3]


def test_another_reward_prompt_or_reference_is_another_question(tmp_path):
    StoredRewards(Lengths(), SETTINGS, tmp_path).of(ASKED)
    other = RewardSettings(kind="rouge_l")
    assert StoredRewards(Lengths(), other, tmp_path).folder != StoredRewards(Lengths(), SETTINGS, tmp_path).folder
    reward = Lengths()
    changed = [RewardRequest(({"role": "user", "content": "!"},), "a", "r"), RewardRequest(TURNS, "a", "s")]
    StoredRewards(reward, SETTINGS, tmp_path).of(changed)
    assert reward.asked == ["a", "a"]


def test_ranks_write_their_own_file_and_read_all(tmp_path, monkeypatch):
    StoredRewards(Lengths(), SETTINGS, tmp_path).of(ASKED)
    monkeypatch.setattr(dist, "rank", lambda: 1)
    reward = Lengths()
    stored = StoredRewards(reward, SETTINGS, tmp_path)
    stored.of([*ASKED, RewardRequest(TURNS, "dddd", "r")])
    assert reward.asked == ["dddd"]
    assert sorted(path.name for path in stored.folder.iterdir()) == ["rank-0.jsonl", "rank-1.jsonl"]
    (line,) = (stored.folder / "rank-1.jsonl").read_text().splitlines()
    assert json.loads(line)["reward"] == 4 / 3
