import hashlib
import json
import logging

import datasets
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec, open_source, parse_source
from tests.data.builders import write_jsonl


@pytest.fixture
def info(tmp_path):
    write_jsonl(tmp_path / "qa.jsonl", [{"q": "Hi", "c": "", "a": "Hello"}])
    entries = {
        "qa": {"file_name": "qa.jsonl", "columns": {"prompt": "q", "query": "c", "response": "a"}},
        "talk": {
            "hf_hub_url": "org/talk",
            "formatting": "sharegpt",
            "subset": "en",
            "columns": {"messages": "turns"},
            "tags": {"role_tag": "who"},
        },
        "rank": {"file_name": "qa.jsonl", "ranking": True},
        "image": {"file_name": "qa.jsonl", "columns": {"images": "images"}},
        "script": {"script_url": "x"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    return tmp_path / "dataset_info.json"


def test_a_llama_factory_entry_gives_file_columns_and_domain(info):
    source = open_source(parse_source(f"{info}:qa"))
    assert (source.spec.domain, source.spec.form) == ("qa", "alpaca")
    assert source.spec.columns == {"instruction": "q", "input": "c", "output": "a"}
    assert open_source(parse_source(f"web={info}:qa")).spec.domain == "web"


def test_a_llama_factory_hub_entry_takes_the_train_split(info, monkeypatch):
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_list([{"turns": [{"who": "human", "value": "a"}]}], split="train")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source(parse_source(f"{info}:talk"))
    assert asked == [("org/talk", "en", "train")]
    assert (source.spec.columns, source.spec.tags) == (
        {"conversations": "turns"},
        {"role_tag": "who"},
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("rank", "ranking: true"),
        ("image", "maps the column 'images'"),
        ("script", "'script_url', which is not supported"),
        ("qb", "no entry 'qb'; known: "),
    ],
)
def test_a_llama_factory_entry_that_cannot_be_followed_says_why(info, entry, message):
    with pytest.raises(ConfigError, match=message):
        open_source(parse_source(f"{info}:{entry}"))
    with pytest.raises(ConfigError, match=r"name one of them as"):
        open_source(SourceSpec(path=str(info)))


@pytest.fixture
def listed(tmp_path):
    """What LLaMA-Factory would make of an entry for one record of each form: the texts of its rows."""
    full = {
        "instruction": "I",
        "input": "N",
        "output": "O",
        "system": "S",
        "history": [["x", "y"]],
        "text": "T",
    }
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    write_jsonl(tmp_path / "full.jsonl", [full])
    write_jsonl(tmp_path / "turns.jsonl", [{"conversations": turns, "system": "S", "tools": "no list"}])
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")

    def texts(**entry):
        (tmp_path / "dataset_info.json").write_text(json.dumps({"it": entry}))
        spec = parse_source(f"{tmp_path}/dataset_info.json:it")
        found = open_corpus([spec], tmp_path / "cache", group="domain")
        return [found.text(row) for row in range(len(found))]

    return texts


def test_columns_that_an_entry_does_not_name_are_not_used(listed):
    full = "full.jsonl"
    assert listed(file_name=full) == ["user: I\nN\nassistant: O"]
    two = {"prompt": "instruction", "response": "output"}
    assert listed(file_name=full, columns=two) == ["user: I\nassistant: O"]
    assert listed(file_name=full, columns={**two, "system": "system", "query": None}) == ["system: S\nuser: I\nassistant: O"]
    assert listed(file_name=full, columns={**two, "history": "history"}) == ["user: x\nassistant: y\nuser: I\nassistant: O"]
    assert listed(file_name=full, columns={"query": "input", "response": "output"}) == ["user: N\nassistant: O"]
    assert listed(file_name="turns.jsonl", formatting="sharegpt") == ["user: a\nassistant: b"]


def test_an_entry_without_a_response_is_text(listed):
    assert listed(file_name="full.jsonl", columns={"prompt": "text"}) == ["T"]
    assert listed(file_name="lines.txt", columns={"prompt": "text"}) == ["one", "two"]
    with pytest.raises(ConfigError, match="maps 'prompt', 'query'; wanted 'response' too"):
        listed(file_name="full.jsonl", columns={"prompt": "text", "query": "input"})


def test_what_the_user_says_stands_above_the_entry(listed, tmp_path):
    listed(file_name="full.jsonl")
    spec = SourceSpec(path=f"{tmp_path}/dataset_info.json:it", form="text")
    assert open_corpus([spec], tmp_path / "cache", group="domain").text(0) == "T"
    spec = SourceSpec(path=f"{tmp_path}/dataset_info.json:it", columns={"system": "system"})
    assert open_corpus([spec], tmp_path / "cache", group="domain").text(0).startswith("system: S")


def test_the_train_split_of_a_file_is_the_file(listed):
    assert listed(file_name="full.jsonl", split="train") == ["user: I\nN\nassistant: O"]
    with pytest.raises(ConfigError, match="split has no effect"):
        listed(file_name="full.jsonl", split="test")


def test_another_sha1_than_the_entry_says_is_a_warning(listed, tmp_path, caplog):
    right = hashlib.sha1((tmp_path / "full.jsonl").read_bytes()).hexdigest()
    with caplog.at_level(logging.WARNING, logger="flextools"):
        listed(file_name="full.jsonl", file_sha1=right.upper())
        assert caplog.text == ""
        listed(file_name="full.jsonl", file_sha1="0" * 40)
    assert f"file_sha1 is {'0' * 40}, {tmp_path / 'full.jsonl'} has {right}" in caplog.text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"num_samples": 5}, "'num_samples', which is not supported: all rows are read"),
        ({"folder": "python"}, "'folder', which is not supported: fetch that folder"),
        ({"revision": "v1"}, "'revision', which is not supported"),
        (
            {"cloud_file_name": "s3://x"},
            "'cloud_file_name', which is not supported: fetch the file",
        ),
        ({"colums": {}}, "'colums', which is not supported; did you mean 'columns'"),
        ({"file_name": ["full.jsonl"]}, r"file_name holds \['full.jsonl'\], wanted a text"),
        ({"columns": ["prompt"]}, "columns holds .* wanted an object"),
        ({"columns": {"prompt": ["a"]}}, r"columns\.prompt holds \['a'\], wanted a name"),
        ({"tags": {"role_tag": 3}}, r"tags\.role_tag holds 3, wanted a name"),
        (
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "l"}},
            "maps the column 'kto_tag'",
        ),
        ({"columns": {"response": "output"}}, "maps columns but no 'prompt'"),
        (
            {"formatting": "sharegpt", "columns": {"tools": "tools"}},
            "maps columns but no 'messages'",
        ),
        ({"ranking": "yes"}, "ranking holds 'yes', wanted true or false"),
    ],
)
def test_what_an_entry_asks_for_is_followed_or_refused_by_name(listed, entry, message):
    with pytest.raises(ConfigError, match=message):
        listed(**{"file_name": "full.jsonl", **entry})


def test_an_entry_of_another_hub_or_without_a_file_is_refused(listed):
    with pytest.raises(ConfigError, match="neither file_name nor hf_hub_url; other hubs are not read"):
        listed(ms_hub_url="a/b")
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        listed(file_name="gone.jsonl")


@pytest.mark.parametrize("data", [b"\xff\xfe{", b"{", b"[" * 100_000])
def test_a_damaged_list_is_one_line(tmp_path, data):
    (tmp_path / "dataset_info.json").write_bytes(data)
    with pytest.raises(DataError, match="is not JSON in UTF-8") as caught:
        open_source(parse_source(f"{tmp_path}/dataset_info.json:it"))
    assert "\n" not in str(caught.value)
