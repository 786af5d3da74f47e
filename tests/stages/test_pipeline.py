import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.stages.pipeline import describe_steps, load_steps, run_steps
from dataflex_tools.stages.train import train
from tests import tiny
from tests.stages.conftest import Work, train_config, tree


def recipe(project: Path) -> Path:
    values: dict[str, Any] = {key: value for key, value in tiny.score_config(project).items() if key != "out"}
    shared = {key: values.pop(key) for key in ("model", "data", "render")}
    training = {"global_batch_size": 8, "logging_steps": 1, "learning_rate": 1e-3}
    out, run = str(project / "artifacts" / "fresh"), str(project / "runs" / "fresh")
    budget = {"num_samples": 16}
    stages = {
        "pick": {"stage": "score", **values, "out": out},
        "tune": {"stage": "train", "artifacts": [out], "out": run, "budget": budget, "training": training},
        "look": {"stage": "evaluate", "run": run, "data": [str(project / "heldout.jsonl")]},
    }
    path = project / "recipe.yaml"
    path.write_text(yaml.safe_dump({"common": shared, "stages": stages}, sort_keys=False))
    return path


def test_a_recipe_runs_all_stages_and_then_nothing_again(project: Path, work: Work) -> None:
    first = run_steps(load_steps(recipe(project)))
    assert [item.get("kind") for item in first] == ["plan", "run", None]
    loads, before = work.num_loads, tree(project / "artifacts" / "signals")
    assert loads == 2  # the signals were there: training and evaluation only
    assert run_steps(load_steps(recipe(project))) == first
    assert work.num_loads == loads
    assert tree(project / "artifacts" / "signals") == before


def test_a_dry_run_of_a_recipe_writes_nothing_and_says_what_waits_for_what(project: Path) -> None:
    steps, before = load_steps(recipe(project)), tree(project)
    found = json.loads(describe_steps(steps, as_json=True))
    assert tree(project) == before
    assert any("reused" in part["what"] for part in found["pick"]["parts"])
    assert found["tune"] == {"waits_for": [str(project / "artifacts" / "fresh")]}
    assert found["look"] == {"waits_for": [str(project / "runs" / "fresh")]}


def test_a_manifest_is_a_recipe_for_its_own_folder(project: Path, work: Work) -> None:
    manifest = read_manifest(project / "artifacts" / "less")
    recorded = manifest["config"]
    assert "out" not in recorded
    (moved := project / "artifacts" / "moved").mkdir()
    for path in (project / "artifacts" / "less").iterdir():
        path.rename(moved / path.name)
    assert run_steps(load_steps(moved / "manifest.json")) == [manifest]
    assert work.is_none


def test_replaying_the_manifest_of_a_plan_elsewhere_gives_the_same_digest(scored: Path, tmp_path: Path) -> None:
    first = read_manifest(scored / "artifacts" / "less")
    out = tmp_path / "elsewhere" / "less"  # another root: warm-up and signals are made anew as well
    replayed = run_steps(load_steps(scored / "artifacts" / "less" / "manifest.json", [f"out={out}"]))
    assert replayed[0]["digest"] == first["digest"]
    assert (out / "scores.parquet").read_bytes() == (scored / "artifacts" / "less" / "scores.parquet").read_bytes()


def test_replaying_the_manifest_of_a_run_elsewhere_gives_the_same_digest(project: Path) -> None:
    first = train(train_config(project))
    steps = load_steps(project / "runs" / "less" / "manifest.json", [f"out={project}/runs/again"])
    assert run_steps(steps)[0]["digest"] == first["digest"]


def test_set_reaches_the_keys_of_a_replayed_stage_and_unknown_ones_are_refused(project: Path) -> None:
    path = project / "artifacts" / "less" / "manifest.json"
    (step,) = load_steps(path, ["gradient.dim=32", f"out={project}/artifacts/small"])
    assert (step.config.gradient.dim, step.config.out) == (32, f"{project}/artifacts/small")
    with pytest.raises(ConfigError, match="gradient"):
        load_steps(path, ["gradeint.dim=32"])


def test_an_evaluation_is_replayed_from_its_result(project: Path) -> None:
    result = run_steps(load_steps(recipe(project)))[2]
    path = project / "runs" / "fresh" / "evaluation.json"
    assert run_steps(load_steps(path)) == [result]
    again = run_steps(load_steps(path, ["name=again"]))[0]
    assert again["groups"] == result["groups"]


def test_a_default_that_changed_since_is_replayed_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "say.jsonl"
    tiny.write_jsonl(source, tiny.records(4, kind="say"))
    settings = {"num_runs": 16}
    old = {**settings, "regressor": "gradient_boosting", "num_best": 128, "strengths": [0.1, 5.0]}
    config = {
        "stage": "score", "method": "regmix", "model": {"path": "model"}, "data": [str(source)], "settings": settings,
        "pack": {"block_size": 16, "held_out": 0.1},
    }  # fmt: skip
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"format": 1, "kind": "plan", "config": config, "settings": old}))
    (step,) = load_steps(path)
    assert step.config.settings == {"num_runs": 16, "regressor": "gradient_boosting"}
    (step,) = load_steps(path, ["settings.regressor=linear"])
    assert step.config.settings["regressor"] == "linear"


def test_a_recipe_may_fit_a_table_and_train_on_the_result(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "say.jsonl"):
        (tmp_path / name).write_text("{}\n")
    fit = {"stage": "fit", "ratios": str(tmp_path / "a.csv"), "metrics": str(tmp_path / "b.csv"), "out": "artifacts/fit"}
    training = {"stage": "train", "artifacts": ["artifacts/fit"], "out": "runs/fit", "data": [str(tmp_path / "say.jsonl")]}
    path = tmp_path / "recipe.yaml"
    common = {"target": ["say.jsonl"], "settings": {"tau": 2.0}, "seed": 3}  # of score stages, but for the seed
    path.write_text(yaml.safe_dump({"common": common, "stages": {"fit": fit, "train": training}}))
    steps = load_steps(path)
    assert [step.stage for step in steps] == ["fit", "train"]
    assert (steps[0].config.target, steps[0].config.settings, steps[0].config.seed) == ("mean", {}, 3)
    path.write_text(yaml.safe_dump({"stages": {"fit": {**fit, "ratios": str(tmp_path / "a.cvs")}}}))
    with pytest.raises(ConfigError, match=r"a.cvs does not exist; did you mean '.*a.csv'"):
        load_steps(path)
