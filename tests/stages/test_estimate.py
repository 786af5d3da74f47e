from pathlib import Path
from typing import Any

from dataflex_tools.stages.config import build
from dataflex_tools.stages.estimate import estimate_evaluate, estimate_score, estimate_train
from dataflex_tools.stages.train import train
from tests import tiny
from tests.stages.conftest import train_config, tree


def parts(estimate: Any) -> dict[str, dict[str, Any]]:
    return {part["part"]: part for part in estimate.parts}


def test_a_dry_run_of_score_writes_nothing_and_names_all_work(tmp_path: Path) -> None:
    root = tiny.make_all(tmp_path)
    before = tree(tmp_path)
    found = estimate_score(build("score", tiny.score_config(root)))
    assert tree(tmp_path) == before
    todo = {name: part["to_do"] for name, part in parts(found).items() if part["to_do"]}
    assert todo == {
        "warm-up": 15,
        **{f"gradient of {side} at checkpoint {c}": n for side, n in (("pool", 60), ("target", 6)) for c in (1, 2)},
    }
    assert found.seconds > 0
    assert found.disk_bytes > 0


def test_a_dry_run_says_what_is_reused(project: Path) -> None:
    before = tree(project)
    done = parts(estimate_score(build("score", tiny.score_config(project))))
    assert done["plan"]["what"].startswith("reused")
    target = project / "heldout.jsonl"
    out = str(project / "artifacts" / "other")
    other = parts(estimate_score(build("score", tiny.score_config(project, target=[str(target)], out=out))))
    assert other["warm-up"]["what"].startswith("reused: warmup-")
    assert [part["what"] for name, part in other.items() if "of pool" in name] == ["reused", "reused"]
    assert [part["to_do"] for name, part in other.items() if "of target" in name] == [8, 8]
    assert tree(project) == before


def test_a_dry_run_of_train_and_evaluate_writes_nothing(project: Path) -> None:
    before = tree(project)
    found = parts(estimate_train(train_config(project)))
    assert found["training"]["to_do"] == 4
    assert tree(project) == before
    train(train_config(project))
    before = tree(project)
    assert parts(estimate_train(train_config(project)))["training"]["what"].startswith("reused")
    config = {"run": str(project / "runs" / "less"), "data": [str(project / "heldout.jsonl")]}
    assert estimate_evaluate(build("evaluate", config)).parts[0]["to_do"] == 8
    assert tree(project) == before


def test_a_dry_run_of_several_evaluations_is_one_document(project: Path) -> None:
    import json

    from typer.testing import CliRunner

    from dataflex_tools.cli import app

    runs = [str(project / "runs" / name) for name in ("a", "b")]
    for run in runs:
        train(train_config(project, out=run))
    words = ["evaluate", *runs, "--data", str(project / "heldout.jsonl"), "--dry-run"]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [found[run]["parts"][0]["to_do"] for run in runs] == [8, 8]
    one = json.loads(CliRunner().invoke(app, [words[0], runs[0], *words[3:], "--json"]).stdout)
    assert one["parts"][0]["what"] == found[runs[0]]["parts"][0]["what"]
    text = CliRunner().invoke(app, words).stdout
    assert all(run in text for run in runs)


def test_a_batch_size_that_is_not_given_is_estimated_as_it_is_trained(project: Path) -> None:
    training = {"num_train_epochs": 2, "learning_rate": 1e-3}
    assert parts(estimate_train(train_config(project, training=training)))["training"]["what"] == "8 steps of 4"


def test_what_an_adapter_is_trained_on_is_said(project: Path) -> None:
    assert parts(estimate_train(train_config(project)))["trained"]["what"].startswith("a LoRA adapter (r=")
    assert parts(estimate_train(train_config(project, full=True)))["trained"]["what"] == "all weights of the model"


def test_a_dry_run_of_a_control_has_no_model_work(project: Path) -> None:
    config = {**tiny.score_config(project), "method": "random", "out": str(project / "artifacts" / "random")}
    del config["target"]
    before = tree(project)
    found = estimate_score(build("score", config))
    assert (found.seconds, found.memory_bytes, found.disk_bytes) == (0, 0, 0)
    assert tree(project) == before


def test_a_mixers_estimate_counts_its_trainings_and_writes_nothing(tmp_path: Path) -> None:
    root = tiny.make_texts(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    proxy = {"training": tiny.mix_training()}
    found = estimate_score(build("score", tiny.mix_config(root, method="doremi", proxy=proxy)))
    assert [part["part"] for part in found.parts] == ["domains", "reference", "token losses of the reference", "proxy"]
    assert found.seconds > 0
    natural = estimate_score(build("score", tiny.mix_config(root)))
    assert [part["part"] for part in natural.parts] == ["domains", "mixture"]
    assert sorted(tmp_path.rglob("*")) == before
