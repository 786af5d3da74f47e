"""Every mixture recipe passes all checks that come before its text is read; the recipes differ in their mixer only."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.core.config import load_yaml
from dataflex_tools.core.mixing import Domains
from dataflex_tools.methods import METHODS
from dataflex_tools.methods.base import StaticMixer
from dataflex_tools.stages.config import build_method
from dataflex_tools.stages.mix import check_settings
from dataflex_tools.stages.pipeline import Step, load_steps, run_steps
from dataflex_tools.train.settings import num_steps
from tests import tiny

PIPELINES = Path(__file__).parents[2] / "pipelines"
MIXERS = [name for name in METHODS.names() if METHODS.find(name).kind == "mixer"]
PAPER = sorted((PIPELINES / "paper").glob("slimpajama*.yaml"))
NAMES = ("books", "code", "legal", "messages", "reference")
NATURAL = {"CommonCrawl": 54.1, "C4": 28.7, "Github": 4.2, "Book": 3.7, "ArXiv": 3.4, "Wikipedia": 3.1, "StackExchange": 2.8}
ON_TINY = ["common.model.path=.mix/model", "common.model.attn_implementation=sdpa", "stages.score.model.path=.mix/model",
           "stages.score.model.attn_implementation=sdpa"]  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder .mix with tiny models in the place of the small ones."""
    root = tmp_path_factory.mktemp("mixtures")
    tiny.make_model(root / "model", num_positions=4096)
    tiny.make_model(root / "moe", kind="mixtral", num_positions=4096)
    return root


@pytest.fixture
def stand_in(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models, a document of each domain, and what recipes refer to."""
    shutil.copytree(models, tmp_path / ".mix")
    shutil.copytree(PIPELINES / "deepspeed", tmp_path / "pipelines" / "deepspeed")
    for name in NAMES:
        tiny.write_jsonl(tmp_path / ".mix" / "text" / f"{name}.jsonl", [{"text": "red green blue"}])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(recipe: Path, overrides: Sequence[str] = ()) -> dict[str, Step]:
    """The recipe's steps by name, checked as before a run."""
    steps = load_steps(recipe, overrides)
    for step in steps:
        if step.stage == "score":
            check_settings(step.config, build_method(step.config))
    return {step.name: step for step in steps}


@pytest.mark.parametrize("name", MIXERS)
def test_a_recipe_mixes_trains_and_evaluates_beside_a_baseline_of_natural_proportions(name: str, stand_in: Path) -> None:
    steps = checked(PIPELINES / f"{name}.yaml")
    natural, baseline, evaluated = (steps[key].config for key in ("natural", "baseline", "evaluate_baseline"))
    assert (natural.method, natural.settings, natural.out) == ("natural", {}, "artifacts/mix/natural")
    assert (baseline.artifacts, baseline.full, evaluated.run) == ((natural.out,), True, baseline.out)
    if name == "natural":
        assert list(steps) == ["natural", "baseline", "evaluate_baseline"]
        return
    score, train, evaluate = (steps[key].config for key in ("score", "train", "evaluate"))
    assert (score.method, score.out) == (name, f"artifacts/mix/{name}")
    assert (train.artifacts, train.out, evaluate.run) == ((score.out,), f"runs/mix/{name}", train.out)
    assert evaluate.data == ()  # the held-out part of the run's own text


@pytest.mark.parametrize("name", MIXERS)
def test_both_arms_of_a_recipe_differ_in_nothing_but_their_mixture(name: str, stand_in: Path) -> None:
    steps = checked(PIPELINES / f"{name}.yaml")
    if name != "natural":
        for key in ("model", "data", "pack", "mixing", "training", "budget"):
            assert getattr(steps["train"].config, key) == getattr(steps["baseline"].config, key)


@pytest.mark.parametrize("name", MIXERS)
def test_recipes_share_their_baseline_so_that_it_is_made_once(name: str, stand_in: Path) -> None:
    own, natural = (checked(PIPELINES / f"{recipe}.yaml") for recipe in (name, "natural"))
    if name == "dynamic_moe":  # another model, so another baseline, and not in the same place
        assert own["baseline"].config.out != natural["baseline"].config.out
        assert own["baseline"].config.training == natural["baseline"].config.training
        return
    for key in ("natural", "baseline", "evaluate_baseline"):
        assert own[key].config == natural[key].config


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_accepts_the_five_domains_and_says_nothing_without_effect(name: str, stand_in: Path) -> None:
    steps = checked(PIPELINES / f"{name}.yaml")
    config = steps["natural" if name == "natural" else "score"].config
    method, counts = build_method(config), [300, 500, 200, 400, 100]
    domains = Domains(NAMES, np.array(counts), np.array(counts), vocab_size=4096)
    if hasattr(method, "start"):
        method.start(domains)
    given = load_yaml(PIPELINES / f"{name}.yaml")["stages"].get("score", {})
    assert ("proxy" in given) == (not isinstance(method, StaticMixer))


@pytest.mark.parametrize("name", [name for name in MIXERS if getattr(METHODS.find(name).Settings, "follow", None)])
def test_a_schedule_is_as_long_as_the_training_that_follows_it(name: str, stand_in: Path) -> None:
    steps = checked(PIPELINES / f"{name}.yaml")
    assert steps["score"].config.proxy.training.max_steps == steps["train"].config.training.max_steps


@pytest.mark.parametrize("recipe", PAPER, ids=lambda path: path.stem)
def test_the_slimpajama_settings_are_those_of_the_paper(recipe: Path, stand_in: Path) -> None:
    for step in load_yaml(recipe)["stages"].values():
        assert "Qwen/Qwen2.5-0.5B" in step.get("model", {"path": "Qwen/Qwen2.5-0.5B"})["path"]
    assert load_yaml(recipe)["common"]["model"]["path"] == "Qwen/Qwen2.5-1.5B"
    steps = checked(recipe, ON_TINY)
    natural, score, train = (steps[key].config for key in ("natural", "score", "train"))
    weights = {f"RedPajama{name}": percent / 100 for name, percent in NATURAL.items()}
    assert natural.settings["weights"] == score.settings["reference_weights"] == pytest.approx(weights)
    assert sum(natural.settings["weights"].values()) == pytest.approx(1)
    billions = 30 if "30b" in recipe.stem else 6
    tokens = num_steps(train.training, 10**9) * train.training.global_batch_size * train.pack.block_size
    assert tokens == pytest.approx(billions * 1e9, rel=1e-3)
    for training in (train.training, score.proxy.training):
        assert (training.lr_scheduler_type, training.warmup_ratio, training.seed, training.bf16) == (
            "linear",
            0.05,
            42,
            True,
        )
        assert training.deepspeed == "pipelines/deepspeed/zero3.json"
    assert all(config.model.random_weights for config in (natural, score, train))
    for key in ("model", "data", "pack", "training"):
        assert getattr(train, key) == getattr(steps["baseline"].config, key)


def small_trainings(recipe: Path) -> list[str]:
    """Overrides that give every training of a recipe four steps of eight rows."""
    stages = load_yaml(recipe)["stages"]
    trainings = [f"{name}.training" for name, stage in stages.items() if stage["stage"] == "train"]
    trainings += [f"{name}.proxy.training" for name, stage in stages.items() if "proxy" in stage]
    small = {"max_steps": "4", "global_batch_size": "8", "deepspeed": "null", "bf16": "false"}
    changes = [f"stages.{training}.{key}={value}" for training in trainings for key, value in small.items()]
    return [*changes, "common.pack.block_size=32", "common.pack.held_out=0.2"]


@pytest.mark.e2e
@pytest.mark.parametrize("name", MIXERS)
def test_a_recipe_runs_in_a_tiny_size(name: str, stand_in: Path) -> None:
    for i, domain in enumerate(NAMES):
        rows = [{"text": text(10 * i + j)} for j in range(30 + 10 * i)]
        tiny.write_jsonl(stand_in / ".mix" / "text" / f"{domain}.jsonl", rows)
    recipe = PIPELINES / f"{name}.yaml"
    updates = getattr(METHODS.find(name).Settings, "update_every", 1) > 1
    often = ["stages.score.settings.update_every=2"] if updates else []
    steps = load_steps(recipe, [*small_trainings(recipe), *often])
    results = dict(zip([step.name for step in steps], run_steps(steps), strict=True))
    assert set(results["evaluate_baseline"]["groups"]) == set(NAMES)
    if name != "natural":
        assert set(results["evaluate"]["groups"]) == set(NAMES)


def text(seed: int) -> str:
    """Some hundred tokens of the tiny model."""
    return " ".join(record["output"] for record in tiny.records(12, seed=seed))


@pytest.mark.e2e
@pytest.mark.parametrize("recipe", PAPER, ids=lambda path: path.stem)
def test_the_slimpajama_recipe_runs_in_a_tiny_size(recipe: Path, stand_in: Path) -> None:
    rows = [{"text": text(i), "meta": {"set": f"RedPajama{name}"}} for name in NATURAL for i in range(30)]
    source = {"path": str(tiny.write_jsonl(stand_in / "slimpajama.jsonl", rows)), "domain_column": "meta.set"}
    changes = [*small_trainings(recipe), f"common.data=[{source}]"]
    changes += ["common.model.dtype=float32", "stages.score.model.dtype=float32"]
    steps = load_steps(recipe, [*ON_TINY, *changes])
    results = dict(zip([step.name for step in steps], run_steps(steps), strict=True))
    assert set(results["evaluate"]["groups"]) == {f"RedPajama{name}" for name in NATURAL}
