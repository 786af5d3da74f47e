"""Every registered method from records to a plan, and what one of them leaves for the next."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods import METHODS
from dataflex_tools.stages.config import build, build_method
from dataflex_tools.stages.estimate import estimate_score
from dataflex_tools.stages.evaluate import evaluate
from dataflex_tools.stages.score import score
from dataflex_tools.stages.train import train
from tests import tiny
from tests.stages.conftest import Work, count_work, train_config, tree

CHANGES: dict[str, dict[str, Any]] = {  # where a tiny pool needs other settings, or a setting has no default
    "cluster_less": {"settings": {"num_representatives": 2, "rows_per_cluster": 10}},
    "icons": {"settings": {"adam": "optimizer_exact"}},  # LESS's gradients
    "nice": {"reward_gradient": {"reward": {"kind": "rouge_l"}, "generation": {"max_new_tokens": 4, "num_answers": 4}}},
    "semdedup": {"settings": {"rows_per_cluster": 20}},
    "zeroth": {"zeroth": {"num_directions": 4}},
}
# LESS is scored before all others, embeddings by tsds
ORDER = ["less", "icons", "tsds", "near", "semdedup", "cluster_less"]
SELECTORS = [name for name in METHODS.names() if METHODS.find(name).kind == "selector"]
NAMES = [*ORDER, *(name for name in SELECTORS if name not in ORDER)]


def config_of(name: str, root: Path, **changes: Any) -> Any:
    """`reference` is the LESS plan of the root unless told otherwise."""
    method = METHODS.find(name)
    values = {**tiny.score_config(root, method=name, out=str(root / "artifacts" / name)), **CHANGES.get(name, {}), **changes}
    if not method.uses_target:
        del values["target"]
    if method.uses_reference:
        values.setdefault("reference", str(root / "artifacts" / "less"))
    return build("score", values)


@dataclass(frozen=True)
class Scored:
    """A project in which all methods were scored in the order of NAMES, and what each had to compute."""

    root: Path
    work: dict[str, Work]


@pytest.fixture(scope="module")
def every(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    root = Path(shutil.copytree(scored, tmp_path_factory.mktemp("every") / "project"))
    found = {}
    for name in NAMES:
        with pytest.MonkeyPatch.context() as patch:
            found[name] = count_work(patch)
            score(config_of(name, root))
    return Scored(root, found)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_writes_a_plan_that_verifies(every: Scored, name: str) -> None:
    plan = load_plan(every.root / "artifacts" / name)
    assert verify_artifact(plan.folder) == []
    num_selectable = int(np.isfinite(plan.score_N).sum())
    assert num_selectable == len(plan) == 60 if METHODS.find(name).ranks_all_rows else 0 < num_selectable <= 60
    parents = plan.manifest["parents"]
    assert {parent["digest"] for parent in parents} == {
        read_manifest(every.root / "artifacts" / Path(parent["path"]))["digest"] for parent in parents
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_second_run_of_every_method_reuses_the_plan(every: Scored, work: Work, name: str) -> None:
    before = read_manifest(every.root / "artifacts" / name)
    assert score(config_of(name, every.root)) == before
    assert work.is_none


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_of_every_method_writes_nothing_and_lists_its_signals(every: Scored, tmp_path: Path, name: str) -> None:
    root = tiny.make_all(tmp_path / "fresh")
    changes = {"reference": str(every.root / "artifacts" / "less")} if METHODS.find(name).uses_reference else {}
    config, before = config_of(name, root, **changes), tree(tmp_path)
    estimate = estimate_score(config)
    assert tree(tmp_path) == before
    work_to_do = [part["part"] for part in estimate.parts if part["to_do"]]
    needs = build_method(config).needs()
    assert {part.split(" at ")[0] for part in work_to_do} - {"warm-up"} == {f"{n.kind} of {n.side}" for n in needs}
    assert ("warm-up" in work_to_do) == any(need.at_checkpoints for need in needs)
    assert (estimate.seconds > 0) == bool(needs)


def test_near_semdedup_and_cluster_less_after_tsds_compute_no_embedding(every: Scored) -> None:
    assert every.work["tsds"].measured == {"embedding": [60, 6]}
    assert every.work["near"].is_none
    assert every.work["semdedup"].is_none
    assert "embedding" not in every.work["cluster_less"].measured


def test_icons_and_cluster_less_after_less_compute_no_gradient(every: Scored) -> None:
    assert every.work["icons"].is_none
    assert every.work["cluster_less"].is_none


def test_cluster_less_alone_measures_gradients_of_its_representatives_only(scored: Path, tmp_path: Path, work: Work) -> None:
    root = tiny.make_all(tmp_path / "fresh")
    shutil.copytree(scored / "artifacts" / "models", root / "artifacts" / "models")
    manifest = score(config_of("cluster_less", root))
    assert work.gradients == {"target": [6, 6], "pool": [12, 12]}
    assert manifest["stats"]["facts"]["representatives"] == 12


def test_icons_with_its_own_plain_gradients_costs_those_of_the_pool_alone(project: Path, work: Work) -> None:
    score(config_of("icons", project, settings={}))
    assert work.measured == {"gradient": [60, 60]}  # the target's are LESS's
    assert work.num_trainings == 0


@pytest.mark.parametrize("name", ["tsds", "semdedup"])
def test_training_follows_the_plan_of_a_method_to_an_evaluation(every: Scored, name: str) -> None:
    run = every.root / "runs" / name
    manifest = train(train_config(every.root, artifacts=[str(every.root / "artifacts" / name)], out=str(run)))
    assert (manifest["method"], manifest["stats"]["selected_rows"]) == (name, 16)
    result = evaluate(build("evaluate", {"run": str(run), "data": [str(every.root / "heldout.jsonl")]}))
    assert np.isfinite(result["macro_loss"])


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("nice", {"reward_gradient": None}, r"'nice' needs a reward: --set reward_gradient\.reward\.kind"),
        ("rds", {"embedding": {"model": "encoder"}}, r"embedding\.pooling 'weighted_mean' has no effect.*encoder"),
        ("tsds", {"embedding": {"model": "./absent"}}, r"embedding\.model \./absent is not a folder"),
        # its warm-up would be trained before its embeddings are looked at
        ("cluster_less", {"embedding": {"model": "./absent"}}, r"embedding\.model \./absent is not a folder"),
    ],
)
def test_wrong_settings_of_a_signal_are_one_line_before_a_model_is_loaded(
    tmp_path: Path, work: Work, name: str, changes: dict[str, Any], match: str
) -> None:
    root = tiny.make_all(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=match) as error:
        score(config_of(name, root, **changes))
    assert "\n" not in str(error.value)
    assert work.is_none
    assert tree(tmp_path) == before
