import os

import datasets
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import (
    SourceSpec,
    check_exists,
    open_source,
    parse_source,
    read_records,
)
from tests.data.builders import alpaca, write_jsonl

ROWS = [alpaca(index) for index in range(5)]


def records(spec):
    return [record for _, record in read_records(spec)]


def test_short_forms_say_domain_split_and_entry(tmp_path):
    assert parse_source("a/b.jsonl") == SourceSpec(path="a/b.jsonl")
    assert parse_source("code=a/b.jsonl") == SourceSpec(path="a/b.jsonl", domain="code")
    assert parse_source("org/name:train") == SourceSpec(path="org/name", split="train")
    assert parse_source("x=org/name:train[:10%]") == SourceSpec(path="org/name", split="train[:10%]", domain="x")
    assert parse_source("d/dataset_info.json:web") == SourceSpec(path="d/dataset_info.json:web")
    odd = write_jsonl(tmp_path / "a=b:c.jsonl", ROWS)
    assert parse_source(str(odd)) == SourceSpec(path=str(odd))
    with pytest.raises(ConfigError, match="form domain=path"):
        parse_source("code=")


def test_a_spec_refuses_unknown_forms_columns_and_tags():
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        SourceSpec(path="x", form="alpacca")
    with pytest.raises(ConfigError, match="no name 'instructions'; did you mean 'instruction'"):
        SourceSpec(path="x", columns={"instructions": "q"})
    with pytest.raises(ConfigError, match="no name 'text'"):
        SourceSpec(path="x", form="alpaca", columns={"text": "q"})
    with pytest.raises(ConfigError, match="did you mean 'role_tag'"):
        SourceSpec(path="x", tags={"roletag": "q"})


def test_a_folder_of_files_is_read_in_name_order_and_numbered_through(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[3:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:3])
    found = list(read_records(SourceSpec(path=str(tmp_path))))
    assert found == list(enumerate(ROWS, start=1))


def test_saved_datasets_and_their_splits_are_read(tmp_path):
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    assert records(SourceSpec(path=str(tmp_path / "one"))) == ROWS
    datasets.DatasetDict(train=one, test=one.select([4, 0])).save_to_disk(str(tmp_path / "two"))
    assert records(parse_source(f"{tmp_path}/two:test")) == [ROWS[4], ROWS[0]]
    with pytest.raises(ConfigError, match="has the splits train, test"):
        open_source(SourceSpec(path=str(tmp_path / "two")))
    with pytest.raises(ConfigError, match="no split 'tset'; did you mean 'test'"):
        open_source(SourceSpec(path=str(tmp_path / "two"), split="tset"))


def test_a_hub_id_goes_to_load_dataset_with_subset_and_split(tmp_path, monkeypatch):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return datasets.load_from_disk(str(tmp_path / "one"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source(SourceSpec(path="org/name", subset="en", split=None))
    assert asked == [("org/name", "en", None)]
    assert source.name == "name"
    assert [record for _, record in source.records()] == ROWS


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def load_dataset(path, name, split):
        raise ConnectionError("Couldn't reach\n'org/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"org/name is no file here .* Couldn't reach 'org/name' on the Hub$"):
        open_source(SourceSpec(path="org/name"))


def test_what_is_not_there_or_has_no_effect_is_an_error(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    cases = [
        (SourceSpec(path="no/where.jsonl"), DataError, "does not exist"),
        (SourceSpec(path="nowhere"), DataError, "does not exist"),
        (SourceSpec(path=str(file), split="train"), ConfigError, "split has no effect"),
        (SourceSpec(path=str(file), subset="en"), ConfigError, "subset has no effect"),
    ]
    for spec, error, message in cases:
        with pytest.raises(error, match=message):
            open_source(spec)
    (tmp_path / "x.docx").write_text("a")
    with pytest.raises(DataError, match=r"ends in '.docx'; files that can be read end in .jsonl"):
        open_source(SourceSpec(path=str(tmp_path / "x.docx")))
    (tmp_path / "b.csv").write_text("a")
    with pytest.raises(DataError, match=r"several kinds \(.csv, .jsonl\)"):
        open_source(SourceSpec(path=str(tmp_path)))
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        records(SourceSpec(path=str(tmp_path / "e.jsonl")))


def test_text_files_are_one_record_each_in_name_order(tmp_path):
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a.TXT").write_text("first\nline")
    assert list(read_records(SourceSpec(path=str(tmp_path)))) == [(1, {"text": "first\nline"}), (2, {"text": "second\n"})]
    assert records(SourceSpec(path=str(tmp_path / "b.txt"))) == [{"text": "second\n"}]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.txt").write_text("third")
    assert [record["text"] for record in records(SourceSpec(path=str(tmp_path)))][2] == "third"


def test_a_text_file_beside_data_is_no_data(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "LICENSE.txt").write_text("MIT")
    assert records(SourceSpec(path=str(tmp_path))) == ROWS


def test_a_text_file_without_text_or_that_is_no_text_is_named(tmp_path):
    for content, message in (
        (b"", "x.txt is empty"), (b"a\xff\xfe", "x.txt is not text in UTF-8 .*: convert it"),
        (b' {"a": 1}\n{"a": 2}\n', "x.txt does not hold plain text; .* rename it to end in .jsonl"),
        (b"version https://git-lfs", "x.txt does not hold plain text; .* run `git lfs pull`"),
    ):  # fmt: skip
        (tmp_path / "x.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            records(SourceSpec(path=str(tmp_path / "x.txt")))
    (tmp_path / "x.txt").write_text('{"a": [\n')
    assert records(SourceSpec(path=str(tmp_path / "x.txt"))) == [{"text": '{"a": [\n'}]
    (tmp_path / "x.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"x.txt row 1: the record has no answer: text is empty"):
        open_corpus([SourceSpec(path=str(tmp_path / "x.txt"))], tmp_path / "cache", group="domain")


def test_the_content_address_follows_the_bytes(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    before = open_source(SourceSpec(path=str(file))).sha256()
    assert open_source(SourceSpec(path=str(file))).sha256() == before
    write_jsonl(file, ROWS[1:])
    assert open_source(SourceSpec(path=str(file))).sha256() != before


def test_bytes_of_a_name_that_are_no_text_are_refused_before_anything_is_read(tmp_path):
    name = os.fsdecode(b"pool\xff.jsonl")
    for settings in ({"path": name}, {"path": "x", "domain": name}, {"path": "x", "columns": {"text": name}}):
        with pytest.raises(ConfigError, match="is not text in UTF-8; give it another name"):
            SourceSpec(**settings)


def test_asked_columns_are_those_of_the_forms_and_the_groups():
    spec = SourceSpec(path="x", form="alpaca", columns={"instruction": "q"}, domain_column="meta.source")
    unreadable = {"images", "videos", "audios", "chat_template_kwargs"}  # which a row is refused for
    always = {"tools", "functions", *unreadable}
    assert spec.asked == {"q", "input", "output", "history", "system", "meta.source", "meta"} | always
    spec = SourceSpec(path="x", form="alpaca", leave_out=["history", "system"])
    assert spec.asked == {"instruction", "input", "output"} | always
    with pytest.raises(ConfigError, match="leave_out has no name 'sytem'; did you mean 'system'"):
        SourceSpec(path="x", form="alpaca", leave_out=["sytem"])
    with pytest.raises(ConfigError, match="leave_out and columns both name 'system'"):
        SourceSpec(path="x", form="alpaca", leave_out=["system"], columns={"system": "s"})


def test_what_is_left_out_is_not_used_and_is_read_anew(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{**ROWS[0], "system": "S", "history": [["x", "y"]]}])
    with_all, without = (
        open_corpus([SourceSpec(path=str(file), leave_out=names)], tmp_path / "cache", group="domain")
        for names in ((), ("system", "history"))
    )
    assert with_all.text(0) == "system: S\nuser: x\nassistant: y\nuser: Say 0.\nassistant: It is 0."
    assert without.text(0) == "user: Say 0.\nassistant: It is 0."


def test_lines_of_a_text_file_are_records_where_that_is_said(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n two \n".encode() + b"\xff\n")
    spec = SourceSpec(path=str(tmp_path / "a.txt"), lines=True, skip_bad=True)
    assert list(read_records(spec)) == [(1, {"text": "one"}), (3, {"text": " two "})]
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="lines has no effect"):
        open_source(SourceSpec(path=str(tmp_path / "a.jsonl"), lines=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/pool.jsnl", r"does not exist; did you mean 'data/pool\.jsonl'"),
        ("data/pool.JSONL.gz", r"does not exist; did you mean 'data/pool\.jsonl'"),
        ("elsewhere/pool.parqet", "does not exist; wanted a file, a folder, or a Hub id"),
        ("https://host/pool.jsonl", "is an address; fetch it and name the file"),
        ("data/*.csv", "matches no file"),
    ],
)
def test_a_mistyped_name_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "pool.jsonl", ROWS)
    monkeypatch.setattr(datasets, "load_dataset", None)
    for look in (check_exists, open_source):
        with pytest.raises(DataError, match=message):
            look(SourceSpec(path=name))


@pytest.mark.parametrize("name", ["allenai/c4.en", "org/v1.5-json", "org/name.raw"])
def test_a_hub_name_with_a_dot_in_it_is_one(name):
    check_exists(SourceSpec(path=name))


def test_a_name_that_could_be_both_is_looked_for_and_the_nearest_file_is_named(tmp_path, monkeypatch):
    def load_dataset(path, name, split):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "pool.jsonl", ROWS)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"no file here \(did you mean 'data/pool\.jsonl'\?\) and cannot be loaded"):
        open_source(SourceSpec(path="data/pool"))


def test_a_bad_record_among_many_files_is_named_with_its_file(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", [ROWS[0], {"instruction": "x", "output": ""}])
    with pytest.raises(DataError, match=r"b\.jsonl row 2: the record has no answer"):
        open_corpus([SourceSpec(path=str(tmp_path))], tmp_path / "cache", group="domain")
