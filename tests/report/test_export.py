"""Exports: what a trainer reads from each file is the mixture, and what a format cannot say is an error or a line."""

import json
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
    """The result, and what the trainer's own way of reading finds in the first file."""
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


def test_the_five_lines_load_the_sources_and_interleave_them(tmp_path: Path) -> None:
    names = ("web", "code")
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": f"web {i}"}) + "\n" for i in range(300)))
    (tmp_path / "code").mkdir()
    for part in range(2):
        rows = {"text": [f"code {i}" for i in range(150)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "code" / f"{part}.parquet")
    paths = [("web", "web.jsonl", 300), ("code", "code/0.parquet", 150), ("code", "code/1.parquet", 150)]
    sources = [{"path": str(tmp_path / path), "domain": name, "rows": rows} for name, path, rows in paths]
    mix(
        tmp_path / "m",
        Mixture.constant(names, np.array([0.5, 0.5])),
        corpus={**mixture_facts()["corpus"], "sources": sources},
    )
    export(tmp_path / "m", "datasets", tmp_path / "out")
    code = (tmp_path / "out" / "interleave.py").read_text()
    assert len([line for line in code.splitlines() if not line.startswith("#")]) == 5
    mixed = runpy.run_path(str(tmp_path / "out" / "interleave.py"))["mixed"]
    domains = [text.split()[0] for text in mixed["text"][:]]
    assert max(domains.count(name) for name in names) == 300  # ends when one is used up
    assert domains.count("web") == pytest.approx(len(domains) / 2, abs=50)


def test_sources_that_are_no_files_are_left_to_the_user(tmp_path: Path) -> None:
    corpus = {**mixture_facts()["corpus"], "sources": [{"path": "org/name", "domain": "web", "rows": 3}]}
    mix(tmp_path / "m", Mixture.constant(("web",), np.ones(1)), corpus=corpus)
    _, content = read(tmp_path / "m", "datasets", tmp_path / "out")
    assert "load" not in content
    assert "my_datasets[name]" in (tmp_path / "out" / "interleave.py").read_text()


def test_probabilities_of_documents_give_the_weights_in_tokens(folder: Path, tmp_path: Path) -> None:
    # web: 600 tokens in 4 documents, code: 200 in 6, maths: 100 in 2
    mean = {"web": 150, "code": 200 / 6, "maths": 50}
    for to in ("datasets", "llamafactory"):
        result, content = read(folder, to, tmp_path / to, draws="documents")
        probability = weights_in(to, content)
        assert sum(probability) == pytest.approx(1)
        tokens = [p * mean[name] for p, name in zip(probability, result["names"], strict=True)]
        np.testing.assert_allclose(np.array(tokens) / sum(tokens), list(WEIGHTS.values()), rtol=1e-12)
        assert "web 150.0, code 33.3, maths 50.0" in export_text(result)
    with pytest.raises(ConfigError, match="--draws has no effect on olmo"):
        export(folder, "olmo", tmp_path / "olmo", wanted=Wanted(draws="documents"))
    mix(tmp_path / "bare", Mixture.constant(("web", "code"), np.ones(2)), stats={})
    with pytest.raises(ConfigError, match="needs the tokens and documents of each domain"):
        export(tmp_path / "bare", "datasets", tmp_path / "x", wanted=Wanted(draws="documents"))


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
        "code": {"local": "code", "proportion": 0.5},
    }
    _, content = read(tmp_path / "m", "olmo", tmp_path / "olmo")
    assert content["sources"] == [
        {"source_name": "web", "target_ratio": 0.5, "paths": ["a/web/*.npy", "s3://b/web2/*.npy"]},
        {"source_name": "code", "target_ratio": 0.5, "paths": ["code/*.npy"]},
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
    assert content == {"dataset": "web", "mix_strategy": "interleave_under", "interleave_probs": "1.0"}


def test_names_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    sources = [{"path": "my data/web.jsonl", "domain": "web", "rows": 3}]
    corpus = {**mixture_facts()["corpus"], "sources": sources}
    mix(tmp_path / "m", Mixture.constant(("web", "a,b"), np.ones(2)), corpus=corpus)
    with pytest.raises(ConfigError, match=r"'a,b' cannot stand in a list divided by commas; give --source DOMAIN=ENTRY"):
        export(tmp_path / "m", "llamafactory", tmp_path / "out")
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
