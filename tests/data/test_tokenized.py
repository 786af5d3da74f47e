import logging
from datetime import datetime

import numpy as np
import pytest
from tokenizers import Regex, normalizers, processors

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data import tokenized
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.templates import render
from dataflex_tools.data.tokenized import RenderSettings, render_digest, tokenize_corpus
from tests.data.builders import CHATML, byte_tokenizer, chat, write_jsonl
from tests.data.chat_templates import PHI3, QWEN3, R1

SHA = "0" * 64


def corpus_of(tmp_path, records, name="pool"):
    tmp_path.mkdir(exist_ok=True)
    path = write_jsonl(tmp_path / f"{name}.jsonl", records)
    return open_corpus([SourceSpec(path=str(path))], tmp_path / "cache", group="domain")


def tokens_of(tmp_path, records, tokenizer=None, **settings):
    corpus = corpus_of(tmp_path, records)
    tokenizer = tokenizer or byte_tokenizer()
    return tokenize_corpus(corpus, tokenizer, RenderSettings(**settings), tmp_path / "cache", tokenizer_sha256=SHA)


RECORDS = [chat(f"Say {i}", f"It \u00e9 {i}", "More", "x" * (i % 7)) for i in range(30)]


def test_labels_are_the_tokens_of_the_answers_and_nothing_else(tmp_path):
    tokenizer = byte_tokenizer()
    tokens = tokens_of(tmp_path, RECORDS, tokenizer)
    for row, record in enumerate(RECORDS):
        text, spans = render(record, tokenizer, "auto")
        ids, labels = tokens.input_ids(row), tokens.labels(row)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(labels[labels != -100]) == "".join(text[start:end] for start, end in spans)
        assert (ids.dtype, labels.dtype) == (np.int32, np.int64)
        assert tokens.num_tokens_N[row] == len(ids)
        assert tokens.num_labels_N[row] == (labels != -100).sum()
    assert tokens.counts == {"truncated_prompt": 0, "truncated_answer": 0, "without_labels": 0}
    assert tokens.rows_with_labels().tolist() == list(range(30))
    with pytest.raises(IndexError, match="outside the 30 rows"):
        tokens.input_ids(30)


def test_any_shard_and_batch_size_gives_the_same_tokens(tmp_path, monkeypatch):
    whole = tokens_of(tmp_path, RECORDS)
    monkeypatch.setattr(tokenized, "SHARD_ROWS", 7)
    monkeypatch.setattr(tokenized, "_BATCH", 3)
    parts = tokens_of(tmp_path, RECORDS)
    np.testing.assert_array_equal(parts.num_tokens_N, whole.num_tokens_N)
    for row in range(30):
        np.testing.assert_array_equal(parts.input_ids(row), whole.input_ids(row))
        np.testing.assert_array_equal(parts.labels(row), whole.labels(row))


def test_a_killed_or_grown_corpus_only_tokenises_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenized, "SHARD_ROWS", 10)
    done = []
    real = tokenized._encode_shard

    def encode(corpus, rows, *args):
        done.append(rows.start)
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(corpus, rows, *args)

    monkeypatch.setattr(tokenized, "_encode_shard", encode)
    with pytest.raises(KeyboardInterrupt):
        tokens_of(tmp_path, RECORDS)
    tokens_of(tmp_path, RECORDS)
    assert done == [0, 10, 10, 20]
    grown = tokens_of(tmp_path, [*RECORDS, chat("new", "one")])
    assert done == [0, 10, 10, 20, 30]
    assert len(grown) == 31
    tokens_of(tmp_path, RECORDS, cutoff_len=64)
    assert len(done) == 8


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_ranks_begin_at_different_shards_and_all_end_with_everything(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(tokenized, "SHARD_ROWS", 10)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = []
    real = tokenized._encode_shard
    monkeypatch.setattr(tokenized, "_encode_shard", lambda c, rows, *a: done.append(rows.start) or real(c, rows, *a))
    assert len(tokens_of(tmp_path, RECORDS)) == 30
    assert done == [[0, 10, 20], [10, 20, 0], [20, 0, 10]][rank]


def test_cut_rows_keep_labels_are_counted_and_logged_once(tmp_path, caplog):
    records = [
        {"prompt": "p" * 50, "completion": "abc"},
        {"prompt": "p", "completion": "c" * 50},
        {"prompt": "p", "completion": "c"},
    ]
    with caplog.at_level(logging.WARNING, logger="flextools"):
        tokens = tokens_of(tmp_path, records, cutoff_len=10)
    assert tokens.num_tokens_N.tolist() == [10, 10, 3]
    assert tokens.num_labels_N.tolist() == [4, 9, 2]
    assert byte_tokenizer().decode(tokens.input_ids(0)) == "ppppppabc</s>"
    assert tokens.counts == {"truncated_prompt": 1, "truncated_answer": 1, "without_labels": 0}
    assert len([line for line in caplog.messages if "cutoff_len 10" in line]) == 1


def test_the_begin_token_survives_a_cut_prompt(tmp_path):
    tokenizer = byte_tokenizer(adds_bos=True)
    tokens = tokens_of(tmp_path, [{"prompt": "p" * 50, "completion": "abc"}], tokenizer, cutoff_len=10)
    assert tokenizer.decode(tokens.input_ids(0)) == "<s>pppppabc</s>"


def test_a_text_is_labelled_from_its_second_token_on(tmp_path):
    tokens = tokens_of(tmp_path, [{"text": "abcd"}])
    assert tokens.labels(0).tolist() == [-100, *tokens.input_ids(0)[1:]]
    assert tokens.num_labels_N.tolist() == [4]


def test_rows_without_labels_are_kept_and_counted_but_not_all_may_be(tmp_path):
    only_short = "{% for m in messages %}{{ m.role }}{% if m.content|length < 3 %}{% generation %}{{ m.content }}"
    only_short += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    tokens = tokens_of(tmp_path, [chat("long question", "ok"), chat("long question", "long")], byte_tokenizer(only_short))
    assert tokens.num_labels_N.tolist() == [2, 0]
    assert tokens.counts["without_labels"] == 1
    assert tokens.rows_with_labels().tolist() == [0]
    with pytest.raises(DataError, match="none of the 1 rows has a label with template 'auto' and cutoff_len 2048"):
        tokenize_corpus(
            corpus_of(tmp_path, [chat("long question", "long")], "none"), byte_tokenizer(only_short), RenderSettings(),
            tmp_path / "cache", tokenizer_sha256=SHA,
        )  # fmt: skip


def test_the_digest_follows_template_cutoff_and_tokenizer():
    base = render_digest(RenderSettings(), SHA)
    others = [
        RenderSettings(template="plain"), RenderSettings(cutoff_len=2047), RenderSettings(answer_only=True),
        RenderSettings(mask_history=True),
    ]  # fmt: skip
    assert len({base, *(render_digest(other, SHA) for other in others), render_digest(RenderSettings(), "1" * 64)}) == 6
    # an address that changed would have every stored signal measured again
    assert base == "c8cdf178f34375d21f14ebb4754dfcb6536fed952676dad3eaaf6d6f5d65cebe"
    assert render_digest(RenderSettings(), SHA, byte_tokenizer()) == base


def test_the_digest_follows_what_else_decides_tokens():
    base = render_digest(RenderSettings(), SHA)
    dated = byte_tokenizer("{{ strftime_now('%Y') }}" + CHATML)
    assert render_digest(RenderSettings(), SHA, dated) != base
    assert render_digest(RenderSettings(template="chatml"), SHA, dated) == render_digest(
        RenderSettings(template="chatml"), SHA
    )
    trims, splits = byte_tokenizer(), byte_tokenizer()
    trims.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    splits.split_special_tokens = True
    digests = [render_digest(RenderSettings(), SHA, tokenizer) for tokenizer in (dated, trims, splits)]
    assert len({base, *digests}) == 4


def test_tokens_are_the_same_on_any_day(tmp_path, monkeypatch):
    from transformers.utils import chat_template_utils

    class Tomorrow:
        @staticmethod
        def now():
            return datetime(2031, 5, 17)

    dated = byte_tokenizer("{{ strftime_now('%d %B %Y') }}\n" + CHATML)
    today = tokens_of(tmp_path / "a", RECORDS, dated)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    tomorrow = tokens_of(tmp_path / "b", RECORDS, dated)
    assert today.render_digest == tomorrow.render_digest
    np.testing.assert_array_equal(today.input_ids(0), tomorrow.input_ids(0))
    assert byte_tokenizer().decode(today.input_ids(0)).startswith("26 July 2024\n")


def test_mask_history_and_marks_leave_labels_to_the_answers_that_are_trained_on(tmp_path):
    marked = chat("one", "uno", "two", "dos")
    marked["messages"][3]["weight"] = 0
    records = [chat("one", "uno", "two", "dos"), marked]

    def labels(**settings):
        tokens = tokens_of(tmp_path, records, **settings)
        return [byte_tokenizer().decode(tokens.labels(row)[tokens.labels(row) != -100]) for row in range(2)]

    assert labels() == ["uno<|im_end|>\ndos<|im_end|>\n", "uno<|im_end|>\n"]
    assert labels(mask_history=True) == ["dos<|im_end|>\n", ""]


PICKY = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + CHATML


def skipping(tmp_path, records, name="pool"):
    path = write_jsonl(tmp_path / f"{name}.jsonl", records)
    return open_corpus([SourceSpec(path=str(path), skip_bad=True)], tmp_path / "cache", group="domain")


def test_refused_rows_are_left_out_counted_and_named_where_the_source_may_skip_them(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tokenized, "SHARD_ROWS", 2)
    records = [chat("a", "b", "c", "d"), chat("e", "f"), chat("g", "h", "i", "j"), chat("k", "l"), chat("m", "n")]
    tokenizer = byte_tokenizer(PICKY)
    corpus = skipping(tmp_path, records)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="flextools"):
            tokens = tokenize_corpus(corpus, tokenizer, RenderSettings(), tmp_path / "cache", tokenizer_sha256=SHA)
        assert "2 bad rows left out, refused by the template; first:" in caplog.text
        assert "pool.jsonl row 1: the tokenizer's chat template refuses" in caplog.text
        assert tokens.left_out_B.tolist() == [0, 2]
        assert tokens.counts["refused"] == 2
        rest = corpus.without(tokens.left_out_B)
        np.testing.assert_array_equal(tokens.ids_N16, rest.ids_N16)
        for row in range(3):
            assert tokenizer.decode(tokens.input_ids(row)) == render(rest.conversation(row), tokenizer, "auto")[0]
            assert tokens.num_tokens_N[row] == len(tokens.input_ids(row))
            assert tokens.num_labels_N[row] == (tokens.labels(row) != -100).sum()
        with pytest.raises(IndexError):
            tokens.input_ids(3)
    # the same rows from a source that skips nothing: the cache does not hide the refusal
    with pytest.raises(DataError, match=r"row 1: .* too long; or leave such rows out with --skip-bad"):
        tokens_of(tmp_path, records, tokenizer)


def test_every_kind_of_refusal_may_be_skipped_and_rows_of_other_sources_are_not(tmp_path):
    tool = {"type": "function", "function": {"name": "f"}}
    records = [
        chat("a", "b") | {"tools": [tool]}, chat("a", "b"), chat("a", "<think>x</think>b"),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [tool]}]},
        {"messages": [{"role": "system", "content": "s"}, *chat("a", "c")["messages"]]},
    ]  # fmt: skip
    tokenizer = byte_tokenizer(
        "{% for m in messages if m.role != 'system' %}{{ m.role + m.content.split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    arguments = (tokenizer, RenderSettings(), tmp_path / "cache")
    tokens = tokenize_corpus(skipping(tmp_path, records), *arguments, tokenizer_sha256=SHA)
    assert tokens.left_out_B.tolist() == [0, 2, 3, 4]
    with pytest.raises(DataError, match=r"none of the 1 rows can be used; first: .*leaves out the record's tools"):
        tokenize_corpus(skipping(tmp_path, records[:1], "one"), *arguments, tokenizer_sha256=SHA)
    specs = [
        SourceSpec(path=str(write_jsonl(tmp_path / "good.jsonl", records[1:2])), skip_bad=True),
        SourceSpec(path=str(write_jsonl(tmp_path / "bad.jsonl", records[2:3]))),
    ]
    both = open_corpus(specs, tmp_path / "cache", group="domain")
    with pytest.raises(DataError, match=r"bad.jsonl row 1: .*leaves out the reasoning"):
        tokenize_corpus(both, *arguments, tokenizer_sha256=SHA)


def test_a_row_without_any_token_is_refused(tmp_path):
    mute = byte_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    mute.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z]"), "")
    records = [chat("a", "b"), chat("A", "B")]
    with pytest.raises(DataError, match="pool.jsonl row 1 gives no token at all"):
        tokens_of(tmp_path, records, mute)
    arguments = (mute, RenderSettings(), tmp_path / "cache")
    tokens = tokenize_corpus(skipping(tmp_path, records), *arguments, tokenizer_sha256=SHA)
    assert tokens.left_out_B.tolist() == [0]
    with pytest.raises(DataError, match="pool.jsonl row 1 gives no token at all"):
        tokens_of(tmp_path, records, mute)


def test_reasoning_that_the_template_drops_is_counted_and_logged(tmp_path, caplog):
    records = [chat("one", "<think>hm</think>uno", "two", "dos"), chat("one", "uno")]
    with caplog.at_level(logging.WARNING, logger="flextools"):
        tokens = tokens_of(tmp_path, records, byte_tokenizer(QWEN3))
    assert tokens.counts["earlier_reasoning_left_out"] == 1
    assert "1 of 2 rows: the template leaves out the reasoning of answers" in caplog.text


def test_answer_only_keeps_the_labels_of_templates_that_differ_at_their_end(tmp_path):
    for number, (template, header) in enumerate([(PHI3, "<|assistant|>\n"), (R1, "<|Assistant|>")]):
        tokenizer = byte_tokenizer(template)
        records = [chat("one", "uno", "two", "dos")]
        whole = tokens_of(tmp_path / f"{number}", records, tokenizer)
        alone = tokens_of(tmp_path / f"{number}", records, tokenizer, answer_only=True)
        labels = whole.labels(0)
        np.testing.assert_array_equal(alone.labels(0)[alone.labels(0) != -100], labels[labels != -100])
        assert tokenizer.decode(alone.input_ids(0)).removeprefix("<s>").startswith(f"{header}uno")


def test_a_dropped_row_takes_its_tokens_with_it(tmp_path):
    corpus = corpus_of(tmp_path, RECORDS)
    arguments = (byte_tokenizer(), RenderSettings(), tmp_path / "cache")
    whole = tokenize_corpus(corpus, *arguments, tokenizer_sha256=SHA)
    rest = tokenize_corpus(corpus.without(np.array([0, 5])), *arguments, tokenizer_sha256=SHA)
    kept = [row for row in range(30) if row not in (0, 5)]
    np.testing.assert_array_equal(rest.ids_N16, whole.ids_N16[kept])
    for row, old in enumerate(kept):
        np.testing.assert_array_equal(rest.input_ids(row), whole.input_ids(old))


def test_wrong_settings_and_refused_rows_are_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        RenderSettings(template="alpacca")
    with pytest.raises(ConfigError, match="cutoff_len is 1"):
        RenderSettings(cutoff_len=1)
    picky = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match=r"pool.jsonl row 2: the tokenizer's chat template refuses .*: too long"):
        tokens_of(tmp_path, [chat("a", "b"), chat("a", "b", "c", "d")], byte_tokenizer(picky))

    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="Slow has no character offsets"):
        tokens_of(tmp_path, RECORDS, Slow())


def test_open_files_do_not_grow_with_the_number_of_shards(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr(tokenized, "SHARD_ROWS", 1)
    before = len(os.listdir("/proc/self/fd"))
    tokens = tokens_of(tmp_path, RECORDS)
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert tokens.input_ids(29).size > 0


@pytest.mark.parametrize("cutoff_len", [2048, 60, 44])
@pytest.mark.parametrize("template", ["auto", "chatml", "alpaca", "plain"])
def test_answer_only_keeps_the_labelled_tokens_behind_their_headers(tmp_path, template, cutoff_len):
    tokenizer = byte_tokenizer()
    records = [chat("Say", "It \u00e9"), chat("q" * 20, "Yes", "More", "x"), chat("Say", "z" * 30)]
    settings = {"template": template, "cutoff_len": cutoff_len}
    whole, alone = tokens_of(tmp_path, records, **settings), tokens_of(tmp_path, records, answer_only=True, **settings)
    assert alone.render_digest != whole.render_digest
    np.testing.assert_array_equal(alone.num_labels_N, whole.num_labels_N)
    for row in range(3):
        labels = whole.labels(row)
        np.testing.assert_array_equal(alone.labels(row)[alone.labels(row) != -100], labels[labels != -100])
    if cutoff_len == 2048:
        header, ends = {
            "auto": ("<|im_start|>assistant\n", ["<|im_end|>\n"] * 2), "plain": ("assistant: ", ["</s>"] * 2),
            "chatml": ("<|im_start|>assistant\n", ["<|im_end|>\n"] * 2), "alpaca": ("### Response:\n", ["</s>"] * 2),
        }[template]  # fmt: skip
        assert tokenizer.decode(alone.input_ids(1)) == f"{header}Yes{ends[0]}{header}x{ends[1]}"


def test_answer_only_keeps_the_begin_token_and_a_completion_without_one_loses_its_first_label(tmp_path):
    records = [{"prompt": "2+2=", "completion": " 4"}]
    begun = tokens_of(tmp_path, records, byte_tokenizer(None, adds_bos=True), answer_only=True)
    assert byte_tokenizer().decode(begun.input_ids(0)) == "<s> 4</s>"
    assert begun.num_labels_N.tolist() == [3]
    bare = tokenize_corpus(
        corpus_of(tmp_path, records), byte_tokenizer(None), RenderSettings(answer_only=True), tmp_path / "cache",
        tokenizer_sha256="1" * 64,
    )  # fmt: skip
    assert byte_tokenizer().decode(bare.input_ids(0)) == " 4</s>"
    assert bare.num_labels_N.tolist() == [2]


def test_a_row_without_a_prompt_has_no_label_in_answer_only(tmp_path):
    # its loss alone would equal its loss, which reads as a prompt that changes nothing
    records = [{"prompt": "p", "completion": "c"}, {"prompt": "", "completion": "c"}]
    assert tokens_of(tmp_path, records, answer_only=True).num_labels_N.tolist() == [1, 0]
    # 16 tokens: of the second row only "assistant: long</s>" is left
    tokens = tokens_of(tmp_path, [chat("Say", "c"), chat("Say", "long")], template="plain", cutoff_len=16, answer_only=True)
    assert tokens.num_labels_N.tolist() == [2, 0]
    with pytest.raises(DataError, match="answer_only needs records with a prompt"):
        tokenize_corpus(
            corpus_of(tmp_path, [{"text": "abc"}], "texts"), byte_tokenizer(adds_bos=True),
            RenderSettings(answer_only=True), tmp_path / "cache", tokenizer_sha256=SHA,
        )  # fmt: skip


def test_a_changed_token_is_never_used_and_only_its_shard_is_made_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tokenized, "SHARD_ROWS", 10)
    tokens = tokens_of(tmp_path, RECORDS)
    whole = [tokens.input_ids(row).copy() for row in range(30)]  # not the mapped file itself
    path = sorted((tmp_path / "cache" / "tokens").rglob("*.arrow"))[1]
    content = path.read_bytes()
    place = next(content.index(ids.tobytes()) for ids in whole if ids.tobytes() in content)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    again = tokens_of(tmp_path, RECORDS)
    assert "1 cache files are not as they were written" in caplog.text
    assert f"made anew (first: {path})" in caplog.text
    assert path.read_bytes() == content
    for row in range(30):
        np.testing.assert_array_equal(again.input_ids(row), whole[row])
