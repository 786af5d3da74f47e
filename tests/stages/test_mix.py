"""Mixers from text to a trained model: what is decided, what is found again, what is refused."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.artifact.mixture import load_mixture
from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.errors import ArtifactError, ConfigError, DataError, FlextoolsError
from dataflex_tools.core.plan import Budget, select_rows
from dataflex_tools.stages.config import build
from dataflex_tools.stages.evaluate import evaluate
from dataflex_tools.stages.score import score
from dataflex_tools.stages.train import train
from tests import tiny

PROXY = {"training": tiny.mix_training()}
HELD = {**PROXY, "held_out_rows": 4}
FLASH = {"path": "model", "random_weights": True, "attn_implementation": "flash_attention_2"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_texts(tmp_path_factory.mktemp("texts") / "project")


@pytest.fixture
def root(texts: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(texts, tmp_path / "project"))


def mixed(root: Path, method: str, **changes: Any) -> dict[str, Any]:
    values = {"method": method, "out": str(root / "artifacts" / method), **changes}
    return score(build("score", tiny.mix_config(root, **values)))


def trained(root: Path, method: str, **changes: Any) -> dict[str, Any]:
    values = {"artifacts": [str(root / "artifacts" / method)], "out": str(root / "runs" / method), "full": True}
    return train(build("train", {**values, "training": tiny.mix_training(max_steps=12), **changes}))


def test_natural_from_text_to_held_out_perplexity(root: Path) -> None:
    manifest = mixed(root, "natural")
    tokens = manifest["stats"]["num_tokens"]
    found = load_mixture(root / "artifacts" / "natural").mixture
    np.testing.assert_allclose(found.weight_SK[0], [tokens[name] / sum(tokens.values()) for name in found.names])
    run = trained(root, "natural")
    assert verify_artifact(root / "runs" / "natural") == []
    shares = run["stats"]["mixture"]
    for k, name in enumerate(found.names):
        assert abs(shares[name]["samples"] - 12 * 8 * found.weight_SK[0, k]) < 1.5
    ledger = pq.read_table(root / "runs" / "natural" / "ledger.parquet")
    counts = {name: ledger["domain"].to_pylist().count(name) for name in found.names}
    assert counts == {name: shares[name]["samples"] for name in found.names}
    result = evaluate(build("evaluate", {"run": str(root / "runs" / "natural")}))
    assert set(result["groups"]) == set(found.names)
    for item in [*result["groups"].values(), result["all"]]:
        assert item["bits_per_byte"] == pytest.approx(item["loss"] * item["tokens"] / item["bytes"] / math.log(2))
    table = pq.read_table(root / "runs" / "natural" / "evaluation.parquet")
    assert table["loss"].to_pylist() == [item["loss"] for item in result["groups"].values()]
    assert result["worst"] == max(result["groups"], key=lambda name: result["groups"][name]["loss"])


@pytest.mark.parametrize("method", ["doremi", "odm"])
def test_an_online_mixer_leaves_a_plan_that_is_followed_and_found_again(root: Path, method: str) -> None:
    manifest = mixed(root, method, proxy=PROXY)
    plan = load_mixture(root / "artifacts" / method).mixture
    assert len(plan.trajectory) == 8 + 1
    for parent in manifest["parents"]:
        assert verify_artifact(root / "artifacts" / parent["path"]) == []
    kinds = sorted(Path(parent["path"]).name.partition("-")[0] for parent in manifest["parents"])
    assert kinds == (["proxy", "reference", "token_loss"] if method == "doremi" else ["proxy"])
    before = sorted((p, p.stat().st_mtime_ns) for p in (root / "artifacts").rglob("*") if p.is_file())
    assert mixed(root, method, proxy=PROXY) == manifest
    assert sorted((p, p.stat().st_mtime_ns) for p in (root / "artifacts").rglob("*") if p.is_file()) == before
    trained(root, method)
    ledger = pq.read_table(root / "runs" / method / "ledger.parquet")
    assert len(ledger) == 12 * 8


def test_a_schedule_trains_on_the_very_batches_that_the_proxy_had(root: Path) -> None:
    manifest = mixed(root, "odm", proxy=PROXY)
    (proxy,) = (parent["path"] for parent in manifest["parents"])
    trained(root, "odm", training=tiny.mix_training())
    ledgers = [pq.read_table(folder / "ledger.parquet") for folder in (root / "artifacts" / proxy, root / "runs" / "odm")]
    assert ledgers[0].equals(ledgers[1])


def test_doremi_with_shared_reference_losses_trains_no_reference(root: Path, tmp_path: Path) -> None:
    first = mixed(root, "doremi", proxy=PROXY)
    losses = next(str(root / "artifacts" / p["path"]) for p in first["parents"] if "token_loss" in p["path"])
    other = tmp_path / "elsewhere" / "doremi"
    config = tiny.mix_config(root, method="doremi", out=str(other), proxy={**PROXY, "reference_losses": losses})
    again = score(build("score", config))
    assert not list((tmp_path / "elsewhere" / "models").glob("reference-*"))
    for name in ("mixture.parquet", "trajectory.parquet"):
        assert pq.read_table(other / name).equals(pq.read_table(root / "artifacts" / "doremi" / name))
    assert again["digest"] != first["digest"]


def test_reference_losses_of_another_packing_are_refused_naming_both(root: Path, tmp_path: Path) -> None:
    first = mixed(root, "doremi", proxy=PROXY)
    losses = next(str(root / "artifacts" / p["path"]) for p in first["parents"] if "token_loss" in p["path"])
    proxy = {**PROXY, "reference_losses": losses}
    config = tiny.mix_config(root, method="doremi", out=str(tmp_path / "a" / "d"), proxy=proxy, pack={"block_size": 12})
    with pytest.raises(ArtifactError, match=r"packing [0-9a-f]{16}.*packing [0-9a-f]{16}.*block_size 12"):
        score(build("score", config))
    assert not (tmp_path / "a" / "d").exists()


def test_a_reference_model_that_does_not_load_is_an_error_before_any_training(root: Path) -> None:
    with pytest.raises(ConfigError, match="nothing_here"):
        mixed(root, "doremi", proxy={**PROXY, "reference_model": {"path": str(root / "nothing_here")}})
    assert not (root / "artifacts" / "models").exists()


def test_iterated_doremi_ends_when_no_weight_moves(root: Path) -> None:
    manifest = mixed(root, "doremi", proxy=PROXY, settings={"max_rounds": 3, "tolerance": 0.9})
    facts = manifest["stats"]["facts"]
    assert (facts["rounds"], facts["is_settled"]) == (1, True)
    manifest = mixed(
        root, "doremi", proxy=PROXY, settings={"max_rounds": 2, "tolerance": 1e-9, "eta": 5.0}, out=str(root / "b" / "d")
    )
    assert manifest["stats"]["facts"]["rounds"] == 2
    assert len([p for p in manifest["parents"] if "reference" in p["path"]]) == 2


def test_regmix_fits_the_swarm_and_keeps_its_losses(root: Path) -> None:
    settings = {"num_runs": 10}
    proxy = {"training": tiny.mix_training(max_steps=2), "held_out_rows": 2}
    manifest = mixed(root, "regmix", proxy=proxy, settings=settings)
    folder = root / "artifacts" / "regmix"
    swarm = pq.read_table(folder / "swarm.parquet")
    assert len(swarm) == 10
    assert len(list((root / "artifacts" / "models").rglob("[0-9a-f]*.json"))) == 10
    assert [verify_artifact(root / "artifacts" / parent["path"]) for parent in manifest["parents"]] == [[]]
    assert not list((root / "artifacts" / "models").rglob("*.safetensors"))
    assert np.isfinite(swarm["loss_say"].to_numpy()).all()
    assert manifest["stats"]["facts"]


def test_dynamic_moe_reads_the_gates_of_a_real_moe_model(tmp_path: Path) -> None:
    root = tiny.make_texts(tmp_path / "project", kind="mixtral")
    proxy = {"training": tiny.mix_training(max_steps=6), "held_out_rows": 4}
    mixed(root, "dynamic_moe", proxy=proxy, settings={"update_every": 2})
    plan = load_mixture(root / "artifacts" / "dynamic_moe").mixture
    assert [state.step for state in plan.trajectory] == [0, 2, 4, 6]
    assert np.ptp([state.weight_K for state in plan.trajectory], axis=0).max() > 0


def test_a_dense_model_has_no_gates_to_read(root: Path) -> None:
    with pytest.raises(ConfigError, match="expert"):
        mixed(root, "dynamic_moe", proxy=HELD, settings={"update_every": 2})


def test_sheared_loading_measures_held_out_text(root: Path) -> None:
    references = {"count": 3.0, "say": 1.0, "both": 3.0}
    mixed(root, "sheared_loading", proxy=HELD, settings={"reference_losses": references, "update_every": 4})
    plan = load_mixture(root / "artifacts" / "sheared_loading").mixture
    say = plan.names.index("say")
    assert plan.trajectory[-1].weight_K[say] > plan.trajectory[0].weight_K[say]


def test_a_mixture_and_a_selection_compose(tmp_path: Path) -> None:
    root = tiny.make_all(tmp_path)
    tiny.write_jsonl(root / "say.jsonl", tiny.records(30, kind="say"))
    tiny.write_jsonl(root / "count.jsonl", tiny.records(30, kind="count"))
    shared = {"model": str(root / "model"), "data": [str(root / "say.jsonl"), str(root / "count.jsonl")]}
    score(build("score", {**shared, "method": "random", "out": str(root / "artifacts" / "random")}))
    weights = {"say": 0.75, "count": 0.25}
    out = str(root / "artifacts" / "static")
    score(build("score", {**shared, "method": "static", "settings": {"weights": weights}, "out": out}))
    values = {"artifacts": [str(root / "artifacts" / "random"), out], "out": str(root / "runs" / "both"), "full": True}
    run = train(build("train", {**values, "budget": {"num_samples": 20}, "mixing": {"unit": "rows"},
                                "training": tiny.mix_training(max_steps=10)}))  # fmt: skip
    assert run["method"] == "random+static"
    assert run["stats"]["mixture"]["say"]["row_share"] == pytest.approx(0.75, abs=0.02)
    rows = set(pq.read_table(root / "runs" / "both" / "ledger.parquet")["row"].to_pylist())
    plan = load_plan(root / "artifacts" / "random")
    assert rows <= set(select_rows(plan.score_N, plan.num_tokens_N, Budget(num_samples=20)).tolist())


def test_two_mixtures_fill_one_facet(root: Path) -> None:
    mixed(root, "natural")
    mixed(root, "temperature", settings={"tau": 2.0})
    names = [str(root / "artifacts" / name) for name in ("natural", "temperature")]
    with pytest.raises(ConfigError, match=r"natural.*temperature.*'mix'"):
        train(build("train", {"artifacts": names, "out": str(root / "runs" / "x"), "full": True}))


def test_text_that_was_appended_is_not_passed_off_as_trained_on(root: Path) -> None:
    mixed(root, "natural")
    trained(root, "natural")
    with (root / "say.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": "red green blue seven three nine cat dog bird run jump sing " * 8}) + "\n")
    with pytest.raises(ArtifactError, match="data"):
        trained(root, "natural")


def test_what_a_reference_is_measured_with_is_part_of_the_plans_address(root: Path) -> None:
    mixed(root, "doremi", proxy=PROXY)
    with pytest.raises(ArtifactError, match="token_loss"):
        mixed(root, "doremi", proxy=PROXY, token_loss={"storage": "float32"})
    saving = {**PROXY, "training": tiny.mix_training(save_steps=2, logging_steps=1)}
    before = sorted((root / "artifacts" / "models").iterdir())
    mixed(root, "doremi", proxy=saving, out=str(root / "artifacts" / "again"))  # another way to keep the same trainings
    assert sorted((root / "artifacts" / "models").iterdir()) == before


def test_a_reference_of_another_tokenizer_is_refused_naming_both(root: Path) -> None:
    other = tiny.make_model(root / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"red"', '"crimson"'))
    with pytest.raises(ConfigError, match=r"other has tokenizer [0-9a-f]{16}.*model has [0-9a-f]{16}"):
        mixed(root, "doremi", proxy={**PROXY, "reference_model": {"path": str(other)}})


def test_a_domain_without_weight_does_not_lengthen_an_epoch(root: Path) -> None:
    from dataflex_tools.stages.estimate import estimate_train

    mixed(root, "static", settings={"weights": {"count": 0.5, "say": 0.5}})
    values = {"artifacts": [str(root / "artifacts" / "static")], "out": str(root / "runs" / "static"), "full": True}
    training = {**tiny.mix_training(), "max_steps": -1, "num_train_epochs": 1}
    config = build("train", {**values, "training": training, "mixing": {"max_epochs": 1.3}})
    (planned,) = [part["to_do"] for part in estimate_train(config).parts if part["part"] == "training"]
    run = train(config)
    assert run["stats"]["steps"] == planned
    assert run["stats"]["mixture"]["both"]["samples"] == 0


def test_the_command_line_trains_a_mixture_and_keeps_its_held_out_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from dataflex_tools.cli import app

    mixed(root, "natural")
    monkeypatch.chdir(root)
    words = [
        "train",
        "--artifacts",
        "artifacts/natural",
        "--set",
        "training.max_steps=3",
        "--set",
        "training.global_batch_size=8",
    ]
    refused = CliRunner().invoke(app, [*words, "--set", "full=false"])
    assert "leave full=false out" in str(refused.exception)
    other = CliRunner().invoke(app, [*words, "--set", "pack.held_out=0.1"])
    assert "pack.held_out is 0.1, the plan was made with 0.3" in str(other.exception)
    part = CliRunner().invoke(app, [*words, "--set", "pack.block_size=24", "--dry-run"])
    assert part.exit_code == 0, part.exception  # what is not said is the plan's
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert read_manifest(root / "runs" / "natural-3-steps-seed0")["config"]["full"] is True
    assert not (root / "runs" / "natural-3-steps-seed0" / "model" / "adapter_config.json").exists()


def test_what_is_trained_and_the_weights_followed_are_said(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataflex_tools.stages.estimate import estimate_train

    mixed(root, "static", settings={"weights": {"count": 0.75, "say": 0.25, "both": 0.0}})
    values = {"artifacts": [str(root / "artifacts" / "static")], "out": str(root / "runs" / "said"),
              "training": tiny.mix_training(max_steps=2)}  # fmt: skip
    config = build("train", values)
    said = {part["part"]: part["what"] for part in estimate_train(config).parts}
    assert said["trained"] == "all weights of the model"
    assert "count 0.750" in said["mixture"]
    assert said["mixture"].startswith("shares of tokens: ")
    monkeypatch.setattr(logging.getLogger("flextools"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="flextools"):
        train(config)
    assert f"trained: {said['trained']}" in caplog.text
    assert said["mixture"] in caplog.text


WRONG = [
    ("static", {"settings": {"weights": {"cuont": 0.5, "say": 0.5}}}, "did you mean 'count'"),
    ("static", {"settings": {"weights": {"count": -0.5, "say": 1.5}}}, "-0.5"),
    ("static", {"settings": {"weights": {"count": float("nan"), "say": 1.0}}}, "nan"),
    ("natural", {"pack": {"block_size": 5000}}, "block"),
    ("natural", {"proxy": PROXY}, "trains no model"),
    ("natural", {"target": ["x.jsonl"]}, "uses no target"),
    ("odm", {"proxy": {"training": {}}}, "max_steps"),
    (
        "sheared_loading",
        {"proxy": PROXY, "settings": {"reference_losses": dict.fromkeys(tiny.TEXT_DOMAINS, 1.0)}},
        "never decide",
    ),
    ("odm", {"proxy": {"training": tiny.mix_training(global_batch_size=5000)}}, r"proxy\.training\.global_batch_size"),
    ("natural", {"pack": {"block_size": 300}}, "positions for 128"),
    ("natural", {"render": {"cutoff_len": 7}}, "render has no effect with pack"),
    ("regmix", {"pack": {"block_size": 16, "held_out": 0.02}, "proxy": PROXY}, "held_out"),
    ("odm", {"proxy": PROXY, "settings": {"warmup_steps": 5, "update_every": 4}}, "multiple of update_every"),
    ("natural", {"pack": {"block_size": 16, "attend_across_documents": False}, "model": FLASH}, "FlashAttention"),
    ("regmix", {"pack": {"block_size": 16}, "proxy": PROXY}, "held_out"),
    (
        "odm",
        {"proxy": {"training": tiny.mix_training(extra={"dataloader_num_workers": 1})}},
        "draws each batch when it is due",
    ),
    ("odm", {"proxy": {"training": tiny.mix_training(lr_scheduler_type="greedy")}}, r"proxy\.training\.lr_scheduler_type"),
    ("doremi", {"settings": {"etta": 1.0}, "proxy": PROXY}, "did you mean 'eta'"),
    ("odm", {"proxy": {**PROXY, "reference_losses": "x"}}, "no reference"),
    ("odm", {"proxy": PROXY, "settings": {"warmup_steps": 8}}, r"warmup_steps is 8 and .* would never decide"),
    ("odm", {"proxy": PROXY, "settings": {"variant": "exp3", "smoothing": 0.5}}, "smoothing 0.5 has no effect"),
    ("odm", {"proxy": HELD}, r"proxy\.held_out_rows has no effect"),
    ("odm", {"proxy": PROXY, "token_loss": {"storage": "float32"}}, "token_loss has no effect"),
    ("odm", {"proxy": {**PROXY, "reference_rows": "all"}}, r"proxy\.reference_rows has no effect"),
    ("natural", {"gradient": {"dim": 16}}, "gradient has no effect: method 'natural' is a mixer"),
    ("natural", {"warmup": {"fraction": 0.5}}, "warmup has no effect"),
    ("doremi", {"proxy": {**PROXY, "reference_losses": "x"}, "settings": {"max_rounds": 2}}, "max_rounds 2 has no effect"),
    (
        "doremi",
        {"proxy": {**PROXY, "reference_model": {"path": "m"}}, "settings": {"reference_weights": "uniform"}},
        "settings.reference_weights has no effect with proxy.reference_model",
    ),
    ("natural", {"data": ["count.jsonl"]}, "one domain, 'count', so there is nothing to mix"),
    ("static", {"data": ["count.jsonl"]}, "one domain, 'count', so there is nothing to mix"),
]


@pytest.mark.parametrize(("method", "changes", "said"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_wrong_input_is_said_before_anything_is_trained(root: Path, method: str, changes: dict[str, Any], said: str) -> None:
    if "data" in changes:
        changes = {**changes, "data": [str(root / name) for name in changes["data"]]}
    with pytest.raises(FlextoolsError, match=said):
        mixed(root, method, **changes)
    assert not (root / "artifacts" / method).exists()
    assert not (root / "artifacts" / "models").exists()


def test_evaluation_text_that_was_trained_on_is_refused(root: Path) -> None:
    mixed(root, "natural")
    trained(root, "natural")
    with pytest.raises(DataError, match=r"were trained on.*count.jsonl row"):
        evaluate(build("evaluate", {"run": str(root / "runs" / "natural"), "data": [str(root / "count.jsonl")]}))


def test_a_run_without_held_out_text_needs_data_to_be_evaluated(root: Path) -> None:
    mixed(root, "natural", pack={"block_size": 16})
    trained(root, "natural")
    with pytest.raises(ConfigError, match="pack.held_out"):
        evaluate(build("evaluate", {"run": str(root / "runs" / "natural")}))


def test_replaying_a_manifest_gives_the_same_mixture(root: Path, tmp_path: Path) -> None:
    from dataflex_tools.stages.pipeline import load_steps, run_steps

    manifest = mixed(root, "odm", proxy=PROXY)
    steps = load_steps(root / "artifacts" / "odm", [f"out={tmp_path / 'again' / 'odm'}"])
    (again,) = run_steps(steps)
    assert again["digest"] == manifest["digest"]
    assert json.dumps(read_manifest(tmp_path / "again" / "odm")["stats"]) == json.dumps(manifest["stats"])


def test_a_recorded_setting_without_effect_does_not_stop_a_replay_or_a_training(root: Path) -> None:
    """It was accepted when the result was made."""
    from dataflex_tools.stages.config import restored

    manifest = mixed(root, "natural")
    config = {**manifest["config"], "gradient": {"dim": 16}, "proxy": {"held_out_rows": 64}}
    assert restored(root / "artifacts" / "natural", config).gradient.dim == 16


def test_inspect_shows_what_a_run_was_made_of_and_what_was_capped(root: Path) -> None:
    from dataflex_tools.report.inspect import describe

    mixed(root, "static", settings={"weights": {"count": 0.1, "say": 0.8, "both": 0.1}})
    run = trained(root, "static", mixing={"max_epochs": 0.5})
    text = describe(root / "runs" / "static")
    assert "capped     say: " in text
    assert "trained    12 steps, 96 samples" in text
    for name, found in run["stats"]["mixture"].items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{found['token_share']:.2%}" in line


def test_a_mixture_of_one_domain_is_not_trained_on(root: Path) -> None:
    from dataflex_tools.artifact.mixture import write_mixture
    from dataflex_tools.core.mixing import Mixture

    manifest = mixed(root, "natural")
    facts = {key: manifest[key] for key in ("method", "settings", "corpus", "model", "tokenizer", "parents", "config")}
    write_mixture(root / "artifacts" / "one", Mixture.constant(("count",), np.ones(1)), facts=facts)
    with pytest.raises(ConfigError, match="mixes one domain, 'count', which decides nothing"):
        trained(root, "one")


def test_a_proxy_that_has_not_settled_is_a_warning_in_log_manifest_and_inspect(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    from dataflex_tools.report.inspect import describe

    monkeypatch.setattr(logging.getLogger("flextools"), "propagate", True)
    manifest = mixed(root, "doremi", proxy=PROXY, settings={"eta": 50.0})
    said = [text for text in manifest["stats"]["warnings"] if "have not settled" in text]
    assert len(said) == 1
    assert said[0] in caplog.text
    assert f"warning    {said[0]}" in describe(root / "artifacts" / "doremi")


def test_a_dry_run_of_a_static_mixer_says_its_weights_and_warnings(root: Path) -> None:
    from dataflex_tools.stages.estimate import estimate_score

    config = tiny.mix_config(root, method="static", settings={"weights": {"count": 0.98, "say": 0.02}})
    parts = {part["part"]: part["what"] for part in estimate_score(build("score", config)).parts}
    assert parts["mixture"] == "count 0.980, say 0.020, both 0.000"
    assert "near one-hot: 'count' has 98.0%" in parts["warning"]
