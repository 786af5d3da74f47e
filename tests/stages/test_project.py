"""The project file: the two commands as they are typed, and what wins over what."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.cli import app
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.stages.project import find_project
from tests import tiny

SCORE = ["score", "--method", "less"]
TRAIN = ["train", "--artifacts", "artifacts/less/"]


def sections() -> dict[str, Any]:
    """Settings of the tiny setup, with paths relative to its folder."""
    config = json.loads(json.dumps(tiny.score_config(Path())))
    common = {key: config[key] for key in ("model", "data", "render")}
    score = {key: config[key] for key in ("target", "warmup", "gradient")}
    training = {"global_batch_size": 8, "max_steps": 2, "logging_steps": 1}
    return {
        "common": common,
        "score": score,
        "train": {"training": training},
        "evaluate": {"data": ["heldout.jsonl"]},
        "methods": {"loss": {"render": {"cutoff_len": 32}}},
    }


def write(folder: Path, value: Any) -> None:
    (folder / "flextools.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")


@pytest.fixture
def home(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scored setup with a project file, as the current folder."""
    write(project, sections())
    monkeypatch.chdir(project)
    return project


def call(*words: str) -> str:
    return CliRunner().invoke(app, list(words), catch_exceptions=False).output


def test_the_two_commands_work_as_they_are_typed(home: Path) -> None:
    assert "artifacts/less" in call(*SCORE)
    with pytest.raises(ConfigError, match="3 selected samples do not fill one global batch of 8"):
        call(*TRAIN)  # 5 % of 60 samples, as the plan recommends
    call(*SCORE, "--set", "budget.num_samples=16", "--out", "artifacts/few")
    assert read_manifest(Path("artifacts/few"))["budget"]["num_samples"] == 16
    assert "runs/few-16-samples-seed0" in call("train", "--artifacts", "artifacts/few/")
    run = read_manifest(Path("runs/few-16-samples-seed0"))
    assert (run["stats"]["selected_rows"], run["config"]["budget"]["num_samples"]) == (16, 16)
    assert "heldout" in call("evaluate", "runs/few-16-samples-seed0")


def test_options_and_set_win_over_the_project_and_it_can_be_left_out(home: Path) -> None:
    call(*SCORE, "--model", "model", "--set", "render.cutoff_len=48", "--out", "artifacts/b", "--dry-run")
    out = call(*TRAIN, "--fraction", "0.5", "--set", "training.seed=3")
    assert "runs/less-0.5-seed3" in out
    training = read_manifest(Path("runs/less-0.5-seed3"))["config"]["training"]
    assert (training["seed"], training["max_steps"]) == (3, 2)
    with pytest.raises(ConfigError, match="score: model is missing"):
        call(*SCORE, "--no-project")


def test_a_method_takes_its_own_settings_and_leaves_out_what_it_has_no_use_for(home: Path) -> None:
    call("score", "--method", "random")  # which uses no target
    assert read_manifest(Path("artifacts/random"))["config"]["target"] == []
    project = find_project(home)
    assert project is not None
    assert project.settings("score", {"method": "loss"})["render"] == {"cutoff_len": 32}
    assert project.settings("score", {"method": "less"})["render"] == {"cutoff_len": 64}
    assert "model" not in project.settings("train")  # the artifact's own
    packed = project.settings("score", {"method": "natural", "pack": {"block_size": 8}})
    assert set(packed) == {"model", "data"}


def test_paths_are_relative_to_the_file_wherever_one_stands(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "below" / "deep").mkdir(parents=True)
    monkeypatch.chdir(home / "below" / "deep")
    found = find_project(Path.cwd())
    assert found is not None
    values = found.settings("score", {"method": "less"})
    assert values["model"]["path"] == os.path.join("..", "..", "model")
    assert [item["path"] for item in values["data"]] == [os.path.join("..", "..", "pool.jsonl")]
    call(*SCORE, "--out", "../../artifacts/less")
    hub = {"common": {"model": "org/name", "data": ["web=org/data:train", "b=files/b.jsonl"]}}
    write(home, hub)
    values = find_project(Path.cwd()).settings("score")  # type: ignore[union-attr]
    assert values["model"] == {"path": "org/name"}
    assert values["data"][0] == {"path": "org/data", "domain": "web", "split": "train"}
    assert values["data"][1] == {"path": os.path.join("..", "..", "files", "b.jsonl"), "domain": "b"}


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"scor": {}}, r"flextools.yaml has no section 'scor'; did you mean 'score'"),
        ({"common": {"modle": "x"}}, "common has no setting 'modle'; did you mean 'model'"),
        ({"train": {"trainin": {}}}, "train has no setting 'trainin'; did you mean 'training'"),
        ({"methods": {"les": {}}}, "'les'"),
        ({"methods": {"less": {"warmpu": {}}}}, "methods.less has no setting 'warmpu'; did you mean 'warmup'"),
        ({"score": [1]}, "score holds .*wanted a mapping"),
        ({"inputs": "make it", "common": {"model": "gone", "data": ["pool.jsonl"]}}, "gone, .* run `make it` first"),
    ],
)
def test_a_fault_in_the_project_file_is_named(home: Path, value: Any, match: str) -> None:
    write(home, value)
    with pytest.raises(ConfigError, match=match):
        call(*SCORE)


def test_a_file_of_somebody_else_is_passed_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_project(home) is not None
    owner = (home / "flextools.yaml").stat().st_uid
    monkeypatch.setattr("dataflex_tools.stages.project._MINE", {owner + 1})
    assert find_project(home) is None
