"""Settings: what is given in part leaves the rest as it was."""

import dataclasses
from typing import Any

import pytest

from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.methods import METHODS
from dataflex_tools.stages.bench_mix import BenchMixConfig
from dataflex_tools.stages.bench_select import BenchConfig
from dataflex_tools.stages.config import STAGES, laid_over

CLASSES: dict[str, type] = {
    **STAGES,
    "bench-select": BenchConfig,
    "bench-mix": BenchMixConfig,
    **{name: METHODS.find(name).Settings for name in METHODS.names()},
}
NEEDED = {
    "method": "less",
    "model": {"path": "m"},
    "data": [{"path": "x"}],
    "out": "o",
    "artifacts": ["a"],
    "run": "r",
    "common": {},
    "train": {},
    "evaluate": {},
    "methods": ["less"],
    "target_groups": ["g"],
    "ratios": "a.csv",
    "metrics": "b.csv",
}


def _needed(cls: type) -> dict[str, Any]:
    absent = dataclasses.MISSING
    return {
        item.name: NEEDED[item.name]
        for item in dataclasses.fields(cls)
        if item.default is absent and item.default_factory is absent
    }


def _parts(default: Any, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Each (path to a field, its default) inside the dataclass `default`, to any depth."""
    found = []
    for item in dataclasses.fields(default):
        value, path = getattr(default, item.name), (*above, item.name)
        found.append((path, to_mapping(value)))
        found += _parts(value, path) if dataclasses.is_dataclass(value) else []
    return found


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


@pytest.mark.parametrize("name", CLASSES)
def test_one_inner_setting_at_its_default_changes_nothing(name: str) -> None:
    cls, needed = CLASSES[name], _needed(CLASSES[name])
    whole = from_mapping(cls, needed, where=name)
    for item in dataclasses.fields(whole):
        default = getattr(whole, item.name)
        if not dataclasses.is_dataclass(default) or item.name in needed:
            continue
        assert from_mapping(cls, {**needed, item.name: {}}, where=name) == whole
        for path, value in _parts(default):
            given = {**needed, item.name: _nested(path, value)}
            assert from_mapping(cls, given, where=name) == whole, path


def test_another_kind_of_budget_replaces_the_default_one() -> None:
    needed = _needed(BenchConfig)
    budget = from_mapping(BenchConfig, {**needed, "budget": {"num_tokens": 9}}, where="bench").budget
    assert (budget.fraction, budget.num_tokens, budget.unit) == (None, 9, "samples")
    budget = from_mapping(BenchConfig, {**needed, "budget": {"fraction": 0.5}}, where="bench").budget
    assert (budget.fraction, budget.unit) == (0.5, "tokens")


def test_what_a_stage_says_itself_lies_on_top_of_what_it_shares() -> None:
    shared = {"model": {"path": "a", "lora": {"r": 4}}, "training": {"learning_rate": 1.0}, "data": ["x"]}
    own = {"model": "b", "training": {"max_steps": 3}, "data": ["y"]}
    assert laid_over(shared, own) == {
        "model": {"path": "b", "lora": {"r": 4}},
        "training": {"learning_rate": 1.0, "max_steps": 3},
        "data": ["y"],
    }
