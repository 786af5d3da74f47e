"""`flextools run`: the stages of a recipe in order, or the one stage that a manifest records."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex_tools.core.config import apply_overrides, load_yaml
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.stages.config import STAGES, build

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe with its checked settings."""

    name: str
    stage: str
    config: Any


def load_steps(path: Path, overrides: Sequence[str] = ()) -> list[Step]:
    """The stages of a recipe, all checked before the first one runs.

    A recipe is {common: {...}, stages: {name: {stage: score|train|evaluate, ...}}}; `common` keys reach every stage that
    has them. A manifest (or run.json) with a `config` is a recipe of one stage. Raises ConfigError.
    """
    recipe = load_yaml(path)
    if isinstance(recipe.get("config"), Mapping) and "stage" in recipe["config"]:
        name = recipe["config"]["stage"]
        recipe = {"stages": {name: dict(recipe["config"])}}
    recipe = apply_overrides(recipe, overrides)
    for key in recipe:
        if key not in ("common", "stages"):
            raise ConfigError(f"recipe {path} has no key {key!r}; {did_you_mean(str(key), ['common', 'stages'])}")
    stages = recipe.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        raise ConfigError(f"recipe {path} has no stages; wanted stages: {{name: {{stage: score, ...}}}}")
    common = recipe.get("common") or {}
    _check_common(path, common)
    return [_step(path, str(name), values, common) for name, values in stages.items()]


def _check_common(path: Path, common: Mapping[str, Any]) -> None:
    known = {name for cls in STAGES.values() for name in cls.__dataclass_fields__}
    for key in common:
        if key not in known:
            raise ConfigError(f"recipe {path}: common has no key {key!r}; {did_you_mean(str(key), known)}")


def _step(path: Path, name: str, values: Any, common: Mapping[str, Any]) -> Step:
    if not isinstance(values, Mapping) or "stage" not in values:
        raise ConfigError(f"recipe {path}: {name} does not say which stage it is; add `stage: score|train|evaluate`")
    stage = values["stage"]
    if stage not in STAGES:
        raise ConfigError(f"recipe {path}: {name}: unknown stage {stage!r}; {did_you_mean(str(stage), STAGES)}")
    fields = STAGES[stage].__dataclass_fields__
    # evaluation data is never the training data by default
    shared = {k: v for k, v in common.items() if k in fields and not (stage == "evaluate" and k == "data")}
    return Step(name, stage, build(stage, {**shared, **{k: v for k, v in values.items() if k != "stage"}}))


def run_steps(steps: Sequence[Step]) -> list[Mapping[str, Any]]:
    """Run all stages; what exists with the same address is not computed again, and said so."""
    from dataflex_tools.stages.evaluate import evaluate
    from dataflex_tools.stages.score import score
    from dataflex_tools.stages.train import train

    functions: dict[str, Any] = {"score": score, "train": train, "evaluate": evaluate}
    results = []
    for step in steps:
        logger.info("stage %s (%s)", step.name, step.stage)
        results.append(functions[step.stage](step.config))
    return results


def describe_steps(steps: Sequence[Step], *, as_json: bool) -> str:
    """What `run_steps` would do: for a score stage whose inputs exist a full estimate, else what it waits for."""
    import json
    from dataclasses import asdict

    from dataflex_tools.report.tables import estimate_table
    from dataflex_tools.stages.estimate import estimate_evaluate, estimate_score, estimate_train

    functions: dict[str, Any] = {"score": estimate_score, "train": estimate_train, "evaluate": estimate_evaluate}
    found: dict[str, Any] = {}
    for step in steps:
        waits = [path for path in _inputs_of(step) if not (Path(path) / "manifest.json").exists()]
        found[step.name] = {"waits_for": waits} if waits else asdict(functions[step.stage](step.config))
    if as_json:
        return json.dumps(found)
    lines = []
    for step in steps:
        value = found[step.name]
        waits = value.get("waits_for")
        body = f"after {', '.join(waits)} is made" if waits else estimate_table(value)
        lines.append(f"== {step.name} ({step.stage})\n{body}\n")
    return "\n".join(lines).rstrip()


def _inputs_of(step: Step) -> list[str]:
    """Results of earlier stages that this one reads."""
    if step.stage == "train":
        return list(step.config.artifacts)
    if step.stage == "evaluate":
        return [step.config.run]
    return [step.config.reference] if step.config.reference else []
