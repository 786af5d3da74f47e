"""What is seen to be wrong before a model is loaded, and what earlier versions' results are taken for."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex_tools.artifact.manifest import MANIFEST, manifest_digest, read_manifest
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.models.load import has_fused_adapters
from dataflex_tools.models.settings import LoraSettings, ModelSettings
from dataflex_tools.stages.config import build
from dataflex_tools.stages.kinds import _way_of
from dataflex_tools.stages.score import prepare
from dataflex_tools.stages.warmup import Warmup, check_rates
from dataflex_tools.train.settings import TrainingSettings, WarmupSettings
from tests import tiny
from tests.score.builders import tiny_of_type


def scored(root: Path, **changes: Any) -> Any:
    return build("score", tiny.score_config(root, **changes))


def test_a_row_beyond_a_table_of_positions_is_refused(project: Path) -> None:
    tiny.make_model(project / "gpt2", kind="gpt2", num_positions=16)
    changes = {"model": {"path": str(project / "gpt2")}, "method": "loss", "target": []}
    config = scored(project, **changes, out=str(project / "artifacts" / "loss"))
    with pytest.raises(ConfigError, match=r"pool\.jsonl row \d+ has \d\d tokens.*set render.cutoff_len to at most 16"):
        prepare(config, project / "cache")


def test_a_row_beyond_computed_positions_is_a_warning(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make_model(project / "short", num_positions=16)
    monkeypatch.setattr(logging.getLogger("flextools"), "propagate", True)
    changes = {"model": {"path": str(project / "short")}, "method": "loss", "target": []}
    prepare(scored(project, **changes, out=str(project / "artifacts" / "loss")), project / "cache")
    assert "was made for 16" in caplog.text
    assert "render.cutoff_len=16 cuts them" in caplog.text


def test_a_warm_up_of_one_step_at_rate_zero_is_refused() -> None:
    one = TrainingSettings(num_train_epochs=1.0, global_batch_size=4)
    with pytest.raises(ConfigError, match="takes up all 1 steps of the warm-up.*set warmup.training.warmup_ratio=0"):
        check_rates(WarmupSettings(training=one), 4)
    flat = TrainingSettings(num_train_epochs=1.0, global_batch_size=4, warmup_ratio=0.0)
    check_rates(WarmupSettings(training=flat), 4)


def test_an_earlier_warm_up_weighs_by_the_rates_its_steps_were_taken_with(project: Path) -> None:
    (folder,) = (project / "artifacts" / "models").glob("warmup-*")
    now = Warmup(folder, read_manifest(folder)).weight_C
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["stats"]["rates"]
    for item in body["stats"]["checkpoints"]:
        item["mean_learning_rate"] /= 2 if item["path"] == "checkpoint-1" else 3  # what stood there was another number
    body["digest"] = manifest_digest(body)
    (folder / MANIFEST).write_text(json.dumps(body), encoding="utf-8")
    np.testing.assert_allclose(Warmup(folder, read_manifest(folder)).weight_C, now, rtol=1e-12)


@pytest.mark.parametrize(("kind", "is_fused"), [("mixtral", True), ("qwen2_moe", False)])
def test_gradients_of_fused_experts_that_an_earlier_version_stored_have_another_address(
    tmp_path: Path, kind: str, is_fused: bool
) -> None:
    tiny_of_type(kind).save_pretrained(tmp_path / "model")
    for targets, expected in (("all-linear", is_fused), (("q_proj",), False)):
        lora = LoraSettings(r=2, target_modules=targets)
        model = ModelSettings(path=str(tmp_path / "model"), lora=lora)
        assert has_fused_adapters(model) == expected
        config = build("score", tiny.score_config(tmp_path, model=model))
        assert bool(_way_of(config)) == expected
