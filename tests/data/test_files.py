import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.files import bare_name, kind_of, looks_like
from dataflex_tools.data.readers import read_file
from dataflex_tools.data.sources import SourceSpec, open_source

PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
TEXTS = {
    ".jsonl": b'{"text": "a"}\n{"text": "b"}\n',
    ".ndjson": b'{"text": "a"}\n{"text": "b"}\n',
    ".json": b'[{"text": "a"}, {"text": "b"}]',
    ".csv": b"text\na\nb\n",
    ".tsv": b"text\nb\n",
    ".txt": b"a\n",
}


def fail(number, message):
    raise AssertionError(f"row {number} {message}")


def read(path):
    return [record for _, record in read_file(path, fail)]


@pytest.mark.parametrize("packing", sorted(PACKERS))
@pytest.mark.parametrize("ending", sorted(TEXTS))
def test_a_compressed_file_gives_the_records_of_the_file_in_it(tmp_path, packing, ending):
    plain = tmp_path / f"x{ending}"
    plain.write_bytes(TEXTS[ending])
    packed = tmp_path / f"X{ending.upper()}{packing.upper()}"
    packed.write_bytes(PACKERS[packing](TEXTS[ending]))
    assert read(packed) == read(plain)
    assert (kind_of(packed), bare_name(packed)) == (ending, "X")


@pytest.mark.parametrize("packing", sorted(PACKERS))
def test_streams_one_after_the_other_are_one_file(tmp_path, packing):
    path = tmp_path / f"x.jsonl{packing}"
    path.write_bytes(PACKERS[packing](b'{"text": "a"}\n') + PACKERS[packing](b'{"text": "b"}\n'))
    assert read(path) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("packing", sorted(PACKERS))
def test_a_cut_or_misnamed_packing_is_named_with_what_to_do(tmp_path, packing):
    packed = PACKERS[packing](b"".join(b'{"text": "%d"}\n' % number for number in range(100)))
    cases = (
        (
            f"cut.jsonl{packing}",
            packed[:-6],
            "cannot be unpacked .* damaged or cut off: fetch it again",
        ),
        (
            f"plain.jsonl{packing}",
            b'{"text": "a"}\n',
            r"cannot be unpacked .* rename it to end in \.jsonl$",
        ),
        ("packed.jsonl", packed, rf"rename it to end in \.jsonl\{packing}$"),
    )
    for name, data, message in cases:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read(path)


def test_a_cache_of_a_compressed_file_is_not_taken_for_the_same_bytes_under_another_name(tmp_path):
    right, wrong = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"
    right.write_bytes(gzip.compress(TEXTS[".jsonl"]))
    wrong.write_bytes(right.read_bytes())
    corpus = open_corpus([SourceSpec(path=str(right))], tmp_path / "cache", group="domain")
    assert (len(corpus), corpus.group_names) == (2, ("a",))
    with pytest.raises(DataError, match="looks like gzip"):
        open_corpus([SourceSpec(path=str(wrong))], tmp_path / "cache", group="domain")


@pytest.mark.parametrize("name", ["A.JSONL", "A.Tsv", "A.CSV", "A.NDJSON", "A.TXT", "A.JSON"])
def test_endings_are_read_in_any_case(tmp_path, name):
    upper, lower = tmp_path / name, tmp_path / f"b{Path(name).suffix.lower()}"
    data = b"text\tn\na\t1\n" if name == "A.Tsv" else TEXTS[lower.suffix]
    upper.write_bytes(data)
    lower.write_bytes(data)
    assert read(upper) == read(lower) != []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.tar.gz", "is an archive; unpack it"),
        ("x.zip", "is an archive; unpack it"),
        ("x.parquet.gz", "parquet files are read unpacked"),
        ("x.gz", r"does not say what is compressed; rename it, for example to x\.jsonl\.gz"),
        ("x", r"has no ending; .* rename it to end in \.jsonl"),
        ("x.jsnl", r"ends in '\.jsnl'; .* rename it to end in \.jsonl"),
    ],
)
def test_a_file_whose_ending_says_nothing_is_refused_with_what_it_looks_like(tmp_path, name, message):
    (tmp_path / name).write_bytes(TEXTS[".jsonl"])
    with pytest.raises(DataError, match=message):
        open_source(SourceSpec(path=str(tmp_path / name)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt"])
def test_text_in_utf_16_is_said_to_be_that(tmp_path, encoding, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes((TEXTS[ending].decode() + "and more text").encode(encoding))
    with pytest.raises(DataError, match="looks like text in UTF-16: convert it to UTF-8"):
        read(path)


PRETTY = json.dumps({"text": "a", "tags": ["b"]}, indent=1)
CHAT = json.dumps({"messages": [{"role": "user", "content": "a"}]}, indent=2)
WRAPPED = json.dumps({"version": 1.5, "data": [{"text": "a" * 100}] * 3}, indent=2)
LONG = json.dumps({"version": "1", "data": [{"text": "a" * 100}] * 2000}, indent=2)


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (f"{PRETTY}\n{PRETTY}\n", "."),
        (PRETTY, "."),
        (CHAT, "."),
        (WRAPPED, ".data[]"),
        (LONG, ".data[]"),
    ],
)
def test_json_over_several_lines_is_told_how_to_become_lines(tmp_path, ending, text, chosen):
    path = tmp_path / f"x{ending}"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_file(path, lambda number, message: None))
    assert f"JSON written over several lines: write one object per line (jq -c '{chosen}' " in str(caught.value)


def test_a_broken_first_line_is_a_bad_row_and_no_other_format(tmp_path):
    path = tmp_path / "x.jsonl"
    told = []
    for first in ('{"text": ', '{"text": "a', "7"):
        path.write_text(first + "\n" + '{"text": "b"}\n' * 3)
        assert len(list(read_file(path, lambda number, message: told.append(number)))) == 3
    assert told == [1, 1, 1]


def test_texts_that_begin_like_another_format_are_texts_all_the_same(tmp_path):
    for text in ("<html>\n", PRETTY, "PARENT,x\n", "BZhou\n", "[1]"):
        path = tmp_path / "x.txt"
        path.write_text(text)
        assert read(path) == [{"text": text}]
    path = tmp_path / "x.csv"
    path.write_text("PARENT,text\na,b\n")
    assert read(path) == [{"PARENT": "a", "text": "b"}]


def test_a_column_name_that_stands_twice_in_a_csv_is_an_error_where_it_is_asked_for(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,n,n\na,1,2\n")
    with pytest.raises(DataError, match="has 2 columns called 'n'"):
        list(read_file(path, fail, {"n"}))
    assert [record["text"] for _, record in read_file(path, fail, {"text"})] == ["a"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!doctype html>", "a web page"),
        (b"PK\x03\x04\x14\x00", "a zip archive"),
        (b"\xff\xff\xff\xff\x00\x01", r"an Arrow IPC stream: rename it to end in \.arrow"),
        (b"PAR1\x15\x04\x00", r"Parquet: rename it to end in \.parquet"),
    ],
)
def test_first_bytes_say_what_a_file_is(tmp_path, data, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_cut_file_under_the_right_ending_is_not_told_to_be_renamed(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1\x15\x04\x00")
    assert looks_like(path) == "it begins as Parquet and is damaged or cut off: fetch it again"
