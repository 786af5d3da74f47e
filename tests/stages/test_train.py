import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.core.errors import ArtifactError, DataError
from dataflex_tools.stages.config import build
from dataflex_tools.stages.evaluate import evaluate
from dataflex_tools.stages.score import score
from dataflex_tools.stages.train import train
from tests import tiny
from tests.stages.conftest import Work, train_config


def test_the_same_training_again_loads_no_model_and_returns_the_same_digest(project: Path, work: Work) -> None:
    first = train(train_config(project))
    loads = work.num_loads
    assert train(train_config(project)) == first
    assert work.num_loads == loads == 1


def test_the_digest_does_not_depend_on_the_folder(project: Path) -> None:
    digests = [train(train_config(project, out=str(project / "runs" / name)))["digest"] for name in ("a", "b")]
    assert digests[0] == digests[1]


def test_the_ledger_holds_the_best_rows_once_per_epoch(project: Path) -> None:
    train(train_config(project))
    plan = pq.read_table(project / "artifacts" / "less" / "scores.parquet")
    best = np.argsort(-plan["score"].to_numpy(), kind="stable")[:16]
    ledger = pq.read_table(project / "runs" / "less" / "ledger.parquet")
    for steps in ((1, 2), (3, 4)):
        rows = [row for row, step in zip(*(ledger[n].to_pylist() for n in ("row", "step")), strict=True) if step in steps]
        assert sorted(rows) == sorted(best.tolist())
    assert ledger["sample_id"].to_pylist() == [plan["sample_id"].to_pylist()[row] for row in ledger["row"].to_pylist()]


def test_a_finished_run_verifies_and_holds_nothing_that_only_a_resume_needs(project: Path) -> None:
    run = project / "runs" / "less"
    train(train_config(project))
    assert verify_artifact(run) == []
    names = {"manifest.json", "run.json", "model", "ledger.parquet", "log.parquet"}
    assert {path.name for path in run.iterdir()} == names
    assert not list(run.rglob("*.bin"))


def test_another_run_in_out_is_refused_before_any_work(project: Path, work: Work) -> None:
    train(train_config(project))
    loads = work.num_loads
    with pytest.raises(ArtifactError, match=r"budget\.num_samples"):
        train(train_config(project, budget={"num_samples": 24}))
    assert work.num_loads == loads


def test_a_run_killed_before_its_first_file_starts_again(project: Path) -> None:
    out = project / "runs" / "less"
    out.mkdir(parents=True)
    (out / ".run.json.99.tmp").write_text("{")
    train(train_config(project))
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("method", ["random", "random_length_matched"])
def test_controls_go_from_score_to_evaluation(project: Path, method: str, work: Work) -> None:
    config = {**tiny.score_config(project), "method": method, "out": str(project / "artifacts" / method)}
    del config["target"]
    if method == "random_length_matched":
        config["reference"] = str(project / "artifacts" / "less")
    manifest = score(build("score", config))
    assert work.is_none
    assert len(manifest["parents"]) == (method == "random_length_matched")
    run = str(project / "runs" / method)
    train(train_config(project, artifacts=[str(project / "artifacts" / method)], out=run))
    result = evaluate(build("evaluate", {"run": run, "data": [str(project / "heldout.jsonl")]}))
    assert np.isfinite(result["macro_loss"])


def test_training_follows_a_plan_without_its_target_rows(project: Path) -> None:
    pool = (project / "pool.jsonl").read_text().splitlines()
    (project / "overlapping.jsonl").write_text("".join(pool[i] + "\n" for i in (0, 3, 40)))
    changes = {"target": [str(project / "overlapping.jsonl")], "drop_overlap": True}
    score(build("score", tiny.score_config(project, **changes, out=str(project / "artifacts" / "clean"))))
    artifacts = [str(project / "artifacts" / "clean")]
    manifest = train(train_config(project, artifacts=artifacts, budget={"fraction": 1.0}))
    assert manifest["stats"]["selected_rows"] == len(pool) - 3
    ledger = pq.read_table(project / "runs" / "less" / "ledger.parquet")
    less = pq.read_table(project / "artifacts" / "less" / "scores.parquet")  # all rows, in the order of the file
    left_out = {less["sample_id"][i].as_py() for i in (0, 3, 40)}
    assert not left_out & set(ledger["sample_id"].to_pylist())


def test_rows_that_the_template_refuses_are_left_out_of_plan_training_and_evaluation(project: Path) -> None:
    template = project / "model" / "chat_template.jinja"
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    template.write_text(refuses + template.read_text())
    for name in ("pool", "target", "heldout"):
        lines = (project / f"{name}.jsonl").read_text().splitlines(keepends=True)
        bad = json.dumps({**json.loads(lines[1]), "system": "red"}) + "\n"
        (project / f"{name}.jsonl").write_text("".join([bad, lines[0], bad, *lines[1:]]))

    def source(name: str) -> list[dict[str, object]]:
        return [{"path": str(project / f"{name}.jsonl"), "skip_bad": True}]

    out = str(project / "artifacts" / "zeroth")
    changes = {"method": "random", "data": source("pool"), "target": source("target"), "drop_overlap": True}
    with pytest.raises(DataError, match=r"row 1: .*no system turns; or leave such rows out with --skip-bad"):
        score(build("score", tiny.score_config(project, out=out, **{**changes, "data": [str(project / "pool.jsonl")]})))
    manifest = score(build("score", tiny.score_config(project, out=out, **changes)))
    assert manifest["corpus"]["rows"] == 60
    assert manifest["stats"]["render_counts"]["refused"] == 2
    trained = train(train_config(project, artifacts=[out], budget={"fraction": 1.0}))
    assert trained["stats"]["selected_rows"] == 60
    evaluation = {"run": str(project / "runs" / "less"), "data": source("heldout")}
    assert np.isfinite(evaluate(build("evaluate", evaluation))["macro_loss"])


def test_full_training_changes_all_weights_and_is_evaluated_as_it_is(project: Path) -> None:
    manifest = train(train_config(project, full=True))
    assert manifest["config"]["full"]
    model = project / "runs" / "less" / "model"
    assert not (model / "adapter_config.json").exists()
    before, after = (load_file(path / "model.safetensors") for path in (project / "model", model))
    assert before.keys() == after.keys()
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    losses = _losses(project, full=project / "runs" / "less")
    assert np.isfinite(losses["full"])


def test_an_evaluation_sees_the_trained_weights(project: Path) -> None:
    long = {"num_train_epochs": 8, "learning_rate": 1e-2, "global_batch_size": 8, "logging_steps": 1}
    barely = {**long, "max_steps": 1, "learning_rate": 1e-12}
    runs = {}
    for name, full, training in (
        ("none", True, barely), ("no adapter", False, barely), ("full", True, long), ("adapter", False, long),
    ):  # fmt: skip
        runs[name] = project / "runs" / name
        train(train_config(project, out=str(runs[name]), full=full, training=training))
    losses = _losses(project, **runs)
    assert losses["none"] == pytest.approx(losses["no adapter"], abs=1e-5)
    assert losses["full"] < losses["none"] - 0.1
    assert losses["adapter"] < losses["none"] - 0.1


def test_a_moved_plan_is_followed_as_before(project: Path) -> None:
    first = train(train_config(project))
    (project / "artifacts" / "less").rename(project / "artifacts" / "renamed")
    moved = train(train_config(project, artifacts=[str(project / "artifacts" / "renamed")], out=str(project / "runs" / "b")))
    assert first["files"] == moved["files"]


def _losses(project: Path, **runs: Path) -> dict[str, float]:
    config: dict[str, Any] = {"data": [str(project / "heldout.jsonl")]}
    return {name: evaluate(build("evaluate", {**config, "run": str(run)}))["macro_loss"] for name, run in runs.items()}


def test_an_evaluation_is_reused_and_another_one_needs_another_name(project: Path, work: Work) -> None:
    train(train_config(project))
    config = {"run": str(project / "runs" / "less"), "data": [str(project / "heldout.jsonl")]}
    first = evaluate(build("evaluate", config))
    loads = work.num_loads
    assert evaluate(build("evaluate", config)) == first
    assert work.num_loads == loads
    assert json.loads((project / "runs" / "less" / "evaluation.json").read_text()) == first
    other = {**config, "data": [str(project / "target.jsonl")]}
    with pytest.raises(ArtifactError, match="--name"):
        evaluate(build("evaluate", other))
    evaluate(build("evaluate", {**other, "name": "second"}))
    assert verify_artifact(project / "runs" / "less") == []
    assert read_manifest(project / "runs" / "less")["kind"] == "run"
