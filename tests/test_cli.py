"""Words of the command line that no stage's test covers."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dataflex_tools.cli import app
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.plan import Selection
from dataflex_tools.methods import METHODS
from tests.artifact.examples import plan


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    for name, score in (("a", np.arange(10.0)), ("b", np.arange(10.0)[::-1].copy())):
        plan(tmp_path / name, 10, selection=Selection(score))
    return [str(tmp_path / name) for name in "ab"]


def test_compare_prints_tables_and_json(folders: list[str]) -> None:
    text = CliRunner().invoke(app, ["compare", *folders, "--fraction", "0.2", "--fraction", "0.5"])
    assert text.exit_code == 0
    assert "best 0.2" in text.stdout
    assert "-1.000" in text.stdout  # the one ranks as the other does not
    found = json.loads(CliRunner().invoke(app, ["compare", *folders, "--json"]).stdout)
    assert [budget["fraction"] for budget in found["budgets"]] == [0.01, 0.05, 0.1, 0.25]


def test_compare_of_one_plan_is_refused(folders: list[str]) -> None:
    with pytest.raises(ConfigError, match="wanted at least 2"):
        CliRunner().invoke(app, ["compare", folders[0]], catch_exceptions=False)


def test_bench_select_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        CliRunner().invoke(app, ["bench-select", str(tmp_path / "absent.yaml")], catch_exceptions=False)


def test_methods_says_what_selectors_need_and_mixers_observe() -> None:
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)}
    assert list(rows) == METHODS.names()
    assert (rows["ifd"]["kind"], rows["ifd"]["observes"]) == ("selector", [])
    assert rows["ifd"]["signals"] == ["loss (pool)", "loss_alone (pool)"]
    observed = {"natural": [], "odm": ["loss"], "regmix": ["held_out_loss"]}
    for name, observes in observed.items():
        assert (rows[name]["kind"], rows[name]["signals"], rows[name]["observes"]) == ("mixer", [], observes)


def test_methods_prints_selectors_before_mixers() -> None:
    lines = CliRunner().invoke(app, ["methods"]).stdout.splitlines()
    first = {line.split()[0]: i for i, line in enumerate(lines) if line[:1].isalpha()}
    assert set(first) == {"method", *METHODS.names()}
    assert first["zeroth"] < first["doremi"]


def test_the_version_is_that_of_the_package() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.stdout.split() == ["flextools", version("flextools")]


@pytest.mark.parametrize("command", sorted(command.name or command.callback.__name__ for command in app.registered_commands))
def test_the_help_of_a_command_ends_with_two_examples_of_it(command: str) -> None:
    text = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert text.partition("Examples:")[2].count(f"flextools {command} ") == 2
