"""A bench of mixers: equal budgets, one baseline, nothing made twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.report.bench import bench_mix_text
from dataflex_tools.stages.bench_mix import bench_mix, load_bench_mix
from tests import tiny


def recipe(root: Path, **changes: Any) -> Path:
    common = {key: tiny.mix_config(root)[key] for key in ("model", "data", "pack")}
    values = {
        "common": {**common, "proxy": {"training": tiny.mix_training(max_steps=4)}},
        "methods": ["natural", {"method": "static", "name": "uniform"}, "odm"],
        "train": {"training": tiny.mix_training(max_steps=6)},
        "seeds": 2, "out": str(root / "bench"), **changes,
    }  # fmt: skip
    path = root / "bench.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_texts(tmp_path_factory.mktemp("bench") / "project")


def test_every_arm_is_trained_with_every_seed_and_compared_with_the_baseline(root: Path) -> None:
    result = bench_mix(load_bench_mix(recipe(root)))
    assert [arm["name"] for arm in result["arms"]] == ["natural", "uniform", "odm"]
    assert {name: [run["seed"] for run in runs] for name, runs in result["runs"].items()} == {
        name: [0, 1] for name in ("natural", "uniform", "odm")
    }
    natural, uniform = ([run["macro_loss"] for run in result["runs"][name]] for name in ("natural", "uniform"))
    versus = next(arm for arm in result["arms"] if arm["name"] == "uniform")["versus"]
    assert versus["mean"] == pytest.approx(np.mean(np.array(uniform) - np.array(natural)))
    assert result["arms"][0]["versus"] is None
    assert sum(result["weights"]["uniform"].values()) == pytest.approx(1)
    for runs in result["runs"].values():
        for run in runs:
            assert sum(item["samples"] for item in run["mixture"].values()) == 6 * 8
    text = bench_mix_text(result)
    assert "against natural" in text
    assert all(name in text for name in tiny.TEXT_DOMAINS)
    # again: nothing is trained
    files = {p: p.stat().st_mtime_ns for p in (root / "bench" / "runs").rglob("*.safetensors")}
    again = bench_mix(load_bench_mix(recipe(root)))
    assert json.dumps(again["arms"]) == json.dumps(result["arms"])
    assert files == {p: p.stat().st_mtime_ns for p in (root / "bench" / "runs").rglob("*.safetensors")}


def test_a_later_arm_that_cannot_run_stops_the_bench_before_anything_is_trained(root: Path, tmp_path: Path) -> None:
    late = {
        "methods": ["natural", {"method": "sheared_loading", "settings": {"update_every": 2}}],
        "out": str(tmp_path / "b"),
    }
    with pytest.raises(ConfigError, match="reference_losses"):
        bench_mix(load_bench_mix(recipe(root, **late)))
    assert not list(tmp_path.rglob("*.safetensors"))
    common = {key: tiny.mix_config(root)[key] for key in ("model", "data")}
    nothing = {"common": {**common, "pack": {"block_size": 16}}, "methods": ["natural"], "out": str(tmp_path / "c")}
    with pytest.raises(ConfigError, match="held_out"):
        bench_mix(load_bench_mix(recipe(root, **nothing)))


def test_a_dry_run_counts_the_trainings_and_writes_nothing(root: Path, tmp_path: Path) -> None:
    from dataflex_tools.stages.bench_mix import estimate_bench_mix

    found = estimate_bench_mix(load_bench_mix(recipe(root, out=str(tmp_path / "b"))))
    assert found["trainings"] == 3 * 2
    assert set(found["scores"]) == {"natural", "uniform", "odm"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["natural", "less"]}, "bench-select"),
        ({"methods": ["static"]}, "baseline 'natural' is no arm"),
        ({"methods": ["natural", "natural"]}, "same name"),
        ({"train": {"training": {"learning_rate": 1.0}}}, "max_steps"),
        ({"train": {"budget": {"num_samples": 3}, "training": tiny.mix_training()}}, "bench decides"),
        ({"seeds": 0}, "seeds is 0"),
        ({"methods": ["natural", "odmm"]}, "did you mean 'odm'"),
    ],
)
def test_a_recipe_that_compares_nothing_fair_is_refused(root: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_bench_mix(recipe(root, **changes))
