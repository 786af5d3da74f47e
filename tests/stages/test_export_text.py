"""A mixture of packed text handed to trainers that draw whole documents: shares of tokens come out as decided."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.artifact.mixture import load_mixture
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.data.packed import PackSettings, is_held_out
from dataflex_tools.report.export import export
from dataflex_tools.report.proportions import Wanted
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import build, restored
from dataflex_tools.stages.look import copy_text
from dataflex_tools.stages.score import score
from tests import tiny

WEIGHTS = {"long": 0.2, "short": 0.3, "slash": 0.5}
PACK = {"block_size": 16, "held_out": 0.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of very different lengths, and a folder given with its slash."""
    root = tmp_path_factory.mktemp("export")
    tiny.make_model(root / "model")
    lengths = {"long": 60, "short": 6, "slash": 20}
    (root / "slash").mkdir()
    for name, length in lengths.items():
        rng = np.random.default_rng(length)
        texts = [" ".join(map(str, rng.integers(0, 10, length + i % 5))) for i in range(150)]
        if name == "slash":
            for place, text in enumerate(texts):
                (root / "slash" / f"{place}.txt").write_text(text)
        else:
            (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = [f"long={root}/long.jsonl", f"short={root}/short.jsonl", f"slash={root}/slash/"]
    config = {"method": "static", "model": {"path": str(root / "model")}, "data": data, "pack": PACK}
    score(build("score", {**config, "settings": {"weights": WEIGHTS}, "out": str(root / "artifacts" / "mix")}))
    return root


def test_draws_of_documents_give_the_shares_of_tokens_that_were_decided(root: Path, tmp_path: Path) -> None:
    manifest = load_mixture(root / "artifacts" / "mix").manifest
    config = restored(root / "artifacts" / "mix", manifest["config"])
    corpus = inputs.read_corpus(config.data, tmp_path / "cache", group="domain")
    encode = inputs.Tokenizer.of(config.model).value
    is_train_N = ~is_held_out(corpus.ids_N16, PackSettings(**PACK))
    result = export(root / "artifacts" / "mix", "datasets", tmp_path / "out")
    tokens = []
    for name, probability in zip(result["names"], result["weights"], strict=True):
        rows = np.flatnonzero(is_train_N & (corpus.group_N == corpus.group_names.index(name)))
        lengths = [len(encode(corpus.conversation(int(row))["text"])["input_ids"]) + 1 for row in rows]  # and its end
        tokens.append(probability * np.mean(lengths))
        assert manifest["stats"]["num_documents"][name] == len(rows)
        assert manifest["stats"]["document_tokens"][name] == sum(lengths)
    np.testing.assert_allclose(np.array(tokens) / sum(tokens), [WEIGHTS[name] for name in result["names"]], rtol=1e-9)
    assert export(root / "artifacts" / "mix", "llamafactory", tmp_path / "lf")["weights"] == result["weights"]
    blocks = export(root / "artifacts" / "mix", "datasets", tmp_path / "blocks", wanted=Wanted(draws="blocks"))
    assert dict(zip(blocks["names"], blocks["weights"], strict=True)) == pytest.approx(WEIGHTS)


def test_a_copy_holds_what_is_trained_on_and_the_program_draws_from_it(root: Path, tmp_path: Path) -> None:
    plan = root / "artifacts" / "mix"
    export(plan, "datasets", tmp_path / "out", copy=copy_text)
    (tmp_path / "out").rename(tmp_path / "moved")
    corpus = inputs.read_corpus(restored(plan, load_mixture(plan).manifest["config"]).data, tmp_path / "c", group="domain")
    is_held_N = is_held_out(corpus.ids_N16, PackSettings(**PACK))
    held = {corpus.conversation(int(row))["text"] for row in np.flatnonzero(is_held_N)}
    mixed = runpy.run_path(str(tmp_path / "moved" / "interleave.py"))["mixed"]["text"][:]
    assert held
    assert not held & set(mixed)
    copied = [json.loads(line)["text"] for path in (tmp_path / "moved" / "text").iterdir() for line in path.open()]
    everything = [corpus.conversation(row)["text"] for row in range(len(corpus))]
    assert sorted(copied) == sorted(text for text in everything if text not in held)
    export(plan, "llamafactory", tmp_path / "lf", copy=copy_text)
    entries = json.loads((tmp_path / "lf" / "dataset_info.json").read_text())
    assert entries["slash"] == {"file_name": "text/slash.jsonl", "columns": {"prompt": "text"}}


def test_a_copy_of_changed_data_or_of_samples_is_refused_and_nothing_is_left(root: Path, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "1 2 3"}\n{"text": "4 5 6 7"}\n')
    (tmp_path / "e.jsonl").write_text('{"text": "1 2 3 4"}\n')
    base = {"method": "natural", "model": {"path": str(root / "model")}}
    base["data"] = [f"{tmp_path}/d.jsonl", f"{tmp_path}/e.jsonl"]
    score(build("score", {**base, "out": str(tmp_path / "samples")}))
    with pytest.raises(ConfigError, match="--copy writes documents of text"):
        export(tmp_path / "samples", "megatron", tmp_path / "out", copy=copy_text)
    score(build("score", {**base, "pack": {"block_size": 2}, "out": str(tmp_path / "packed")}))
    (tmp_path / "d.jsonl").write_text('{"text": "8 8 8"}\n')
    with pytest.raises(ArtifactError, match=r"has changed since it was made; run `flextools score` again"):
        export(tmp_path / "packed", "megatron", tmp_path / "out", copy=copy_text)
    assert not (tmp_path / "out").exists()
