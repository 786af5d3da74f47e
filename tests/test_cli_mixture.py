"""The command line on mixtures: inspect, compare, export and verify."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dataflex_tools.cli import app
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.mixing import Mixture
from tests.artifact.examples import mix, online_mixture, plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mix(tmp_path / "doremi")
    mix(tmp_path / "odm", online_mixture(schedule=True), method="odm")
    mix(tmp_path / "static", Mixture.constant(("web", "code"), np.ones(2)))
    plan(tmp_path / "less")
    return tmp_path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_inspect_shows_weights_as_text_json_and_picture(folder: Path) -> None:
    result = run("inspect", folder / "doremi", "--picture", folder / "weights.svg")
    assert result.exit_code == 0
    assert "natural (tokens)" in result.stdout
    assert (folder / "weights.svg").read_text().startswith("<?xml")
    found = json.loads(run("inspect", folder / "odm", "--json").stdout)
    assert (found["facet"], found["mixture"]["schedule"]["entries"]) == ("mix", 7)
    with pytest.raises(ConfigError, match="leave out --picture"):
        run("inspect", folder / "less", "--picture", folder / "x.png")


def test_compare_puts_mixtures_side_by_side(folder: Path) -> None:
    text = run("compare", folder / "doremi", folder / "odm")
    assert "total variation" in text.stdout
    found = json.loads(run("compare", folder / "doremi", folder / "odm", folder / "static", "--json").stdout)
    assert len(found["pairs"]) == 3
    with pytest.raises(ConfigError, match="--fraction has no effect on mixtures"):
        run("compare", folder / "doremi", folder / "odm", "--fraction", "0.1")
    with pytest.raises(ConfigError, match="compare artifacts of one kind"):
        run("compare", folder / "doremi", folder / "less")


def test_export_writes_files_and_says_which(folder: Path) -> None:
    out = folder / "out"
    text = run("export", folder / "odm", "--to", "megatron", "-o", out, "--step", 10, "--source", "web=/data/web")
    assert text.exit_code == 0
    assert text.stdout.splitlines()[0] == str(out / "data_args.txt")
    assert (out / "data_args.txt").read_text().splitlines()[0].endswith(" /data/web")
    options = ("export", folder / "doremi", "--to", "datasets", "-o", out, "--draws", "documents", "--json")
    found = json.loads(run(*options).stdout)
    assert found["weights"] == json.loads((out / "mixture.json").read_text())["probabilities"]


def test_verify_recomputes_a_mixture(folder: Path) -> None:
    assert run("verify", folder / "doremi", folder / "odm").exit_code == 0
    (folder / "odm" / "trajectory.parquet").write_bytes(b"x")
    result = run("verify", folder / "odm")
    assert result.exit_code == 1
    assert "trajectory.parquet was changed" in result.stdout
