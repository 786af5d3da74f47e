"""A pool in which samples stand more than once: a selection takes each content once, a control too, and it is said."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex_tools import load_artifact
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.report.inspect import describe, summarise
from dataflex_tools.stages.config import build
from dataflex_tools.stages.estimate import estimate_score, estimate_train
from dataflex_tools.stages.score import score
from dataflex_tools.stages.train import prepare, train
from tests import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples, of which 8 stand there three times: 40 rows."""
    root = tmp_path_factory.mktemp("copies")
    tiny.make_model(root / "model")
    rows = tiny.records(24)
    tiny.write_jsonl(root / "pool.jsonl", [*rows, *rows[:8], *rows[:8]])
    score(build("score", config(root, "random")))
    return root


def config(root: Path, method: str, **more: Any) -> dict[str, Any]:
    model = {"path": str(root / "model"), "dtype": "float32", "lora": {"r": 2}}
    return {"method": method, "model": model, "data": [f"{root}/pool.jsonl"], "out": f"{root}/artifacts/{method}", **more}


def training(root: Path, **budget: Any) -> Any:
    values = {"artifacts": [f"{root}/artifacts/random"], "out": f"{root}/runs/x", "budget": budget}
    return build("train", {**values, "training": {"global_batch_size": 4, "max_steps": 6, "learning_rate": 1e-3}})


def test_a_run_is_shown_each_content_once_per_epoch_and_says_how_many_were_left_out(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flextools"), "propagate", True)
    caplog.set_level(logging.INFO, "flextools")
    manifest = train(training(root, fraction=1.0))
    ids = pq.read_table(root / "runs" / "x" / "ledger.parquet")["sample_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 24
    assert (manifest["stats"]["selected_rows"], manifest["copies"]) == (24, 16)
    assert "16 rows of the pool repeat the content of others; each content is taken once" in caplog.text
    assert "16 rows are copies of others" in estimate_train(training(root, fraction=1.0)).parts[0]["what"]


def test_budgets_count_different_samples(root: Path, tmp_path: Path) -> None:
    plan = load_artifact(root / "artifacts" / "random")
    picked = plan.select(fraction=0.5)
    assert len(picked) == 12
    assert len({plan.plan.ids_N16[row].tobytes() for row in picked}) == 12
    assert len(prepare(training(root, fraction=0.5), tmp_path / "cache").rows) == 12
    with pytest.raises(ConfigError, match="24 of 24 different samples can be selected"):
        plan.select(num_samples=25)


def test_the_plan_says_that_there_are_copies(root: Path) -> None:
    assert plan_stats(root)["copies"] == 16
    assert "copies     16 rows repeat the content of others" in describe(root / "artifacts" / "random")
    found = summarise(root / "artifacts" / "random", k=24)
    best = [row["sample_id"] for row in found["best"]]
    assert len(best) == len(set(best)) == 24
    (part, *_) = estimate_score(build("score", config(root, "random", out=f"{root}/artifacts/again"))).parts
    assert "40 rows, 16 of them copies of others" in part["what"]


def plan_stats(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "artifacts" / "random" / "manifest.json").read_text())["stats"]
    return found


def test_the_control_scores_copies_alike_and_a_pool_without_copies_as_before(root: Path, tmp_path: Path) -> None:
    plan = load_artifact(root / "artifacts" / "random").plan
    for row in range(8):
        assert len({plan.score_N[row], plan.score_N[24 + row], plan.score_N[32 + row]}) == 1
    tiny.write_jsonl(tmp_path / "pool.jsonl", tiny.records(24))
    score(build("score", {**config(root, "random"), "data": [f"{tmp_path}/pool.jsonl"], "out": f"{tmp_path}/a/random"}))
    alone = load_artifact(tmp_path / "a" / "random").plan
    assert sorted(alone.score_N) == list(np.arange(24.0))
    assert "copies" not in alone.manifest["stats"]
