import json
from datetime import datetime

import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.chat import day_of, render_chat
from dataflex_tools.data.records import to_conversation
from dataflex_tools.data.templates import document_text, render, rendering
from tests.data import chat_templates as stock
from tests.data.builders import CHATML, MARKED, byte_tokenizer, chat

SPECIALS = tuple(token for token in stock.SPECIALS if not token.startswith("<|im_"))
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "days": 0, "rain": False}}}


def tokenizer_of(template):
    return byte_tokenizer(template, more=SPECIALS)


def turns(*pairs, **record):
    messages = [{"role": role, **({"content": said} if isinstance(said, str) else said)} for role, said in pairs]
    return to_conversation({"messages": messages, **record}, "messages")


def answers(conversation, template):
    text, spans = render(conversation, tokenizer_of(template), "auto")
    return text, [text[start:end] for start, end in spans]


TWO = turns(("user", "one"), ("assistant", "uno"), ("user", "two"), ("assistant", " dos\n"))
CLEAN = turns(("user", "one"), ("assistant", "uno"), ("user", "two"), ("assistant", "dos"))
STOCK = [
    ("LLAMA3", TWO, ["uno<|eot_id|>", "dos<|eot_id|>"]),
    ("QWEN25", TWO, ["uno<|im_end|>\n", " dos\n<|im_end|>\n"]),
    ("QWEN3", CLEAN, ["uno<|im_end|>\n", "<think>\n\n</think>\n\ndos<|im_end|>\n"]),
    ("PHI3", TWO, ["uno<|end|>\n", " dos\n<|end|>\n</s>"]),
    ("GEMMA", TWO, ["uno<end_of_turn>\n", "dos<end_of_turn>\n"]),
    ("MISTRAL", TWO, [" uno</s>", " dos</s>"]),
    ("R1", CLEAN, ["uno</s>", "dos</s>"]),
    ("GPT_OSS", CLEAN, ["uno<|end|>", "dos<|return|>"]),
    ("TEXT_ARGUMENTS", CLEAN, ["uno</s>", "dos</s>"]),
]


@pytest.mark.parametrize(("name", "conversation", "expected"), STOCK)
def test_every_answer_of_stock_templates_is_found_in_the_one_rendering(name, conversation, expected):
    template = getattr(stock, name)
    text, found = answers(conversation, template)
    assert found == expected
    messages = [{key: turn[key] for key in ("role", "content")} for turn in conversation["messages"]]
    if day_of(tokenizer_of(template)) is None:
        assert text == tokenizer_of(template).apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024")


@pytest.mark.parametrize(("name", "conversation", "expected"), STOCK)
def test_answers_are_found_where_the_templates_marks_are_no_tokens_of_their_own(name, conversation, expected):
    text, spans = render(conversation, byte_tokenizer(getattr(stock, name)), "auto")
    assert [text[start:end] for start, end in spans] == expected


def test_a_system_text_before_the_last_question_moves_no_answer():
    conversation = {"messages": [{"role": "system", "content": "Be brief"}, *TWO["messages"]]}
    text, found = answers(conversation, stock.MISTRAL)
    assert text == "<s>[INST] one[/INST] uno</s>[INST] Be brief\n\ntwo[/INST] dos</s>"
    assert found == [" uno</s>", " dos</s>"]


def test_a_template_that_ends_its_last_turn_in_other_plain_text_is_refused_by_name():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}{{ '\n--next\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n--now\nassistant: ' }}{% else %}{{ '\n--end' }}{% endif %}"
    )
    with pytest.raises(DataError, match=r"renders turn 2 of 4 differently once more turns follow.* unknown \(.*--n"):
        answers(CLEAN, template)
    assert answers({"messages": CLEAN["messages"][:2]}, byte_tokenizer().chat_template)[1] == ["uno<|im_end|>\n"]


@pytest.mark.parametrize("template", [stock.QWEN3, stock.R1, CHATML])
def test_reasoning_of_earlier_answers_may_go_where_the_template_drops_it(template):
    said = "<think>\nhm\n</think>\n\nuno"
    conversation = turns(("user", "one"), ("assistant", said), ("user", "two"), ("assistant", "dos"))
    found = rendering(conversation, tokenizer_of(template), "auto")
    first, last = (found.text[start:end] for start, end in found.spans)
    assert found.lost_reasoning == (template != CHATML)
    assert ("hm" in first) == (template == CHATML)
    assert first.removesuffix("\n").removesuffix("<|im_end|>").removesuffix("</s>").endswith("uno")
    assert "dos" in last


@pytest.mark.parametrize("template", [stock.QWEN3, CHATML])
def test_reasoning_of_the_last_answer_is_trained_on(template):
    conversation = turns(("user", "one"), ("assistant", "<think>\nhm\n</think>\n\nuno"))
    assert answers(conversation, template)[1] == ["<think>\nhm\n</think>\n\nuno<|im_end|>\n"]


def test_reasoning_that_the_template_drops_from_the_last_answer_is_refused():
    with pytest.raises(DataError, match=r"leaves out the reasoning of turn 2 of 2 \(assistant\)"):
        answers(turns(("user", "one"), ("assistant", "<think>hm</think>uno")), stock.R1)
    with pytest.raises(DataError, match="leaves out the reasoning of turn 2 of 2"):
        answers(turns(("user", "one"), ("assistant", {"content": "uno", "reasoning_content": "hm"})), CHATML)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_of_its_own_is_trained_on(key):
    conversation = turns(("user", "one"), ("assistant", {"content": "uno", key: "hm"}))
    assert answers(conversation, stock.QWEN3)[1] == ["<think>\nhm\n</think>\n\nuno<|im_end|>\n"]


AGENT = (
    ("user", "Warm?"),
    ("assistant", {"content": "One moment.", "tool_calls": [CALL]}),
    ("tool", "21"),
    ("assistant", "Yes."),
)
SILENT = (AGENT[0], ("assistant", {"content": None, "tool_calls": [CALL]}), *AGENT[2:])
ARGUMENTS = '{"city": "Bern", "days": 0, "rain": false}'


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("name", ["QWEN25", "QWEN3", "TEXT_ARGUMENTS"])
def test_calls_beside_text_are_trained_on_in_the_templates_form(name, as_text):
    call = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}} if as_text else CALL
    said = {"content": "One moment.", "tool_calls": [call]}
    text, found = answers(turns(AGENT[0], ("assistant", said), *AGENT[2:], tools=TOOLS), getattr(stock, name))
    assert "One moment." in found[0]
    assert ARGUMENTS in found[0]
    assert "weather" in found[0]
    assert "21" in text
    assert "21" not in "".join(found)
    assert "Yes." in found[1]


@pytest.mark.parametrize("name", ["LLAMA3", "MISTRAL", "QWEN25", "QWEN3", "TEXT_ARGUMENTS"])
def test_a_call_without_text_is_trained_on(name):
    _, found = answers(turns(*SILENT, tools=TOOLS), getattr(stock, name))
    assert ARGUMENTS in found[0]
    assert "Yes." in found[1]


@pytest.mark.parametrize("name", ["LLAMA3", "MISTRAL"])
def test_text_beside_a_call_that_the_template_drops_is_refused(name):
    with pytest.raises(DataError, match=r"leaves out the content of turn 2 of 4 \(assistant\)"):
        answers(turns(*AGENT, tools=TOOLS), getattr(stock, name))


def test_the_second_of_two_calls_is_not_lost():
    other = {"type": "function", "function": {"name": "time", "arguments": {}}}
    conversation = turns(AGENT[0], ("assistant", {"content": None, "tool_calls": [CALL, other]}), *AGENT[2:])
    assert '"time", "arguments": {}' in answers(conversation, stock.QWEN25)[1][0]
    with pytest.raises(DataError, match="leaves out the tool_calls"):
        answers(conversation, stock.LLAMA3)


@pytest.mark.parametrize("template", [CHATML, stock.R1, stock.PHI3])
def test_calls_and_tools_that_the_template_does_not_know_are_refused(template):
    with pytest.raises(DataError, match="leaves out the tool_calls"):
        answers(turns(AGENT[0], AGENT[1]), template)
    with pytest.raises(DataError, match=r"leaves out the record's tools \(weather\)"):
        answers(turns(("user", "Warm?"), ("assistant", "weather"), tools=TOOLS), template)


def test_arguments_as_python_writes_them_are_no_form():
    raw = CHATML.replace("{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function }}{% endfor %}")
    text, found = answers(turns(AGENT[0], AGENT[1]), raw)
    assert repr(CALL["function"]["arguments"]) not in text
    assert json.dumps(CALL["function"]["arguments"]) in found[0]


def test_the_order_inside_tools_and_arguments_is_kept():
    conversation = json.loads(json.dumps(turns(*SILENT, tools=TOOLS)))
    text, _ = answers(conversation, stock.QWEN25)
    assert json.dumps(TOOLS[0]) in text


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Warm?"}, {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "21"}, {"from": "gpt", "value": "Yes."},
    ]
}  # fmt: skip


def test_a_function_call_takes_the_templates_form_and_stays_text_where_there_is_none():
    conversation = to_conversation(SHAREGPT, "sharegpt")
    same = turns(*SILENT)
    for name in ("QWEN25", "TEXT_ARGUMENTS", "LLAMA3"):
        assert answers(conversation, getattr(stock, name)) == answers(same, getattr(stock, name))
    plain = json.dumps(CALL["function"]) + "<|im_end|>\n"
    assert answers(conversation, CHATML)[1][0] == plain
    text, spans = render(conversation, byte_tokenizer(None), "chatml")
    assert text[slice(*spans[0])] == plain


def test_turns_that_a_template_passes_over_are_refused():
    with pytest.raises(DataError, match=r"leaves out the content of turn 1 of 3 \(system\)"):
        answers(turns(("system", "Be brief"), ("user", "q"), ("assistant", "a")), stock.NO_SYSTEM)
    with pytest.raises(DataError, match=r"leaves out the content of turn 1 of 3 \(system\)"):  # though "s" is in "user"
        answers(turns(("system", "s"), ("user", "q"), ("assistant", "a")), stock.NO_SYSTEM)
    with pytest.raises(DataError, match=r"leaves out the content of turn 3 of 4 \(tool\)"):
        answers(turns(("user", "q"), ("assistant", "a"), ("tool", "42"), ("assistant", "b")), stock.PHI3)


def test_texts_that_a_template_escapes_trims_or_changes_are_shown():
    escaped = turns(("user", "q"), ("assistant", "a"), ("tool", 'x "y"\n\u00e9'), ("assistant", "b"))
    assert '"x \\"y\\"\\n\u00e9"' in answers(escaped, stock.LLAMA3)[0]
    shouts = CHATML.replace("{{ m.content }}", "{{ m.content | replace('l', 'L') }}")
    assert answers(chat("Hello", "well"), shouts)[1] == ["weLL<|im_end|>\n"]


@pytest.mark.parametrize("name", ["GEMMA", "MISTRAL"])
def test_consecutive_answers_are_found_or_refused_by_the_template(name):
    conversation = turns(("user", "q"), ("assistant", "a"), ("assistant", "b"))
    assert answers(conversation, stock.QWEN25)[1] == ["a<|im_end|>\n", "b<|im_end|>\n"]
    assert answers(conversation, stock.PHI3)[1] == ["a<|end|>\n", "b<|end|>\n</s>"]
    if name == "GEMMA":
        with pytest.raises(DataError, match="roles must alternate"):
            answers(conversation, stock.GEMMA)


def test_an_empty_answer_is_its_end_of_turn_or_refused_by_name():
    conversation = turns(("user", "q"), ("assistant", ""), ("user", "r"), ("assistant", "b"))
    assert answers(conversation, CHATML)[1] == ["<|im_end|>\n", "b<|im_end|>\n"]
    with pytest.raises(DataError, match=r"turn 2 of 4 .*it has no text to look for"):
        answers(conversation, stock.PHI3)


def test_marked_answers_and_history_carry_no_labels():
    pairs = [("user", "one"), ("assistant", {"content": "uno", "weight": 0}), ("user", "two"), ("assistant", "dos")]
    for template in (CHATML, stock.PHI3, stock.QWEN3, MARKED):
        whole, found = answers(turns(*pairs), template)
        assert found == answers(CLEAN, template)[1][1:]
        assert whole == answers(CLEAN, template)[0]
    for template in ("auto", "chatml", "alpaca", "plain"):
        text, spans = render(CLEAN, byte_tokenizer(), template)
        assert render(CLEAN, byte_tokenizer(), template, mask_history=True) == (text, spans[1:])
        assert render(turns(*pairs), byte_tokenizer(), template) == (text, spans[1:])
    split = MARKED.replace("{{ m.content }}<|im_end|>", "{{ m.content }}{% endgeneration %}-{% generation %}<|im_end|>", 1)
    assert len(answers(CLEAN, split)[1]) == 4
    with pytest.raises(DataError, match="4 .* spans, not one for each answer"):
        answers(turns(*pairs), split)


def test_a_packed_document_does_not_train_on_marked_turns_and_needs_no_spans():
    marked = turns(("user", "q"), ("assistant", {"content": "a", "train": False}), ("user", "r"), ("assistant", "b"))
    with pytest.raises(DataError, match="packed text trains on every token"):
        document_text(marked, byte_tokenizer())
    assert document_text(CLEAN, tokenizer_of(stock.PHI3)) == answers(CLEAN, stock.PHI3)[0]


DATES = ["{{ strftime_now('%Y-%m-%d') }}", '{% set d = strftime_now( "%d %B %Y" ) %}{{ d }}', "{{ strftime_now('%A') }}"]


@pytest.mark.parametrize(("date", "shown"), zip(DATES, ["2024-07-26", "26 July 2024", "Friday"], strict=True))
def test_the_day_that_a_template_prints_is_fixed(date, shown):
    assert render(CLEAN, byte_tokenizer(date + CHATML), "auto")[0].startswith(shown + "<|im_start|>")
    assert day_of(byte_tokenizer(date + CHATML)) == "2024-07-26"
    for template in (CHATML, stock.LLAMA3, None):  # Llama 3 asks for the day only where no date is given
        assert day_of(byte_tokenizer(template)) is None


def test_the_day_is_fixed_in_every_template_of_a_tokenizer():
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools | tojson }}" + DATES[0] + CHATML}
    conversation = turns(("user", "q"), ("assistant", "a"), tools=TOOLS)
    assert "2024-07-26" in render(conversation, tokenizer, "auto")[0]
    assert day_of(tokenizer) is not None
    assert str(datetime.now().year) not in render(CLEAN, tokenizer, "auto")[0]


def test_a_day_that_cannot_be_fixed_and_a_broken_template_are_errors_of_the_tokenizer():
    for date in ("{% set f = '%Y' %}{{ strftime_now(f) }}", "{% set now = strftime_now %}{{ now('%Y') }}"):
        with pytest.raises(ConfigError, match="asks for today's date in a way that cannot be fixed"):
            render(CLEAN, byte_tokenizer(date + CHATML), "auto")
    with pytest.raises(ConfigError, match="broken at line 1"):
        render(CLEAN, byte_tokenizer("{% for %}"), "auto")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"other": CHATML}
    with pytest.raises(ConfigError, match="cannot be used"):
        render(CLEAN, tokenizer, "auto")


@pytest.mark.parametrize(
    "fault", ["{{ messages[9].content }}", "{{ 1 // 0 }}", "{{ messages[0].content + 1 }}", "{{ ('x' | int) % 0 }}"]
)
def test_whatever_a_template_fails_at_is_a_refusal(fault):
    with pytest.raises(DataError, match="refuses the turns user, assistant"):
        render(chat("a", "b"), byte_tokenizer(fault + CHATML), "auto")


def test_a_prefix_template_costs_one_rendering_of_the_whole_and_two_of_each_earlier_answer(monkeypatch):
    tokenizer, calls = byte_tokenizer(), []
    real = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: calls.append(1) or real(*a, **k))
    render_chat(chat("a", "b")["messages"], None, tokenizer)
    assert len(calls) == 2
    render_chat(CLEAN["messages"], None, tokenizer)
    assert len(calls) == 2 + 4
