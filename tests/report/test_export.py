"""Exports: what a trainer reads from each file is the mixture, and what a format cannot say is an error or a line."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.mixing import Mixture
from dataflex_tools.report.export import FORMATS, export, export_text
from dataflex_tools.report.proportions import Wanted
from tests.artifact.examples import measure, mix, mixture_facts, online_mixture, plan, random_ids

WEIGHTS = {"web": 0.1, "code": 0.7, "maths": 0.2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mix(tmp_path / "m", Mixture.constant(tuple(WEIGHTS), np.array(list(WEIGHTS.values()))))
    return tmp_path / "m"


def read(folder: Path, to: str, out: Path, **wanted: Any) -> tuple[dict[str, Any], Any]:
    """The result, and what the trainer's own way of reading finds in the first file; draws are of blocks unless told."""
    wanted = {"draws": "blocks"} | wanted
    result = export(folder, to, out, wanted=Wanted(**wanted))
    text = Path(result["files"][0]).read_text(encoding="utf-8")
    return result, json.loads(text) if to == "datasets" else text.split() if to == "megatron" else yaml.safe_load(text)


def weights_in(to: str, content: Any) -> list[float]:
    """Weights as the trainer understands them, in its order."""
    if to == "datasets":
        return content["probabilities"]
    if to == "llamafactory":
        return [float(item) for item in content["interleave_probs"].split(",")]
    if to == "megatron":
        return [float(item) for item in content[::2]]
    if to == "mosaicml":
        return [stream["proportion"] for stream in content["train_loader"]["dataset"]["streams"].values()]
    return [source["target_ratio"] for source in content["sources"]]


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_has_the_weights_to_the_last_bit(folder: Path, tmp_path: Path, to: str) -> None:
    result, content = read(folder, to, tmp_path / "out")
    given_K = np.array(list(WEIGHTS.values()))
    np.testing.assert_array_equal(weights_in(to, content), given_K / given_K.sum())
    assert result["weights"] == weights_in(to, content)
    assert result["names"] == list(WEIGHTS)
    assert sorted(result["files"]) == sorted(str(path) for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_tiny_and_rounded_weights_stay_numbers_that_sum_to_1(tmp_path: Path, to: str) -> None:
    weight_SK = np.array([[1e-9, 0.333333, 0.666666]])  # off by 1e-6, as rounding to six digits leaves it
    mix(tmp_path / "m", Mixture(("web", "code", "maths"), np.zeros(1, dtype=np.int64), weight_SK))
    weights = weights_in(to, read(tmp_path / "m", to, tmp_path / "out")[1])
    assert all(isinstance(weight, float) for weight in weights)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(weights, weight_SK[0] / weight_SK.sum(), rtol=1e-12)


@pytest.mark.parametrize("to", FORMATS)
def test_domains_of_weight_0_are_left_out_and_named(tmp_path: Path, to: str) -> None:
    mix(tmp_path / "m", Mixture.constant(("web", "code", "maths"), np.array([1.0, 0.0, 3.0])))
    result, content = read(tmp_path / "m", to, tmp_path / "out")
    assert result["names"] == ["web", "maths"]
    assert weights_in(to, content) == [0.25, 0.75]
    assert "left out for their weight of 0: code" in export_text(result)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(("step", "entry"), [(None, -1), (0, 0), (9, 0), (10, 1), (11, 1), (59, 5), (60, 6), (10**6, 6)])
def test_a_schedule_gives_the_weights_of_one_step_and_says_so(tmp_path: Path, to: str, step: int | None, entry: int) -> None:
    given = online_mixture(schedule=True)
    mix(tmp_path / "m", given)
    result, content = read(tmp_path / "m", to, tmp_path / "out", step=step)
    np.testing.assert_allclose(weights_in(to, content), given.weight_SK[entry], rtol=1e-15)
    assert result["step"] == given.step_S[entry]
    assert f"from optimizer step {given.step_S[entry]} on; --step N" in export_text(result)


def test_interleave_datasets_draws_the_exported_probabilities(folder: Path, tmp_path: Path) -> None:
    _, mixed = read(folder, "datasets", tmp_path / "out")
    parts = [datasets.Dataset.from_dict({"domain": [name] * 20_000}) for name in mixed["names"]]
    rows = datasets.interleave_datasets(parts, probabilities=mixed["probabilities"], seed=0)
    for name, weight in WEIGHTS.items():
        found = np.mean(np.array(rows["domain"][:]) == name)
        assert found == pytest.approx(weight, abs=4 * np.sqrt(weight * (1 - weight) / len(rows)))


def mixed_by(program: Path) -> Any:
    """What the program that was written draws, run from another folder."""
    before = Path.cwd()
    os.chdir(program.parent.parent)
    try:
        return runpy.run_path(str(program))["mixed"]
    finally:
        os.chdir(before)


def facts_of(root: Path, data: dict[str, tuple[str, dict[str, str], int]], **pack: Any) -> dict[str, Any]:
    """Facts of a mixture of packed text: {domain: (path, further settings, rows)}."""
    sources = [{"path": str(root / path), "domain": n, "rows": rows, "form": "text"} for n, (path, _, rows) in data.items()]
    specs = [{"path": str(root / path), "domain": name, **more} for name, (path, more, _) in data.items()]
    corpus = {**mixture_facts()["corpus"], "sources": sources, "domains": {n: rows for n, (_, _, rows) in data.items()}}
    counts = dict.fromkeys(data, 100)
    stats = {"num_tokens": counts, "num_documents": counts}
    config = {"method": "doremi", "data": specs, "pack": {"block_size": 8, **pack}}
    return {"corpus": corpus, "stats": stats, "config": config}


def text_of_all_kinds(root: Path) -> dict[str, Any]:
    """Files with other columns beside the text, of another name, compressed, and a folder given with its slash."""
    rows = [{"text": f"web {i}", "id": i} for i in range(300)]
    (root / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    books = {"content": [f"books {i}" for i in range(300)], "id": [f"b{i}" for i in range(300)]}
    datasets.Dataset.from_dict(books).to_parquet(root / "books.parquet")
    (root / "code").mkdir()
    for i in range(300):
        (root / "code" / f"{i}.txt").write_text(f"code {i}\nmore\n")
    data: dict[str, tuple[str, dict[str, Any], int]] = {
        "web": ("web.jsonl", {}, 300),
        "books": ("books.parquet", {"columns": {"text": "content"}}, 300),
        "code": ("code/", {}, 300),
    }
    return facts_of(root, data)


def test_the_program_that_is_written_runs_and_draws_whole_documents(tmp_path: Path) -> None:
    facts = text_of_all_kinds(tmp_path)
    mix(tmp_path / "m", Mixture.constant(("web", "books", "code"), np.array([0.5, 0.25, 0.25])), **facts)
    export(tmp_path / "m", "datasets", tmp_path / "out")
    mixed = mixed_by(tmp_path / "out" / "interleave.py")
    assert mixed.column_names == ["text"]
    domains = [text.split()[0] for text in mixed["text"][:]]
    assert max(map(domains.count, ("web", "books", "code"))) == 300  # ends when one is used up
    assert domains.count("web") == pytest.approx(len(domains) / 2, abs=60)
    assert "code 0\nmore\n" in mixed["text"][:]  # a file is a document


def test_several_sources_of_samples_are_loaded_with_their_columns(tmp_path: Path) -> None:
    for part in range(2):
        rows = {"instruction": [f"code {i}" for i in range(150)], "output": ["x"] * 150}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{part}.parquet")
    (tmp_path / "web.jsonl").write_text(
        "".join(json.dumps({"instruction": "web", "output": "y"}) + "\n" for _ in range(300))
    )
    paths = [("web", "web.jsonl", 300), ("code", "0.parquet", 150), ("code", "1.parquet", 150)]
    sources = [{"path": str(tmp_path / path), "domain": name, "rows": rows} for name, path, rows in paths]
    corpus = {**mixture_facts()["corpus"], "sources": sources}
    mix(tmp_path / "m", Mixture.constant(("web", "code"), np.ones(2)), corpus=corpus)
    export(tmp_path / "m", "datasets", tmp_path / "out", wanted=Wanted(draws="blocks"))
    mixed = mixed_by(tmp_path / "out" / "interleave.py")
    assert set(mixed.column_names) == {"instruction", "output"}
    assert mixed["instruction"][:].count("web") == pytest.approx(len(mixed) / 2, abs=50)


def test_what_cannot_be_loaded_is_said_and_the_program_takes_data_sets(tmp_path: Path) -> None:
    corpus = {**mixture_facts()["corpus"], "sources": [{"path": "org/name", "domain": "web", "rows": 3}]}
    mix(tmp_path / "m", Mixture.constant(("web",), np.ones(1)), corpus=corpus)
    result, content = read(tmp_path / "m", "datasets", tmp_path / "out")
    assert "load" not in content
    assert "interleave.py cannot load web" in export_text(result)
    program = runpy.run_path(str(tmp_path / "out" / "interleave.py"))
    assert len(program["mixture"]({"web": datasets.Dataset.from_dict({"text": ["a", "b"]})})) == 2


def test_entries_for_llamafactory_name_files_and_columns(tmp_path: Path) -> None:
    facts = text_of_all_kinds(tmp_path)
    names, shares = ("web", "books", "code"), np.array([0.5, 0.25, 0.25])
    mix(tmp_path / "m", Mixture.constant(names, shares), **facts)
    result = export(tmp_path / "m", "llamafactory", tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert entries == {
        "web": {"file_name": str(tmp_path / "web.jsonl"), "columns": {"prompt": "text"}},
        "books": {"file_name": str(tmp_path / "books.parquet"), "columns": {"prompt": "content"}},
    }
    assert "no entry of dataset_info.json can be written for code" in export_text(result)
    assert "dataset_dir" not in yaml.safe_load((tmp_path / "out" / "llamafactory.yaml").read_text())
    whole = export(tmp_path / "m", "llamafactory", tmp_path / "whole", wanted=Wanted(sources=("code=mine",)))
    assert "of your own dataset_info.json (dataset_dir) are the entries mine" in export_text(whole)
    (tmp_path / "m").rename(tmp_path / "old")
    mix(tmp_path / "m", Mixture.constant(names, np.array([0.5, 0.5, 0.0])), **facts)
    export(tmp_path / "m", "llamafactory", tmp_path / "two")
    assert yaml.safe_load((tmp_path / "two" / "llamafactory.yaml").read_text())["dataset_dir"] == str(tmp_path / "two")


def test_entries_of_samples_map_every_column_that_the_records_have(tmp_path: Path) -> None:
    files = {
        "alpaca": [{"instruction": "a", "input": "", "output": "b", "system": "s", "other": 1}],
        "messages": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
        "sharegpt": [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": ""}],
    }
    for name, records in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    sources = [{"path": str(tmp_path / f"{n}.json"), "domain": n, "rows": 1, "form": n} for n in files]
    corpus = {**mixture_facts()["corpus"], "sources": sources}
    mix(tmp_path / "m", Mixture.constant(tuple(files), np.ones(3)), corpus=corpus)
    export(tmp_path / "m", "llamafactory", tmp_path / "out", wanted=Wanted(draws="blocks"))
    entries = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    assert entries["alpaca"]["columns"] == columns
    assert entries["sharegpt"] == {
        "file_name": str(tmp_path / "sharegpt.json"),
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    }
    assert entries["messages"]["tags"]["assistant_tag"] == "assistant"
    assert entries["messages"]["columns"] == {"messages": "messages"}


def test_a_folder_with_its_slash_is_the_folder(tmp_path: Path) -> None:
    mix(tmp_path / "m", Mixture.constant(("web", "books", "code"), np.ones(3)), **text_of_all_kinds(tmp_path))
    prefixes = read(tmp_path / "m", "megatron", tmp_path / "a")[1][1::2]
    assert prefixes == [str(tmp_path / f"{name}_document") for name in ("web_text", "books_content", "code_text")]
    about = (tmp_path / "a" / "data_args.about.txt").read_text()
    assert f"--input {tmp_path}/web.jsonl --json-keys text --output-prefix {tmp_path}/web" in about
    assert "books.parquet-AS-JSONL --json-keys content" in about
    streams = read(tmp_path / "m", "mosaicml", tmp_path / "b")[1]["train_loader"]["dataset"]["streams"]
    assert streams["code"]["local"] == f"{tmp_path}/code-mds"  # the folder itself holds the text
    assert read(tmp_path / "m", "olmo", tmp_path / "c")[1]["sources"][2]["paths"] == [f"{tmp_path}/code-tokens/*.npy"]


@pytest.mark.parametrize("to", FORMATS)
def test_held_out_documents_are_left_out_of_a_copy_and_else_said_to_be_there(tmp_path: Path, to: str) -> None:
    facts = facts_of(tmp_path, {"web": ("web.jsonl", {}, 120), "a/b": ("b.jsonl", {}, 110)}, held_out=0.1)
    mix(tmp_path / "m", Mixture.constant(("web", "a/b"), np.ones(2)), **facts)
    said = export_text(export(tmp_path / "m", to, tmp_path / "out"))
    assert "keeps back (web 20 of 120, a/b 10 of 110): a model trained on them must not be judged" in said

    def copy(folder: Path, files: Any) -> None:
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"text": "x"}\n')

    result = export(tmp_path / "m", to, tmp_path / "copy", copy=copy)
    assert "are left out of the copied text" in export_text(result)
    first = Path(result["files"][0]).read_text()
    name = "text/a_b" if to in ("datasets", "llamafactory") else f"{tmp_path}/copy/text/a_b"
    assert name in first or name in Path(result["files"][1]).read_text()
    assert str(tmp_path / "copy" / "text" / "a_b.jsonl") in result["files"]
    with pytest.raises(ConfigError, match="is there; choose another -o, or give --overwrite"):
        export(tmp_path / "m", to, tmp_path / "copy", copy=copy)
    export(tmp_path / "m", to, tmp_path / "copy", copy=copy, overwrite=True)


def test_probabilities_of_documents_give_the_weights_in_tokens(folder: Path, tmp_path: Path) -> None:
    # web: 600 tokens in 4 documents, code: 200 in 6, maths: 100 in 2
    mean = {"web": 150, "code": 200 / 6, "maths": 50}
    for to in ("datasets", "llamafactory"):
        result, content = read(folder, to, tmp_path / to, draws=None)  # what they draw
        probability = weights_in(to, content)
        assert sum(probability) == pytest.approx(1)
        tokens = [p * mean[name] for p, name in zip(probability, result["names"], strict=True)]
        np.testing.assert_allclose(np.array(tokens) / sum(tokens), list(WEIGHTS.values()), rtol=1e-12)
        assert "web 150.0, code 33.3, maths 50.0" in export_text(result)
    with pytest.raises(ConfigError, match="--draws has no effect on olmo"):
        export(folder, "olmo", tmp_path / "olmo", wanted=Wanted(draws="documents"))
    mix(tmp_path / "bare", Mixture.constant(("web", "code"), np.ones(2)), stats={})
    with pytest.raises(ConfigError, match="the mean length of a domain's documents.*give --draws blocks if"):
        export(tmp_path / "bare", "datasets", tmp_path / "x")


def test_a_domain_of_several_sources_shares_its_weight_by_their_rows(tmp_path: Path) -> None:
    paths = [("web", "a/web.jsonl.gz", 30), ("web", "s3://b/web2.parquet", 10), ("code", "code", 5), ("code", "none.txt", 0)]
    sources = [{"path": path, "domain": name, "rows": rows} for name, path, rows in paths]
    mix(
        tmp_path / "m",
        Mixture.constant(("web", "code"), np.ones(2)),
        corpus={**mixture_facts()["corpus"], "sources": sources},
    )
    _, words = read(tmp_path / "m", "megatron", tmp_path / "megatron")
    assert words == ["0.375", "a/web_text_document", "0.125", "s3://b/web2_text_document", "0.5", "code_text_document"]
    _, content = read(tmp_path / "m", "mosaicml", tmp_path / "mosaicml")
    assert content["train_loader"]["dataset"]["streams"] == {
        "web part 1": {"local": "a/web", "proportion": 0.375},
        "web part 2": {"remote": "s3://b/web2", "proportion": 0.125},
        "code": {"local": "code-mds", "proportion": 0.5},
    }
    _, content = read(tmp_path / "m", "olmo", tmp_path / "olmo")
    assert content["sources"] == [
        {"source_name": "web", "target_ratio": 0.5, "paths": ["a/web/*.npy", "s3://b/web2/*.npy"]},
        {"source_name": "code", "target_ratio": 0.5, "paths": ["code-tokens/*.npy"]},
    ]


def test_a_source_that_is_given_stands_as_it_is(folder: Path, tmp_path: Path) -> None:
    given = ("web=/d/web.bin.txt", "code=entry_7", "maths=s3://b/m")
    assert read(folder, "megatron", tmp_path / "a", sources=given)[1][1::2] == ["/d/web.bin.txt", "entry_7", "s3://b/m"]
    assert read(folder, "llamafactory", tmp_path / "b", sources=given[1:2])[1]["dataset"] == "web,entry_7,maths"
    streams = read(folder, "mosaicml", tmp_path / "c", sources=given)[1]["train_loader"]["dataset"]["streams"]
    assert [set(stream) - {"proportion"} for stream in streams.values()] == [{"local"}, {"local"}, {"remote"}]
    assert read(folder, "olmo", tmp_path / "d", sources=given)[1]["sources"][2]["paths"] == ["s3://b/m"]


def test_llamafactory_reads_one_domain_as_a_list_of_one(tmp_path: Path) -> None:
    mix(tmp_path / "m", Mixture.constant(("web",), np.ones(1)))
    content = read(tmp_path / "m", "llamafactory", tmp_path / "out")[1]
    fragment = {"dataset": "web", "mix_strategy": "interleave_under", "interleave_probs": "1.0"}
    assert content == {"dataset_dir": str(tmp_path / "out"), **fragment}


def test_names_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    sources = [{"path": "my data/web.jsonl", "domain": "web", "rows": 3}]
    corpus = {**mixture_facts()["corpus"], "sources": sources}
    mix(tmp_path / "m", Mixture.constant(("web", "a,b"), np.ones(2)), corpus=corpus)
    with pytest.raises(ConfigError, match=r"'a,b' cannot stand in a list divided by commas; give --source DOMAIN=ENTRY"):
        export(tmp_path / "m", "llamafactory", tmp_path / "out", wanted=Wanted(draws="blocks"))
    with pytest.raises(ConfigError, match=r"'a,b' has no source of its own.*--source 'a,b=PATH'"):
        export(tmp_path / "m", "olmo", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"divides its list at white space, found 'my data/web_text_document'"):
        export(tmp_path / "m", "megatron", tmp_path / "out", wanted=Wanted(sources=("a,b=x",)))
    assert not (tmp_path / "out").exists()


def test_wrong_use_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"no format is named 'llamafactor'; did you mean 'llamafactory'\?"):
        export(folder, "llamafactor", out)
    with pytest.raises(ConfigError, match=r"--source names 'cod', no domain of .*; did you mean 'code'\?"):
        export(folder, "olmo", out, wanted=Wanted(sources=("cod=x",)))
    for text in ("code", "=x", "code="):
        with pytest.raises(ConfigError, match="not of the form DOMAIN=PATH"):
            export(folder, "olmo", out, wanted=Wanted(sources=(text,)))
    with pytest.raises(ConfigError, match="names domain 'code' twice"):
        export(folder, "olmo", out, wanted=Wanted(sources=("code=x", "code=y")))
    with pytest.raises(ConfigError, match="--step is -1"):
        Wanted(step=-1)
    with pytest.raises(ConfigError, match="--draws is 'rows'"):
        Wanted(draws="rows")  # type: ignore[arg-type]
    plan(tmp_path / "less")
    with pytest.raises(ArtifactError, match=r"is a selection \(method less\).*load_artifact.*select.*flextools train"):
        export(tmp_path / "less", "datasets", out)
    measure(tmp_path / "signal", random_ids(4))
    with pytest.raises(ArtifactError, match="wanted a mixture"):
        export(tmp_path / "signal", "datasets", out)
    assert not out.exists()


def test_a_file_that_says_something_else_is_kept_unless_it_may_be_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(folder, "llamafactory", out)
    export(folder, "llamafactory", out)  # the same again
    path = out / "llamafactory.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="says something else; choose another -o, or give --overwrite"):
        export(folder, "llamafactory", out)
    assert path.read_text() == "mine"
    export(folder, "llamafactory", out, overwrite=True)
    assert "interleave_probs" in path.read_text()


def test_a_name_of_two_lines_stays_in_its_comment(tmp_path: Path) -> None:
    mix(tmp_path / "m", Mixture.constant(("web", "code\ndataset: other"), np.array([1.0, 0.0])))
    assert read(tmp_path / "m", "llamafactory", tmp_path / "out")[1]["dataset"] == "web"
