import json

import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.data.records import as_json, preview, sample_id, to_conversation
from dataflex_tools.data.turns import parse_calls, tools_of, turns_of

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"b": 0, "a": ""}}}


def read(*turns, tags=None):
    return turns_of(list(turns), tags or {}, ("role", "content"))


def chat(*turns, **record):
    return to_conversation({"messages": list(turns), **record}, "messages")


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss", "loss_scale", "loss_weight"])
@pytest.mark.parametrize("off", [0, 0.0, False])
def test_a_mark_against_training_is_kept_and_one_for_it_is_the_default(key, off):
    assert read(USER, ANSWER | {key: off}) == [USER, ANSWER | {"train": False}]
    for on in (1, 1.0, True, None):
        assert read(USER, ANSWER | {key: on}) == [USER, ANSWER]
        assert sample_id(chat(USER, ANSWER | {key: on})) == sample_id({"messages": [USER, ANSWER]})
    assert read(USER | {key: off}, ANSWER) == [USER, ANSWER]


BAD_MARKS = [
    (ANSWER | {"weight": 0.5}, "weight 0.5; a turn is trained on or not: wanted 0 or 1"),
    (ANSWER | {"loss": "false"}, "loss 'false'"),
    (ANSWER | {"weight": 0, "train": True}, "marks that contradict each other"),
    (USER | {"train": True}, "only answers are trained on"),
    (ANSWER | {"train_detail": [{"begin_offset": 0}]}, "has 'train_detail', which cannot be read"),
]


@pytest.mark.parametrize(("turn", "message"), BAD_MARKS)
def test_a_mark_that_cannot_be_followed_is_refused(turn, message):
    with pytest.raises(DataError, match=message):
        read(turn)


def test_a_record_with_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match="all its assistant turns are marked not to be trained on"):
        chat(USER, ANSWER | {"weight": 0})


def test_an_answer_before_the_completion_is_no_label():
    asked = [USER, ANSWER, USER]
    found = to_conversation({"prompt": asked, "completion": [ANSWER]}, "prompt_completion")
    assert found == {"messages": [USER, ANSWER | {"train": False}, USER, ANSWER]}


@pytest.mark.parametrize(
    "given",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"b": 0, "a": ""}'}}]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": [{"name": "f", "arguments": {"b": 0, "a": ""}}]},
        {"function_call": {"name": "f", "arguments": '{"b": 0, "a": ""}'}},
    ],
)
def test_calls_have_one_form_however_they_are_written(given):
    assert read(USER, {"role": "assistant", "content": None} | given)[1] == {
        "role": "assistant", "content": "", "tool_calls": [CALL],
    }  # fmt: skip
    assert read(USER, {"role": "assistant"} | given)[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_may_have_no_arguments(arguments):
    assert parse_calls(json.dumps({"name": "f", "arguments": arguments}))[0]["function"]["arguments"] == {}


BAD_TURNS = [
    ({"role": "assistant", "content": "", "tool_calls": [1]}, "tool_calls holds '1'"),
    ({"role": "assistant", "content": "", "tool_calls": "call it"}, "tool_calls holds 'call it', wanted JSON"),
    ({"role": "assistant", "content": "", "tool_calls": [{"function": "f"}]}, "wanted a call: name and arguments"),
    (
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": 0}]},
        "arguments of the call 'f' holds '0'",
    ),
    ({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "arguments of the call"),
    ({"role": "assistant", "content": "", "tool_calls": [CALL], "function_call": CALL["function"]}, "leave one of them out"),
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, "which only an answer may have"),
    ({"role": "user", "content": "x", "reasoning_content": "y"}, "which only an answer may have"),
    ({"role": "assistant", "content": "x", "reasoning": "y", "thinking": "z"}, "different texts"),
    ({"role": "function_call", "content": "f(1)"}, r"a turn of function_call holds 'f\(1\)', wanted JSON"),
    ({"role": "function_call", "content": "[]"}, "holds an empty list"),
    ({"role": "assistant", "content": 0}, "holds int '0', wanted text"),
    ({"role": "assistant", "content": False}, "holds bool 'False', wanted text"),
    ({"role": "assistant", "content": None}, "holds NoneType"),
    ({"role": "assistant", "content": None, "refusal": "No."}, "NoneType"),
    ({"role": "assistant", "content": "", "refusal": "No."}, "has 'refusal', which cannot be read"),
    ({"role": "user", "content": "x", "images": ["a.png"]}, "has 'images', which cannot be read"),
    ({"role": "user", "content": ["x"]}, "holds a part 'x', wanted text"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "holds a part 'image_url', wanted text"),
    ({"role": "narrator", "content": "x"}, "role 'narrator'"),
]


@pytest.mark.parametrize(("turn", "message"), BAD_TURNS)
def test_a_turn_that_cannot_be_read_is_refused(turn, message):
    with pytest.raises(DataError, match=message):
        read(turn)


def test_columns_of_a_conversation_must_be_equally_long():
    with pytest.raises(DataError, match=r"not equally long: \{'role': 2, 'content': 1\}"):
        turns_of({"role": ["user", "assistant"], "content": ["a"]}, {}, ("role", "content"))


ROLES = {
    "Human": "user",
    "USER": "user",
    "GPT": "assistant",
    "bot": "assistant",
    "developer": "system",
    "observation": "tool",
    "tool_response": "tool",
}


@pytest.mark.parametrize(("role", "ours"), ROLES.items())
def test_roles_are_known_by_their_usual_names(role, ours):
    assert read({"role": role, "content": "x"})[0]["role"] == ours


def test_a_function_call_keeps_its_text_and_says_what_it_is():
    text = '{"name": "f", "arguments": {"b": 0}}'
    expected = {"role": "assistant", "content": text, "is_call": True}
    assert read({"role": "function_call", "content": text})[0] == expected
    assert read({"role": "CALL", "content": text}, tags={"function_tag": "CALL"})[0] == expected


def test_names_reach_the_template_and_empty_extras_are_none():
    tool = {"role": "tool", "content": "21", "name": "f", "tool_call_id": "abc"}
    assert read(tool)[0] == tool
    empty = {"tool_calls": [], "function_call": None, "reasoning_content": "", "name": None, "images": [], "id": 7}
    assert read(ANSWER | empty)[0] == ANSWER


TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}


@pytest.mark.parametrize("given", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_have_one_form_however_they_are_written(given):
    assert tools_of(given) == [TOOL]
    for record, form in (
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"instruction": "Hi", "output": "Hello"}, "alpaca"),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt_completion"),
    ):
        assert to_conversation({**record, "tools": given}, form) == {"messages": [USER, ANSWER], "tools": [TOOL]}


@pytest.mark.parametrize("given", [None, "", [], "[]", {}])
def test_no_tools_are_none(given):
    assert "tools" not in chat(USER, ANSWER, tools=given)


@pytest.mark.parametrize("given", ["weather", ["weather"], [{}], [{"name": 3}], 0, False, [[TOOL]], '{"name": "f"}', [None]])
def test_tools_that_are_names_or_no_definitions_are_refused(given):
    with pytest.raises(DataError, match="tools holds .*wanted .*tool definitions"):
        chat(USER, ANSWER, tools=given)


def test_functions_of_the_older_form_are_tools():
    assert chat(USER, ANSWER, functions=[TOOL["function"]])["tools"] == [TOOL]


RECORDS = [
    ({"instruction": "a", "input": 0, "output": "b"}, "alpaca", "input holds int '0'"),
    ({"instruction": "a", "system": False, "output": "b"}, "alpaca", "system holds bool 'False'"),
    ({"instruction": "a", "history": 0, "output": "b"}, "alpaca", "history holds '0'"),
    ({"instruction": 0, "output": "b"}, "alpaca", "instruction holds int '0'"),
    ({"messages": [{"role": "system", "content": "x"}, USER, ANSWER], "system": "y"}, "messages", "that differ"),
    ({"messages": [USER, ANSWER], "images": ["a.png"]}, "messages", "has 'images', which cannot be read"),
    ({"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False}}, "messages", "chat_template_kwargs"),
    ({"prompt": "a", "completion": "b", "tools": [TOOL]}, "prompt_completion", "tools beside a prompt of plain text"),
]


@pytest.mark.parametrize(("record", "form", "message"), RECORDS)
def test_what_a_record_holds_is_read_or_refused(record, form, message):
    with pytest.raises(DataError, match=message):
        to_conversation(record, form)


def test_ids_follow_the_order_inside_tools_and_nothing_else():
    one = chat(USER, ANSWER, tools=[{"name": "f", "description": "d"}])
    other = chat(USER, ANSWER, tools=[{"description": "d", "name": "f"}])
    assert sample_id(one) != sample_id(other)
    assert json.loads(as_json(one)) == one
    assert list(json.loads(as_json(other))["tools"][0]) == ["description", "name"]
    assert as_json({"messages": [{"role": "user", "content": "Hi"}]}) == '{"messages":[{"content":"Hi","role":"user"}]}'
    # as it was before turns could hold more: what was measured is found again
    assert sample_id(chat(USER, ANSWER)).hex() == "3d8de16a120d3e570b9a506375ab1c1e"


def test_a_preview_shows_reasoning_and_calls():
    turn = {"role": "assistant", "content": "Hm.", "reasoning_content": "r", "tool_calls": [CALL]}
    assert preview({"messages": [turn]}) == 'assistant: r\nHm.\n{"name": "f", "arguments": {"b": 0, "a": ""}}'
