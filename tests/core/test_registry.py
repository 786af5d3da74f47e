"""Methods of other distributions: a broken one is named, and takes nothing else down."""

import importlib.metadata
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataflex_tools.cli import app
from dataflex_tools.core import registry
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods import METHODS

GOOD = '''
from dataclasses import dataclass
from dataflex_tools.methods.random import Random

@dataclass(frozen=True)
class NoSettings:
    """None."""

class Mine(Random):
    Settings = NoSettings
    paper, cost = "mine", "none"

class Lacking(Mine):
    paper = None

class Needy(Mine):
    @dataclass(frozen=True)
    class Settings:
        given: int

class Other:
    """No method."""
'''
POINTS = {
    "mine": "own_methods:Mine",
    "absent": "no_such_module:Mine",
    "untrue": "broken_methods:Mine",
    "nothing": "own_methods:Nothing",
    "other": "own_methods:Other",
    "lacking": "own_methods:Lacking",
    "needy": "own_methods:Needy",
    "less": "own_methods:Mine",
}
FAULTS = {
    "absent": "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
    "untrue": "cannot be imported: ZeroDivisionError",
    "nothing": "cannot be imported: AttributeError",
    "other": "is no subclass of Selector or Mixer of dataflex_tools.methods.base",
    "lacking": "lacks paper; a method says these",
    "needy": "cannot be made with its defaults",
    "less": "has the name of one that is there already",
    "twin": "is not the only one of its name: own_methods:Mine, own_methods:Other",
}


@pytest.fixture(autouse=True)
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_methods.py").write_text(GOOD)
    (tmp_path / "broken_methods.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pairs = [*POINTS.items(), ("twin", "own_methods:Mine"), ("twin", "own_methods:Other")]
    known = [EntryPoint(name, value, METHODS.group) for name, value in pairs]
    real = importlib.metadata.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda group: known if group == METHODS.group else real(group=group))


def test_a_broken_plugin_is_named_and_the_others_are_listed() -> None:
    result = CliRunner().invoke(app, ["methods", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    names = [row["name"] for row in json.loads(result.stdout)]
    assert {"mine", "less", "doremi"} <= set(names)
    assert not set(FAULTS) - {"less"} & set(names)
    for name, said in FAULTS.items():
        line = next(line for line in result.stderr.splitlines() if f"method '{name}'" in line)
        assert said in line
        assert line.startswith("not usable: ")


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"less"}))
def test_asking_for_a_broken_plugin_is_an_error_that_says_why(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        METHODS.find(name)
    assert FAULTS[name] in str(caught.value)


def test_no_plugin_takes_the_place_of_a_method_that_is_there() -> None:
    assert METHODS.find("less").__module__ == "dataflex_tools.methods.less"
    assert METHODS.find("mine").__name__ == "Mine"
