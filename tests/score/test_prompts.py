"""What is answered: the tokens before the last answer that a sample kept, and the turns they stand for."""

import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.tokenized import RenderSettings, tokenize_corpus
from dataflex_tools.score.prompts import Prompts
from tests.data.builders import CHATML, alpaca, byte_tokenizer, chat, write_jsonl


def prompts_of(tmp_path, record, *, template="auto", cutoff_len=500, tokenizer=None, mask_history=False):
    tokenizer = tokenizer or byte_tokenizer()
    corpus = open_corpus([SourceSpec(path=str(write_jsonl(tmp_path / "t.jsonl", [record])))], tmp_path, group="subtask")
    render = RenderSettings(template=template, cutoff_len=cutoff_len, mask_history=mask_history)
    tokens = tokenize_corpus(corpus, tokenizer, render, tmp_path, tokenizer_sha256="ab" * 32)
    return Prompts(corpus, tokens, tokenizer)


def text_of(prompts, row=0):
    return prompts.tokenizer.decode(prompts[row].input_ids)


def test_prompt_is_what_stands_before_the_answer(tmp_path):
    prompts = prompts_of(tmp_path, alpaca(7))
    assert text_of(prompts) == "<|im_start|>user\nSay 7.<|im_end|>\n<|im_start|>assistant\n"
    assert prompts[0].messages == ({"role": "user", "content": "Say 7."},)
    assert prompts[0].reference == "It is 7."
    assert prompts[0].sample_id == prompts.tokens.ids_N16[0].tobytes().hex()


def test_of_several_answers_the_last_is_asked_for(tmp_path):
    prompts = prompts_of(tmp_path, chat("a", "b", "c", "d"))
    assert text_of(prompts).endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    assert [turn["content"] for turn in prompts[0].messages] == ["a", "b", "c"]
    assert prompts[0].reference == "d"


def test_the_last_answer_that_is_trained_on_is_asked_for(tmp_path):
    record = chat("a", "b", "c", "d", "e", "f")
    record["messages"][1]["weight"] = record["messages"][5]["weight"] = 0
    prompts = prompts_of(tmp_path, record)
    assert [turn["content"] for turn in prompts[0].messages] == ["a", "b", "c"]
    assert prompts[0].reference == "d"
    prompts = prompts_of(tmp_path, chat("a", "b", "c", "d"), mask_history=True)
    assert [turn["content"] for turn in prompts[0].messages] == ["a", "b", "c"]
    assert prompts[0].reference == "d"


def test_a_tool_call_is_no_text_to_compare(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
    shows = CHATML.replace("{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}")
    prompts = prompts_of(tmp_path, {"messages": [chat("a")["messages"][0], call]}, tokenizer=byte_tokenizer(shows))
    with pytest.raises(DataError, match="is answered with a tool call, and rewards compare texts"):
        prompts[0]


def test_a_row_that_lost_its_last_answer_asks_for_the_one_before(tmp_path):
    prompts = prompts_of(tmp_path, chat("a", "b", "c" * 200, "d"), cutoff_len=100)
    assert [turn["content"] for turn in prompts[0].messages] == ["a"]
    assert prompts[0].reference == "b"
    assert text_of(prompts).endswith("<|im_start|>assistant\n")


def test_prompt_and_completion_become_one_user_turn(tmp_path):
    prompts = prompts_of(tmp_path, {"prompt": "2+2=", "completion": "4"})
    assert text_of(prompts) == "2+2="
    assert prompts[0].messages == ({"role": "user", "content": "2+2="},)
    assert prompts[0].reference == "4"


def test_answers_end_with_the_end_of_text_or_the_turns_own_mark(tmp_path):
    tokenizer = byte_tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    assert prompts_of(tmp_path, alpaca(1))[0].end_ids == tuple(sorted(ends))
    assert prompts_of(tmp_path, alpaca(1), template="plain")[0].end_ids == (tokenizer.eos_token_id,)


def test_plain_text_has_no_prompt(tmp_path):
    prompts = prompts_of(tmp_path, {"text": "once upon a time"})
    with pytest.raises(DataError, match=r"t\.jsonl row 1 is plain text"):
        prompts[0]


def test_a_template_whose_end_is_no_special_token_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    ending = tokenizer.chat_template.replace("<|im_end|>", "<end>")
    with pytest.raises(ConfigError, match="none of the 1 target answers ends with a special token"):
        prompts_of(tmp_path, alpaca(1), tokenizer=byte_tokenizer(ending))
