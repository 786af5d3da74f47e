"""An artifact is data: whatever its manifest says, no command runs code or opens other places because of it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dataflex_tools.artifact.manifest import MANIFEST, manifest_digest, read_manifest
from dataflex_tools.cli import app
from dataflex_tools.core.errors import ConfigError, FlextoolsError
from dataflex_tools.stages.config import build, restored, without_code

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({mark!r}).write_text("ran")
class C(LlamaConfig):
    model_type = "other"
class M(LlamaForCausalLM):
    config_class = C
"""


def rewrite(artifact: Path, change: Any) -> None:
    """Change a manifest and its digest with it, as somebody who hands it on can."""
    body = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    change(body)
    body["digest"] = manifest_digest(body)
    (artifact / MANIFEST).write_text(json.dumps(body), encoding="utf-8")


@pytest.fixture
def mark(project: Path) -> Path:
    """Where code in the model folder that the plan names would leave a mark."""
    folder, mark = project / "coded", project / "MARK"
    shutil.copytree(project / "model", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}, "model_type": "other"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "m.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")

    def change(body: dict[str, Any]) -> None:
        body["config"]["model"] |= {"path": str(folder), "trust_remote_code": True}

    rewrite(project / "artifacts" / "less", change)
    return mark


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--artifacts", "{plan}", "--fraction", "1", "--out", "{run}", "--dry-run"],
        ["train", "--artifacts", "{plan}", "--fraction", "1", "--out", "{run}"],
        ["run", "{plan}/manifest.json"],
        ["run", "{plan}/manifest.json", "--dry-run"],
    ],
)
def test_code_that_a_manifest_names_does_not_run(project: Path, mark: Path, words: list[str]) -> None:
    plan, run = project / "artifacts" / "less", project / "runs" / "x"
    argv = [word.format(plan=plan, run=run) for word in words]
    with pytest.raises(FlextoolsError, match=r"needs code that lies in its folder.*trust_remote_code=true"):
        CliRunner().invoke(app, argv, catch_exceptions=False)
    assert not mark.exists()
    assert not run.exists()


def test_looking_at_an_artifact_opens_nothing_beside_it(project: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("data was opened")

    monkeypatch.setattr("dataflex_tools.stages.look.open_corpus", opened)
    plan = str(project / "artifacts" / "less")
    for argv in (["inspect", plan], ["inspect", plan, "--json"], ["verify", plan]):
        assert CliRunner().invoke(app, argv, catch_exceptions=False).exit_code == 0
    assert not mark.exists()


def test_the_text_of_rows_is_shown_when_it_is_asked_for(project: Path) -> None:
    plan, pool = project / "artifacts" / "less", project / "pool.jsonl"
    rewrite(plan, lambda body: body["config"]["data"][0].update(path=str(pool)))
    silent = CliRunner().invoke(app, ["inspect", str(plan)], catch_exceptions=False).stdout
    asked = CliRunner().invoke(app, ["inspect", str(plan), "--with-text"], catch_exceptions=False).stdout
    moved = pool.rename(project / "elsewhere.jsonl")
    given = CliRunner().invoke(app, ["inspect", str(plan), "--data", f"pool={moved}"], catch_exceptions=False).stdout
    assert "assistant:" not in silent
    assert "assistant:" in asked
    assert given == asked
    other = ["inspect", str(plan), "--data", str(project / "heldout.jsonl")]
    with pytest.raises(FlextoolsError, match="was made for a corpus of"):
        CliRunner().invoke(app, other, catch_exceptions=False)


def test_what_is_recorded_names_no_code_and_no_server() -> None:
    reward = {"kind": "function", "function": "m:f", "endpoint": None}
    config = {
        "stage": "score",
        "model": {"path": "x", "trust_remote_code": True},
        "reward_gradient": {"reward": reward, "baseline": "mean"},
        "proxy": {"reference_model": {"path": "y", "trust_remote_code": True}},
        "settings": {"function": "of a method's own"},
    }
    kept = without_code(config)
    assert kept["model"] == {"path": "x", "trust_remote_code": False}
    assert kept["proxy"]["reference_model"]["trust_remote_code"] is False
    assert kept["reward_gradient"] == {"reward": {"kind": "function"}, "baseline": "mean"}
    assert kept["settings"] == config["settings"]


def test_a_function_that_a_manifest_names_is_not_imported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "steal_rewards.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(project))
    plan = project / "artifacts" / "less"

    def change(body: dict[str, Any]) -> None:
        reward = {"kind": "function", "function": "steal_rewards:f"}
        body["config"] |= {"method": "nice", "settings": {}, "reward_gradient": {"reward": reward}}

    rewrite(plan, change)
    with pytest.raises(ConfigError, match=r"reward\.function is missing"):
        CliRunner().invoke(app, ["run", str(plan)], catch_exceptions=False)
    assert restored(plan, read_manifest(plan)["config"]).reward_gradient is None
    assert "steal_rewards" not in sys.modules


def test_a_model_given_in_part_is_the_artifacts_own_with_that_changed(project: Path, mark: Path) -> None:
    plan = str(project / "artifacts" / "less")
    values = {"artifacts": [plan], "out": "x", "model": {"dtype": "float32", "lora": {"r": 2}}}
    model = build("train", values).model
    assert (model.path, model.trust_remote_code) == (str(project / "coded"), False)
    assert (model.dtype, model.lora.r, model.lora.target_modules) == ("float32", 2, "all-linear")
