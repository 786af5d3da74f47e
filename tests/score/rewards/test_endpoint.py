"""A judge behind HTTP, played by a server on this machine: it answers, fails, hangs and talks nonsense."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.score.rewards.base import RewardError, RewardRequest
from dataflex_tools.score.rewards.endpoint import EndpointReward
from dataflex_tools.score.rewards.stored import StoredRewards
from dataflex_tools.score.settings import EndpointSettings, RewardSettings

KEY = "sk-test-only-0123456789"


def completion(content):
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]})


class Judge:
    """Replies `content_of(text of the request)`; `behave(text)` may give (status, content type, body) instead."""

    def __init__(self, content_of=len, behave=lambda _: None):
        self.texts, self.headers, self.released = [], [], threading.Event()
        self._content_of, self._behave = content_of, behave

    def reply(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.texts.append(text)
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        found = self._behave(text)
        if found == "hang":
            self.released.wait(30)
            return
        status, kind, reply = found or (200, "application/json", completion(str(self._content_of(text))))
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(reply.encode())))
        handler.end_headers()
        handler.wfile.write(reply.encode())


@contextmanager
def served(judge, **changes):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            judge.reply(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    values = {"prompt": "{answer}", "timeout": 10, "max_retries": 0, "concurrency": 4, "model": "judge", **changes}
    try:
        yield EndpointSettings(base_url=f"http://127.0.0.1:{server.server_port}/v1", **values)
    finally:
        judge.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def requests(*answers):
    return [RewardRequest(({"role": "user", "content": "2+2="},), answer, "4") for answer in answers]


def test_rewards_stay_with_their_answers_whatever_comes_back_first():
    slow, found = threading.Event(), []

    def first_last(text):
        if text == "a":
            slow.wait(30)

    judge = Judge(behave=first_last)
    with served(judge) as settings:
        for reward in EndpointReward(settings)(requests("a", "bb", "ccc")):
            found.append(reward)
            if len(found) == 2:  # the others are here
                slow.set()
    assert found[-1] == (0, 1.0)
    assert sorted(found) == [(0, 1.0), (1, 2.0), (2, 3.0)]


def test_judge_reads_prompt_answer_and_reference():
    judge = Judge(content_of=lambda _: " -0.5\n")
    with served(judge, prompt="{{x}} Q: {prompt} A: {answer} R: {reference}") as settings:
        assert list(EndpointReward(settings)(requests("{5}"))) == [(0, -0.5)]
    assert judge.texts == ["{x} Q: 2+2= A: {5} R: 4"]


def test_pattern_finds_the_number_in_a_longer_reply():
    with served(Judge(content_of=lambda _: "Out of 10:\nScore: 7.5."), pattern=r"Score: ([\d.]+\d)") as settings:
        assert list(EndpointReward(settings)(requests("a"))) == [(0, 7.5)]


def test_status_500_is_tried_again_and_then_an_error():
    failures = iter([True, False])
    judge = Judge(behave=lambda _: (500, "text/plain", "boom") if next(failures) else None)
    with served(judge, max_retries=1) as settings:
        assert list(EndpointReward(settings)(requests("a"))) == [(0, 1.0)]
    judge = Judge(behave=lambda _: (500, "text/plain", "boom"))
    with served(judge, max_retries=1) as settings, pytest.raises(RewardError, match=r"/v1 answers with status 500: boom"):
        list(EndpointReward(settings)(requests("a")))
    assert len(judge.texts) == 2


def test_a_server_that_hangs_is_an_error_after_the_time_given():
    judge = Judge(behave=lambda _: "hang")
    expected = r"did not reply within 0\.3 s, asked 2 times"
    with served(judge, timeout=0.3, max_retries=1) as settings, pytest.raises(RewardError, match=expected):
        list(EndpointReward(settings)(requests("a")))


def test_a_server_that_is_not_there_is_an_error():
    with served(Judge()) as settings:
        pass
    with pytest.raises(RewardError, match="cannot be reached"):
        list(EndpointReward(settings)(requests("a")))


@pytest.mark.parametrize("content", ["I like it", "7 of 10", "", "nan", "1e400"])
def test_reply_without_a_number_is_an_error_that_shows_it(content):
    with served(Judge(content_of=lambda _: content)) as settings, pytest.raises(RewardError) as error:
        list(EndpointReward(settings)(requests("a")))
    assert f"replied {content!r} for the answer 'a'" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "body", "match"),
    [
        ("text/plain", "hello", "sends no chat completion but 'hello'"),
        ("application/json", "{not json", "sends a body that is no JSON"),
        ("application/json", '{"score": 1}', "sends no chat completion"),
        ("application/json", "[1]", "sends no chat completion"),
    ],
)
def test_a_body_that_is_no_completion_is_an_error(kind, body, match):
    with served(Judge(behave=lambda _: (200, kind, body))) as settings, pytest.raises(RewardError, match=match):
        list(EndpointReward(settings)(requests("a")))


def test_restart_asks_only_for_what_did_not_come_in(tmp_path):
    broken = [True]
    judge = Judge(behave=lambda text: (500, "text/plain", "boom") if broken and text == "ccc" else None)
    with served(judge, concurrency=1) as settings:
        reward = RewardSettings(kind="endpoint", endpoint=settings)
        asked = requests("a", "bb", "ccc", "dddd")
        with pytest.raises(RewardError, match="Rewards that came in are stored"):
            StoredRewards(EndpointReward(settings), reward, tmp_path).of(asked)
        before = list(judge.texts)
        broken.clear()
        found = StoredRewards(EndpointReward(settings), reward, tmp_path).of(asked)
        np.testing.assert_array_equal(found, [1, 2, 3, 4])
        came_in = [text for text in before if text != "ccc"]
        assert sorted(judge.texts[len(before) :]) == sorted({"a", "bb", "ccc", "dddd"} - set(came_in))
        number = len(judge.texts)
        StoredRewards(EndpointReward(settings), reward, tmp_path).of(asked)
        assert len(judge.texts) == number


def test_after_a_failure_nothing_new_is_asked_and_what_was_asked_is_kept():
    meeting = threading.Barrier(2, timeout=10)

    def behave(text):
        if text in ("a", "bb"):
            meeting.wait()
        return (400, "text/plain", "no") if text == "a" else None

    judge = Judge(behave=behave)
    found = []
    with served(judge, concurrency=2) as settings, pytest.raises(RewardError):
        found.extend(EndpointReward(settings)(requests("a", "bb", *["x" * n for n in range(3, 60)])))
    assert (1, 2.0) in found
    assert len(judge.texts) < 59


def test_key_comes_from_the_environment_and_is_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge = Judge()
    with served(judge, key_variable="JUDGE_KEY") as settings:
        reward = RewardSettings(kind="endpoint", endpoint=settings)
        StoredRewards(EndpointReward(settings), reward, tmp_path).of(requests("a"))
        assert judge.headers[0]["authorization"] == f"Bearer {KEY}"
        assert KEY not in str(settings) + str(reward.address())
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    refusing = Judge(behave=lambda _: (401, "application/json", json.dumps({"error": {"message": f"bad key {KEY}"}})))
    with served(refusing, key_variable="JUDGE_KEY") as settings, pytest.raises(RewardError, match="status 401") as error:
        list(EndpointReward(settings)(requests("a")))
    assert KEY not in str(error.value)


def test_a_key_meant_for_another_server_is_not_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = Judge()
    with served(judge) as settings:
        list(EndpointReward(settings)(requests("a")))
    assert KEY not in str(judge.headers)


def test_key_that_is_not_set_is_found_before_the_first_answer(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with served(Judge(), key_variable="JUDGE_KEY") as settings, pytest.raises(ConfigError, match="JUDGE_KEY, which is not"):
        EndpointReward(settings)
