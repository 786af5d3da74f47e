"""Every recipe passes all checks that come before its data is read, on a stand-in for its files and its model."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dataflex_tools.core.config import load_yaml
from dataflex_tools.methods import METHODS
from dataflex_tools.stages.config import EvaluateConfig, ScoreConfig, TrainConfig
from dataflex_tools.stages.pipeline import Step, load_steps
from dataflex_tools.stages.score import check_settings
from dataflex_tools.train.settings import num_steps
from tests import tiny

PIPELINES = Path(__file__).parents[2] / "pipelines"
ALL = sorted(PIPELINES.glob("*.yaml"))
MIXERS = [name for name in METHODS.names() if METHODS.find(name).kind == "mixer"]
SELECTORS = [name for name in METHODS.names() if METHODS.find(name).kind == "selector"]
RECIPES = [path for path in ALL if path.stem not in MIXERS]  # of mixers: test_mixture_recipes.py
PAPER = [path for path in sorted((PIPELINES / "paper").glob("*.yaml")) if "slimpajama" not in path.stem]


def files(value: Any) -> set[str]:
    """The JSONL files that a recipe names anywhere."""
    if isinstance(value, dict):
        return set().union(*map(files, value.values()))
    if isinstance(value, list):
        return set().union(*map(files, value))
    return {value} if isinstance(value, str) and value.endswith(".jsonl") else set()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("recipes") / "model")


@pytest.fixture
def stand_in(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the demo's model folder."""
    shutil.copytree(tiny_model, tmp_path / ".demo" / "small" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(recipe: Path, folder: Path, *overrides: str) -> list[Step]:
    """The recipe's steps, checked as before a run, with a stand-in for each file."""
    for name in files(load_yaml(recipe)):
        tiny.write_jsonl(folder / name, tiny.records(2))
    steps = load_steps(recipe, overrides)
    for step in steps:
        if isinstance(step.config, ScoreConfig):
            check_settings(step.config)
    return steps


def test_every_method_but_the_controls_of_selection_has_a_recipe_named_like_it() -> None:
    selectors = [name for name in SELECTORS if METHODS.find(name).paper != "control"]
    assert [path.stem for path in ALL] == sorted(selectors + MIXERS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_scores_trains_and_evaluates_with_its_method(recipe: Path, stand_in: Path) -> None:
    score, train, evaluate = (step.config for step in checked(recipe, stand_in))
    assert isinstance(score, ScoreConfig)
    assert isinstance(train, TrainConfig)
    assert isinstance(evaluate, EvaluateConfig)
    assert (score.method, score.out) == (recipe.stem, f"artifacts/{recipe.stem}")
    assert train.artifacts == (score.out,)
    assert evaluate.run == train.out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_differ_in_their_score_stage_only_and_share_what_they_can(recipe: Path, stand_in: Path) -> None:
    less, own = (checked(path, stand_in) for path in (PIPELINES / "less.yaml", recipe))
    assert own[0].config.model == less[0].config.model
    assert own[0].config.data == less[0].config.data
    assert own[0].config.render == less[0].config.render
    assert (own[1].config.budget, own[1].config.training) == (less[1].config.budget, less[1].config.training)
    assert own[2].config.data == less[2].config.data
    given = load_yaml(recipe)["stages"]["score"]
    assert own[0].config.target == (less[0].config.target if METHODS.find(recipe.stem).uses_target else ())
    needs = METHODS.find(recipe.stem)(METHODS.find(recipe.stem).Settings(**given.get("settings", {}))).needs()
    assert ("warmup" in given) == any(need.at_checkpoints for need in needs)  # nothing without effect
    assert ("gradient" in given) == any("gradient" in need.kind for need in needs)
    if "warmup" in given:
        assert own[0].config.warmup == less[0].config.warmup  # the same warm-up serves all
    if "gradient" in given:
        assert own[0].config.gradient == less[0].config.gradient


@pytest.mark.parametrize("recipe", PAPER, ids=lambda path: path.stem)
def test_the_papers_setting_has_its_steps_and_samples(recipe: Path, stand_in: Path) -> None:
    steps = checked(recipe, stand_in, "common.model.path=.demo/small/model")
    assert [step.config.method for step in steps if step.stage == "score"] == ["less", "random"]
    score, (first, second) = steps[0].config, (step.config for step in steps if step.stage == "train")
    lora, training = score.model.lora, first.training
    assert (lora.r, lora.alpha, training.learning_rate, training.global_batch_size) == (32, 64, 5e-7, 8)
    assert num_steps(score.warmup.training, int(score.warmup.fraction * 100_000)) == 100
    assert first.budget.num_samples == 30 * 50 * 8
    assert num_steps(training, first.budget.num_samples) == 30 * 50
    assert (first.budget, training, first.model) == (second.budget, second.training, second.model)


def test_a_wrong_setting_of_a_recipe_is_found_by_these_checks(stand_in: Path) -> None:
    with pytest.raises(Exception, match="num_neighbors"):
        checked(PIPELINES / "near.yaml", stand_in, "stages.score.settings.num_neighbors=3")
