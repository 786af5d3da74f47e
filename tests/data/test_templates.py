import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.templates import answer_headers, render
from tests.data import chat_templates as stock
from tests.data.builders import CHATML, FORGETFUL, MARKED, byte_tokenizer, chat

TWO_TURNS = chat("Hi", "Hello", "Bye", "Goodbye")


def labelled(conversation, tokenizer, template="auto"):
    text, spans = render(conversation, tokenizer, template)
    return text, [text[start:end] for start, end in spans]


def test_the_own_template_labels_each_answer_with_its_end_mark():
    text, answers = labelled(TWO_TURNS, byte_tokenizer(CHATML))
    assert text.startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n")
    assert answers == ["Hello<|im_end|>\n", "Goodbye<|im_end|>\n"]


def test_generation_marks_decide_what_is_labelled():
    assert labelled(TWO_TURNS, byte_tokenizer(MARKED))[1] == ["Hello<|im_end|>", "Goodbye<|im_end|>"]


def test_a_template_that_changes_earlier_turns_labels_them_as_they_stand():
    tokenizer = byte_tokenizer(FORGETFUL)
    assert labelled(chat("Hi", "Hello"), tokenizer)[1] == ["<think></think>Hello<|im_end|>\n"]
    assert labelled(TWO_TURNS, tokenizer)[1] == ["Hello<|im_end|>\n", "<think></think>Goodbye<|im_end|>\n"]


@pytest.mark.parametrize(
    ("template", "text", "answers"),
    [
        ("plain", "user: Hi\nassistant: Hello</s>\nuser: Bye\nassistant: Goodbye</s>", ["Hello</s>", "Goodbye</s>"]),
        (
            "chatml",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nGoodbye<|im_end|>\n",
            ["Hello<|im_end|>\n", "Goodbye<|im_end|>\n"],
        ),
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nHi\n\n### Response:\nHello</s>"
            "\n\n### Instruction:\nBye\n\n### Response:\nGoodbye</s>",
            ["Hello</s>", "Goodbye</s>"],
        ),
    ],
)
def test_named_templates_need_no_chat_template(template, text, answers):
    assert labelled(TWO_TURNS, byte_tokenizer(None), template) == (text, answers)


def test_chatml_by_name_is_the_same_as_a_chatml_tokenizer():
    assert render(TWO_TURNS, byte_tokenizer(None), "chatml") == render(TWO_TURNS, byte_tokenizer(CHATML), "auto")


def test_completions_and_texts_end_with_the_end_token_and_begin_as_the_tokenizer_does():
    pair = {"prompt": "2+2=", "completion": " 4"}
    assert labelled(pair, byte_tokenizer(None)) == ("2+2= 4</s>", [" 4</s>"])
    assert labelled(pair, byte_tokenizer(None, adds_bos=True)) == ("<s>2+2= 4</s>", [" 4</s>"])
    assert labelled({"text": "abc"}, byte_tokenizer(None)) == ("abc</s>", ["abc</s>"])
    assert render(chat("a", "b"), byte_tokenizer(None, adds_bos=True), "plain")[0].startswith("<s>user: a")


def test_what_the_tokenizer_lacks_is_named():
    with pytest.raises(ConfigError, match="no chat template of its own; set render.template to 'alpaca' or 'chatml'"):
        render(TWO_TURNS, byte_tokenizer(None), "auto")
    with pytest.raises(ConfigError, match="did you mean 'chatml'"):
        render(TWO_TURNS, byte_tokenizer(), "chatlm")
    tokenizer = byte_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no eos_token"):
        render({"text": "a"}, tokenizer, "auto")
    with pytest.raises(DataError, match="template 'plain' cannot show"):
        render({**TWO_TURNS, "tools": [{}]}, byte_tokenizer(), "plain")
    thought = {"messages": [TWO_TURNS["messages"][0], {**TWO_TURNS["messages"][1], "reasoning_content": "hm"}]}
    with pytest.raises(DataError, match="has reasoning_content, which template 'chatml' cannot show"):
        render(thought, byte_tokenizer(), "chatml")


def test_a_refusal_of_the_template_keeps_its_reason():
    picky = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match="refuses the turns user, assistant: system first"):
        render(chat("a", "b"), byte_tokenizer(picky), "auto")


def test_tools_reach_the_own_template():
    shows = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML
    text, answers = labelled({**chat("a", "b"), "tools": [{"name": "f"}]}, byte_tokenizer(shows))
    assert text.startswith('[{"name": "f"}]\n')
    assert answers == ["b<|im_end|>\n"]


def headers(conversation, tokenizer, template="auto"):
    text, spans = render(conversation, tokenizer, template)
    return [text[start:end] for start, end in answer_headers(conversation, tokenizer, template, text, spans)]


THOUGHTFUL = MARKED.replace("{% generation %}", "<think></think>{% generation %}")
BARE = "{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else m.content + eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("chat_template", "template", "header"),
    [
        (CHATML, "auto", "<|im_start|>assistant\n"),
        (MARKED, "auto", "<|im_start|>assistant\n"),
        (THOUGHTFUL, "auto", "<|im_start|>assistant\n<think></think>"),
        (BARE, "auto", ""),
        (None, "chatml", "<|im_start|>assistant\n"),
        (None, "alpaca", "### Response:\n"),
        (None, "plain", "assistant: "),
    ],
)
def test_the_header_of_each_answer_is_what_stands_between_its_prompt_and_it(chat_template, template, header):
    assert headers(TWO_TURNS, byte_tokenizer(chat_template), template) == [header, header]


def test_of_a_header_that_opens_what_past_answers_have_not_the_shared_part_is_shown():
    # Phi-3 ends with a token of its own where no answer is asked for, R1's prompt for an answer opens a thought
    assert headers(TWO_TURNS, byte_tokenizer(stock.PHI3)) == ["<|assistant|>\n"] * 2
    assert headers(TWO_TURNS, byte_tokenizer(stock.R1)) == ["<|Assistant|>"] * 2
    assert headers(TWO_TURNS, byte_tokenizer(stock.QWEN3)) == ["<|im_start|>assistant\n"] * 2


def test_completions_and_texts_have_no_header():
    tokenizer = byte_tokenizer(None, adds_bos=True)
    assert headers({"prompt": "2+2=", "completion": " 4"}, tokenizer) == [""]
    assert headers({"text": "abc"}, tokenizer) == [""]


def test_a_header_that_cannot_be_found_is_an_error():
    other_header = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>model\n{% endif %}")
    text, spans = render(TWO_TURNS, byte_tokenizer(CHATML), "auto")
    with pytest.raises(DataError, match=r"answer 1 of 2 does not stand behind the header '<\|im_start\|>model"):
        answer_headers(TWO_TURNS, byte_tokenizer(other_header), "auto", text, spans)
    rewrites = CHATML.replace("{{ m.content }}", "{{ 'Please: ' if add_generation_prompt }}{{ m.content }}")
    with pytest.raises(DataError, match="renders a turn differently before an answer"):
        answer_headers(TWO_TURNS, byte_tokenizer(rewrites), "auto", text, spans)
