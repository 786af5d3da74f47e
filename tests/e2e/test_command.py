"""The installed command: what it prints, and the whole chain by its words."""

import json
from pathlib import Path

import pytest
import yaml

from dataflex_tools.artifact.manifest import read_manifest
from tests import tiny
from tests.e2e.conftest import flextools, make_project
from tests.stages.conftest import tree

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("project"))
    flextools(root, "score", "--config", "score.yaml")
    return root


def test_the_same_command_again_reuses_everything(project: Path) -> None:
    before = tree(project / "artifacts")
    done = flextools(project, "score", "--config", "score.yaml")
    assert "reused" in done.stderr
    assert done.stdout.split() == ["artifacts/less", read_manifest(project / "artifacts" / "less")["digest"]]
    assert tree(project / "artifacts") == before


def test_a_recipe_runs_and_runs_again_for_nothing_and_its_manifest_replays(project: Path) -> None:
    score, train = (yaml.safe_load((project / f"{name}.yaml").read_text()) for name in ("score", "train"))
    stages = {
        "score": {"stage": "score", **score},
        "train": {"stage": "train", **train, "out": "runs/recipe"},
        "evaluate": {"stage": "evaluate", "run": "runs/recipe", "data": ["heldout.jsonl"]},
    }
    (project / "recipe.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    first = json.loads(flextools(project, "run", "recipe.yaml", "--json").stdout)
    before = tree(project)
    again = flextools(project, "run", "recipe.yaml", "--json")
    assert json.loads(again.stdout) == first
    assert again.stderr.count("reused") == 3
    assert tree(project) == before
    words = ("run", "artifacts/less/manifest.json", "--set", "out=replayed/less", "--json")
    assert json.loads(flextools(project, *words).stdout)[0]["digest"] == first[0]["digest"]


def test_a_dry_run_of_each_stage_writes_nothing(project: Path, tmp_path: Path) -> None:
    fresh = tiny.make_all(tmp_path / "fresh")
    (fresh / "score.yaml").write_text((project / "score.yaml").read_text())
    flextools(project, "train", "--config", "train.yaml")
    for root, words, expected in (
        (fresh, ("score", "--config", "score.yaml"), "nothing was written"),
        (project, ("score", "--config", "score.yaml"), "reused: artifacts/less"),
        (project, ("train", "--config", "train.yaml"), "reused: runs/less"),
        (project, ("train", "--config", "train.yaml", "--out", "runs/b"), "6 steps of 8"),
        (project, ("evaluate", "runs/less", "--data", "heldout.jsonl"), "8 rows"),
        (project, ("run", "artifacts/less/manifest.json"), "reused: artifacts/less"),
    ):
        before = tree(root)
        assert expected in flextools(root, *words, "--dry-run").stdout
        assert tree(root) == before


def test_controls_by_their_words_from_score_to_evaluation(project: Path) -> None:
    given = ("--model", "model", "--data", "pool.jsonl", "--set", "render.cutoff_len=64")
    flextools(project, "score", "--method", "random", *given)
    flextools(project, "score", "--method", "random_length_matched", "--reference", "artifacts/less", *given)
    for name in ("random", "random_length_matched"):
        flextools(project, "train", "--config", "train.yaml", "--artifacts", f"artifacts/{name}", "--out", f"runs/{name}")
        done = flextools(project, "evaluate", f"runs/{name}", "--data", "heldout.jsonl", "--json")
        assert json.loads(done.stdout)["macro_loss"] > 0


def test_no_overlap_and_full_training_by_their_words(project: Path) -> None:
    lines = (project / "pool.jsonl").read_text().splitlines()
    (project / "overlap.jsonl").write_text(lines[5] + "\n")
    words = ("--target", "overlap.jsonl", "--drop-overlap", "--out", "artifacts/clean")
    flextools(project, "score", "--config", "score.yaml", *words)
    done = flextools(project, "train", "--config", "train.yaml", "--artifacts", "artifacts/clean", "--out", "runs/clean",
                     "--set", "full=true", "--json")  # fmt: skip
    assert json.loads(done.stdout)["corpus"]["rows"] == len(lines) - 1
    assert not (project / "runs" / "clean" / "model" / "adapter_config.json").exists()
    assert "macro mean" in flextools(project, "evaluate", "runs/clean", "--data", "heldout.jsonl").stdout


def test_a_plan_feeds_a_plain_trainer(project: Path, tmp_path: Path) -> None:
    from torch.utils.data import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from dataflex_tools.sampler.api import load_artifact

    class Rows(Dataset[dict[str, list[int]]]):
        """Stands for a dataset of the user's own, row for row the pool."""

        def __init__(self) -> None:
            self.seen: list[int] = []

        def __len__(self) -> int:
            return 60

        def __getitem__(self, row: int) -> dict[str, list[int]]:
            self.seen.append(row)
            return {"input_ids": [row % 7, 1, 2], "labels": [row % 7, 1, 2]}

    plan = load_artifact(project / "artifacts" / "less")
    sampler = plan.sampler(num_samples=16, seed=3)

    class MyTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: object = None) -> object:
            return sampler

    rows = Rows()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=4, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    MyTrainer(AutoModelForCausalLM.from_pretrained(project / "model"), arguments, train_dataset=rows).train()
    assert rows.seen[:16] == list(sampler)
    assert sorted(rows.seen[:16]) == sorted(plan.select(num_samples=16).tolist())
