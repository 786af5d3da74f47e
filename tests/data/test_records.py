import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.data.records import detect_form, preview, sample_id, to_conversation

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SAME = [
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}),
    ("sharegpt", {"conversations": TURNS}),
    ("messages", {"messages": TURNS, "source": "x"}),
    ("messages", {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, TURNS[1]]}),
    ("prompt_completion", {"prompt": TURNS[:1], "completion": TURNS[1:]}),
]


@pytest.mark.parametrize(("form", "record"), SAME)
def test_every_chat_form_gives_the_same_conversation_and_id(form, record):
    assert detect_form(record) == form
    conversation = to_conversation(record, form)
    assert conversation == {"messages": TURNS}
    assert sample_id(conversation) == sample_id({"messages": TURNS})
    assert len(sample_id(conversation)) == 16


def test_plain_forms_keep_their_text_as_it_is():
    pair = {"prompt": "2+2=", "completion": " 4"}
    assert to_conversation(pair, detect_form(pair)) == pair
    assert to_conversation({"text": "a\nb", "url": "u"}, "text") == {"text": "a\nb"}


def test_alpaca_joins_input_history_and_system_in_the_order_they_were_said():
    record = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief", "history": [["Hi", "Hello"]]}
    messages = to_conversation(record, "alpaca")["messages"]
    assert [(turn["role"], turn["content"]) for turn in messages] == [
        ("system", "Be brief"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add\n1 2"), ("assistant", "3"),
    ]  # fmt: skip


def test_columns_and_tags_rename_what_is_read():
    record = {"q": "Hi", "a": "Hello"}
    columns = {"prompt": "q", "completion": "a"}
    assert detect_form(record, columns) == "prompt_completion"
    assert to_conversation(record, "prompt_completion", columns=columns) == {"prompt": "Hi", "completion": "Hello"}
    tagged = {"conversations": [{"who": "KUNDE", "what": "Hi"}, {"who": "bot", "what": "Hello"}]}
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "KUNDE", "assistant_tag": "bot"}
    assert to_conversation(tagged, "sharegpt", tags=tags) == {"messages": TURNS}


def test_tools_given_as_text_or_list_are_kept_with_the_conversation():
    tools = [{"name": "f"}]
    assert to_conversation({"messages": TURNS, "tools": '[{"name": "f"}]'}, "messages")["tools"] == tools
    assert to_conversation({"messages": TURNS, "tools": tools}, "messages")["tools"] == tools
    assert "tools" not in to_conversation({"messages": TURNS, "tools": ""}, "messages")


BAD = [
    ("alpaca", {"instruction": "Hi", "output": " "}, "no answer"),
    ("alpaca", {"instruction": "Hi", "output": None}, "null"),
    ("alpaca", {"instruction": "Hi", "output": 4}, "wanted text"),
    ("alpaca", {"instruction": "Hi", "ouput": "x"}, "did you mean 'ouput'"),
    ("messages", {"messages": TURNS[:1]}, "no answer"),
    ("messages", {"messages": []}, "wanted a list of turns"),
    ("messages", {"messages": [TURNS[1], TURNS[0]]}, "starts with an assistant turn"),
    ("messages", {"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "wanted text"),
    ("messages", {"messages": [*TURNS, {"role": "assistant", "content": None, "tool_calls": [1]}]}, "tool_calls"),
    ("messages", {"messages": TURNS, "tools": "nothing"}, "tool definitions"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "wanted 'from' and 'value'"),
    ("prompt_completion", {"prompt": "a", "completion": ""}, "no answer"),
    ("text", {"text": ""}, "no answer"),
    ("text", {"text": "\ud800"}, "cannot be stored"),
]


@pytest.mark.parametrize(("form", "record", "message"), BAD)
def test_a_record_that_cannot_be_trained_on_says_why(form, record, message):
    with pytest.raises(DataError, match=message):
        to_conversation(record, form)


def test_columns_of_no_form_are_listed_with_what_the_forms_want():
    with pytest.raises(DataError, match=r"columns question, reply fit no form .*alpaca: instruction, output"):
        detect_form({"question": "a", "reply": "b"})


def test_preview_shows_roles():
    assert preview({"messages": TURNS}) == "user: Hi\nassistant: Hello"
    assert preview({"prompt": "a", "completion": "b"}) == "prompt: a\ncompletion: b"
