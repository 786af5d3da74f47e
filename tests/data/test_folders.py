import gzip
import json
import os

import datasets
import pytest

from dataflex_tools.core.errors import ConfigError, DataError, FlextoolsError
from dataflex_tools.data.sources import SourceSpec, open_source, parse_source, read_records

LINE = '{"text": "%s"}\n'


@pytest.fixture
def folder(tmp_path):
    """Makes files in a folder; a name alone gives a file of one record that is the name."""
    root = tmp_path / "it"

    def make(*names, **contents):
        for name in (*names, *contents):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = contents.get(name, name if name.endswith(".txt") else LINE % name)
            path.write_bytes(gzip.compress(data.encode()) if name.endswith(".gz") else data.encode())
        root.mkdir(exist_ok=True)
        return root

    return make


def texts(source):
    spec = source if isinstance(source, SourceSpec) else parse_source(str(source))
    return [record["text"] for _, record in read_records(spec)]


def test_all_of_a_folder_is_read_compressed_in_folders_and_in_any_case(folder):
    names = ["a.jsonl", "b.jsonl.gz", "c.JSONL", "in/d.jsonl", "in/deep/e.jsonl"]
    root = folder(
        *names,
        "README.md",
        "LICENSE",
        "NOTICE.txt",
        "dataset_infos.json",
        ".hidden/x.jsonl",
        ".x.jsonl",
    )
    assert texts(root) == names
    assert open_source(parse_source(f"{root}/")).name == "it"


def test_the_address_of_a_folder_follows_the_place_of_its_files(folder):
    root = folder("a.jsonl", "in/b.jsonl")
    before = open_source(parse_source(str(root))).sha256()
    (root / "in" / "b.jsonl").rename(root / "b.jsonl")
    assert open_source(parse_source(str(root))).sha256() != before


@pytest.mark.parametrize(
    "left",
    [
        "b.zip",
        "b.tar.gz",
        "b.jsnl",
        "b.jsonl.lz4",
        "b.xlsx",
        "b.gz",
        "b.parquet.gz",
        "b.jsonl.part",
        "in/b.bin",
    ],
)
def test_data_that_would_be_left_out_is_named(folder, left):
    root = folder("a.jsonl", left)
    with pytest.raises(DataError, match=rf"would be read in part, without {left}; .* pattern: '{root}/\*\.jsonl'"):
        open_source(parse_source(str(root)))
    assert texts(f"{root}/*.jsonl") == ["a.jsonl"]


def test_what_is_no_data_is_passed_over_and_said(folder, caplog):
    root = folder("a.jsonl", "b.foo", "c.py", "_SUCCESS")
    with caplog.at_level("WARNING", logger="flextools"):
        assert texts(root) == ["a.jsonl"]
    assert caplog.text.endswith(f"{root}: no data, passed over: b.foo\n")


@pytest.mark.parametrize("other", ["b.csv", "b.txt", "in/b.json", "b.ndjson", "b.parquet"])
def test_files_of_several_kinds_are_refused(folder, other):
    with pytest.raises(DataError, match=r"holds files of several kinds .*; name one file, or those of one kind as"):
        open_source(parse_source(str(folder("a.jsonl", other))))


def test_a_file_that_lies_there_twice_is_named(folder):
    with pytest.raises(DataError, match=r"a\.jsonl both unpacked and compressed"):
        open_source(parse_source(str(folder("a.jsonl", "a.jsonl.gz"))))


def test_links_are_followed_once_and_a_link_to_nothing_is_an_error(folder, tmp_path):
    root = folder("a.jsonl")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "b.jsonl").write_text(LINE % "b")
    os.symlink(tmp_path / "far", root / "near")
    os.symlink(root, root / "again")
    assert texts(root) == ["a.jsonl", "b"]
    assert texts(f"{root}/**/*.jsonl") == ["a.jsonl", "b"]
    os.symlink(tmp_path / "nowhere", root / "z.jsonl")
    with pytest.raises(DataError, match=r"z\.jsonl, a link to nothing"):
        open_source(parse_source(str(root)))


SPLITS = [
    (["train.jsonl", "test.jsonl", "validation.jsonl"], "train"),
    (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "dev.jsonl.gz"], "train"),
    (["alpaca_train.jsonl", "alpaca_eval.jsonl"], "train"),
    (["train/a.jsonl", "test/a.jsonl"], "train"),
    (["data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl"], "train_sft"),
    (["wiki.train.txt", "train.txt", "valid.txt"], "train"),
]


@pytest.mark.parametrize(("names", "first"), SPLITS)
def test_several_splits_are_not_one_pool(folder, names, first):
    root = folder(*names)
    with pytest.raises(ConfigError, match=f"holds several splits: {first} .*; name .* as {root}:{first}"):
        open_source(parse_source(str(root)))


def test_a_split_that_is_named_is_read_by_any_of_its_names(folder):
    root = folder("train-0.jsonl", "train-1.jsonl", "dev.jsonl", "my_test.jsonl")
    assert texts(f"{root}:train") == ["train-0.jsonl", "train-1.jsonl"]
    assert texts(f"{root}:validation") == texts(f"{root}:dev") == ["dev.jsonl"]
    assert texts(f"{root}:test") == ["my_test.jsonl"]
    with pytest.raises(ConfigError, match="has no split 'tset'; did you mean 'test'"):
        open_source(parse_source(f"{root}:tset"))
    assert len(texts(f"all={root}/*.jsonl")) == 4


def test_files_beside_a_held_out_split_are_no_pool_with_it(folder):
    root = folder("pool.jsonl", "test.jsonl")
    with pytest.raises(ConfigError, match=r"several splits: test \(test\.jsonl\) beside pool\.jsonl; name a file"):
        open_source(parse_source(str(root)))
    assert texts(f"{root}:test") == ["test.jsonl"]


def test_files_without_a_split_are_read_with_the_train_split_or_named(folder):
    root = folder("a.jsonl", "b.jsonl")
    assert texts(f"{root}:train") == texts(root) == ["a.jsonl", "b.jsonl"]
    root = folder("train.jsonl")
    assert texts(root) == ["a.jsonl", "b.jsonl", "train.jsonl"]
    with pytest.raises(DataError, match=r"a\.jsonl, b\.jsonl would be left out of the split 'train'"):
        open_source(parse_source(f"{root}:train"))


def test_names_that_only_contain_the_word_of_a_split_are_none(folder):
    names = [
        "a_test_of_time.jsonl",
        "contest.jsonl",
        "evaluations.jsonl",
        "latest.jsonl",
        "training.jsonl",
    ]
    assert texts(folder(*names)) == names


def test_titles_of_texts_are_no_splits(folder):
    names = ["dev tools.txt", "on-test.txt", "test.txt", "train rides.txt"]
    assert len(texts(folder(*names))) == 4


def test_a_part_of_a_split_is_cut_from_all_of_it(folder):
    lines = "".join(LINE % index for index in range(4))
    root = folder(**{"train.jsonl": lines, "test.jsonl": lines})
    assert texts(f"{root}:train[:50%]") == ["0", "1"]
    folder("more.jsonl")
    with pytest.raises(DataError, match="would be left out of the split 'train'"):
        open_source(parse_source(f"{root}:train[:50%]"))


def test_a_folder_that_says_its_own_layout_is_read_by_it(folder):
    about = "---\nconfigs:\n- config_name: %s\n  data_files: %s.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
    root = folder("en.jsonl", "de.jsonl", **{"README.md": about % ("en", "en")})
    with pytest.raises(ConfigError, match="has the subsets en, de; name one"):
        open_source(parse_source(str(root)))
    assert texts(SourceSpec(path=str(root), subset="de")) == ["de.jsonl"]
    folder(**{"README.md": "---\n: [\n---\n"})
    with pytest.raises(DataError, match=r"README\.md begins with metadata that cannot be read"):
        open_source(parse_source(str(root)))
    folder(**{"README.md": "---\nlicense: mit\n---\n"})
    with pytest.raises(ConfigError, match="subset has no effect"):
        open_source(SourceSpec(path=str(root), subset="de"))


INSTEAD = [
    ({"adapter_config.json": "{}", "x.jsonl": LINE}, "is a LoRA adapter, no data"),
    (
        {"config.json": "{}", "tokenizer.json": "{}", "tokenizer_config.json": "{}"},
        "is a model or tokenizer, no data",
    ),
    ({"config.json": "{}", "model.safetensors": ""}, "is a model or tokenizer, no data"),
    (
        {"manifest.json": json.dumps({"kind": "plan", "digest": "0"})},
        "is a result of flextools, no data",
    ),
    (
        {"dataset_info.json": json.dumps({"a": {"file_name": "b"}}), "b.json": "[]"},
        "has a list of datasets; name one",
    ),
    ({}, "is an empty folder"),
    ({"a.docx": ""}, r"holds nothing that can be read \(a\.docx\)"),
]


@pytest.mark.parametrize(("contents", "message"), INSTEAD)
def test_a_folder_that_is_no_data_is_said_to_be_what_it_is(folder, contents, message):
    with pytest.raises(FlextoolsError, match=message):
        open_source(parse_source(str(folder(**contents))))


def test_saved_datasets_in_a_folder_are_named_one_by_one(folder):
    root = folder()
    for name in ("one", "two"):
        datasets.Dataset.from_dict({"text": [name]}).save_to_disk(str(root / name))
    with pytest.raises(DataError, match="holds saved datasets in folders; name one, as .*/one"):
        open_source(parse_source(str(root)))
    assert texts(root / "two") == ["two"]


def test_a_pattern_is_all_files_that_match_it_in_the_order_of_their_names(folder, monkeypatch):
    root = folder("b.jsonl", "a.jsonl", "c.jsonl.gz", "in/d.jsonl", "test.jsonl")
    assert texts(f"{root}/?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert texts(f"{root}/[bc].jsonl*") == ["b.jsonl", "c.jsonl.gz"]
    assert texts(f"web={root}/**/*.jsonl") == ["a.jsonl", "b.jsonl", "in/d.jsonl", "test.jsonl"]
    assert open_source(parse_source(f"{root}/*/*.jsonl")).name == "it"
    whole, pattern = (open_source(parse_source(f"{root}{rest}")) for rest in ("/in", "/in/*.jsonl"))
    assert whole.sha256() == pattern.sha256()
    monkeypatch.chdir(root)
    assert (texts("*.jsonl"), open_source(parse_source("*.jsonl")).name) == (
        ["a.jsonl", "b.jsonl", "test.jsonl"],
        "it",
    )
    odd = folder("x[1].jsonl")
    assert texts(odd / "x[1].jsonl") == ["x[1].jsonl"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*", r"also matches the folder .*/in; let the pattern end in the names of files"),
        ("**/*", r"matches what cannot be read: .*README has no ending"),
        ("*.tsv", "matches no file"),
        (
            "*.[cj]s*",
            r"holds files of several kinds \(\.csv, \.jsonl\); let the pattern end in the ending",
        ),
        ("a.jsonl*", "both unpacked and compressed"),
    ],
)
def test_a_pattern_that_matches_nothing_or_too_much_is_an_error(folder, pattern, message):
    root = folder("a.jsonl", "a.jsonl.gz", "b.csv", "in/b.jsonl", "README")
    with pytest.raises(DataError, match=message):
        open_source(parse_source(f"{root}/{pattern}"))


def test_a_split_of_a_pattern_has_no_effect(folder):
    root = folder("a.jsonl")
    with pytest.raises(ConfigError, match="split has no effect"):
        open_source(parse_source(f"{root}/*.jsonl:train"))
