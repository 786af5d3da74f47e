"""What a stage reads, where some of it cannot be shown."""

import logging
from pathlib import Path

import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.data.packed import PackSettings
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.tokenized import RenderSettings
from dataflex_tools.stages.inputs import Tokenizer, read_text
from tests.data.builders import CHATML, byte_tokenizer, chat, write_jsonl

PICKY = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + CHATML


def test_documents_that_cannot_be_shown_are_left_out_of_packed_text_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marked = chat("a", "b")
    marked["messages"] += [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0}]
    good = [chat(f"q{number}", "yes") for number in range(4)]
    path = write_jsonl(tmp_path / "p.jsonl", [chat("a", "b", "c", "d"), *good, marked])
    tokenizer, pack = Tokenizer(byte_tokenizer(PICKY), "0" * 64), PackSettings(block_size=8)
    arguments = (tokenizer, RenderSettings(), pack, tmp_path / "cache")
    with pytest.raises(DataError, match=r"p.jsonl row 1: .*too long"):
        read_text([SourceSpec(path=str(path))], *arguments)
    with caplog.at_level(logging.WARNING, logger="flextools"):
        text = read_text([SourceSpec(path=str(path), skip_bad=True)], *arguments)
    assert "2 bad rows left out, refused by the template; first: " in caplog.text
    assert len(text.side.corpus) == 4
    assert text.train.num_documents_K.tolist() == [4]
    bad = write_jsonl(tmp_path / "bad.jsonl", [marked])
    with pytest.raises(DataError, match="none of the 1 documents can be used; first: .* trains on every token"):
        read_text([SourceSpec(path=str(bad), skip_bad=True)], *arguments)
