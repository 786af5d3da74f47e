"""`flextools run`: the stages of a recipe in order, or the one stage that a manifest records."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex_tools.core import dist
from dataflex_tools.core.config import apply_overrides, from_mapping, load_yaml, to_mapping
from dataflex_tools.core.errors import ConfigError, did_you_mean, near_path
from dataflex_tools.data.sources import check_exists
from dataflex_tools.methods import METHODS
from dataflex_tools.stages.config import (
    STAGES,
    EvaluateConfig,
    FitConfig,
    ScoreConfig,
    TrainConfig,
    build,
    laid_over,
    recorded,
    without_code,
)

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe with its checked settings."""

    name: str
    stage: str
    config: Any


def load_steps(path: Path, overrides: Sequence[str] = ()) -> list[Step]:
    """The stages of a recipe, all checked before the first one runs.

    A recipe is {common: {...}, stages: {name: {stage: score|train|evaluate|fit, ...}}}; `common` keys reach every stage
    that has them, and what a stage says itself is laid on top, key by key. The manifest of a plan or a run, or an
    evaluation, is a recipe of one stage, into its own folder unless told otherwise; `overrides` are then that stage's
    keys. Raises ConfigError.
    """
    if (path / "manifest.json").is_file():
        path = path / "manifest.json"
    recipe = load_yaml(path)
    if isinstance(recipe.get("config"), Mapping) and "stage" in recipe["config"]:
        return _recorded_step(path, _as_decided(recipe), overrides)
    elif "format" in recipe and "kind" in recipe:
        raise ConfigError(
            f"{path} is the manifest of a {recipe['kind']}, which is made on the way to a plan; give a plan's or a run's"
        )
    recipe = apply_overrides(recipe, overrides)
    if stage := _stage_of(recipe):
        raise ConfigError(f"{path} holds the settings of one stage; use `flextools {stage} --config {path}`")
    for key in recipe:
        if key not in ("common", "stages"):
            raise ConfigError(f"recipe {path} has no key {key!r}; {did_you_mean(str(key), ['common', 'stages'])}")
    stages = recipe.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        raise ConfigError(f"recipe {path} has no stages; wanted stages: {{name: {{stage: score, ...}}}}")
    common = recipe.get("common") or {}
    _check_common(path, common)
    steps: list[Step] = []
    for name, values in stages.items():
        steps.append(_step(path, str(name), values, common, before=steps))
    _check_inputs(path, steps)
    return steps


def _stage_of(recipe: Mapping[str, Any]) -> str | None:
    """The stage whose settings these are, None for what may be a recipe."""
    if "stages" in recipe or "common" in recipe:
        return None
    named = recipe.get("stage")
    marks = {"method": "score", "artifacts": "train", "run": "evaluate", "ratios": "fit"}
    found = next((stage for key, stage in marks.items() if key in recipe), None)
    return named if isinstance(named, str) and named in STAGES else found


def _as_decided(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a result; a setting that it left to a default which is another now is named."""
    config = dict(manifest["config"])
    made_with = manifest.get("settings")
    if config["stage"] != "score" or not isinstance(made_with, Mapping):
        return config
    cls = METHODS.find(str(config.get("method")))
    given = config.get("settings") or {}
    now = to_mapping(from_mapping(cls.Settings, given, where=f"{cls.kind} {config.get('method')!r}"))
    changed = {key: value for key, value in made_with.items() if key in now and now[key] != value}
    for key, value in changed.items():
        logger.info("settings.%s is %r, the default when this was made; today's is %r", key, value, now[key])
    return {**config, "settings": {**given, **changed}}


def _recorded_step(path: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> list[Step]:
    """The one stage a result records; code it would run must be asked for by `overrides`."""
    stage = config["stage"]
    own = {} if stage == "evaluate" else {"out": str(path.parent)}
    values = apply_overrides({**own, **without_code(config)}, overrides)
    steps = [_step(path, str(stage), values, {}, is_recorded=True)]
    _check_inputs(path, steps)
    return steps


def _check_inputs(path: Path, steps: Sequence[Step]) -> None:
    """Raise for what would stop a later stage and can be seen now: absent data, settings that cannot work here."""
    from dataflex_tools.train.settings import check_training

    made: list[str] = []
    for step in steps:
        for folder in _inputs_of(step):
            if Path(folder) not in map(Path, made) and not Path(folder).exists():
                hint = did_you_mean(folder, made) if made else "run the stage that makes it first"
                raise ConfigError(
                    f"recipe {path}: {step.name}: {folder} does not exist and no stage before makes it; {hint}"
                )
        if isinstance(step.config, FitConfig):
            _check_tables(path, step.config)
        else:
            for source in (*step.config.data, *getattr(step.config, "target", ())):
                check_exists(source)
        if isinstance(step.config, TrainConfig):
            check_training(step.config.training, world_size=dist.world_size())
        if not isinstance(step.config, EvaluateConfig) and step.config.out is not None:
            made.append(step.config.out)


def _check_tables(path: Path, config: FitConfig) -> None:
    for table in (config.ratios, config.metrics):
        if not Path(table).exists():
            raise ConfigError(f"recipe {path}: {table} does not exist; {near_path(Path(table)) or 'give a table of runs'}")


def _check_common(path: Path, common: Any) -> None:
    if not isinstance(common, Mapping):
        raise ConfigError(f"recipe {path}: common holds {type(common).__name__}, wanted a mapping of keys to values")
    known = {name for cls in STAGES.values() for name in cls.__dataclass_fields__}
    for key in common:
        if key not in known:
            raise ConfigError(f"recipe {path}: common has no key {key!r}; {did_you_mean(str(key), known)}")


def _step(
    path: Path, name: str, values: Any, common: Mapping[str, Any], *, before: Sequence[Step] = (), is_recorded: bool = False
) -> Step:
    if not isinstance(values, Mapping) or "stage" not in values:
        raise ConfigError(f"recipe {path}: {name} does not say which stage it is; add `stage: score|train|evaluate|fit`")
    stage = values["stage"]
    if stage not in STAGES:
        raise ConfigError(f"recipe {path}: {name}: unknown stage {stage!r}; {did_you_mean(str(stage), STAGES)}")
    fields = STAGES[stage].__dataclass_fields__
    # evaluation data is never the training data by default, and the target of a fit is a metric
    own_keys = {"evaluate": ("data",), "fit": ("target", "settings")}.get(stage, ())
    shared = {key: value for key, value in common.items() if key in fields and key not in own_keys}
    own = {key: value for key, value in values.items() if key != "stage"}
    made = {step.config.out: recorded(step.config) for step in before if isinstance(step.config, ScoreConfig)}
    return Step(name, stage, build(stage, laid_over(shared, own), made=made, is_recorded=is_recorded))


def run_steps(steps: Sequence[Step]) -> list[Mapping[str, Any]]:
    """Run all stages; what exists with the same address is not computed again, and said so."""
    from dataflex_tools.stages.evaluate import evaluate
    from dataflex_tools.stages.fit import fit
    from dataflex_tools.stages.score import score
    from dataflex_tools.stages.train import train

    functions: dict[str, Any] = {"score": score, "train": train, "evaluate": evaluate, "fit": fit}
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
    from dataflex_tools.stages.estimate import estimate_evaluate, estimate_fit, estimate_score, estimate_train

    functions: dict[str, Any] = {
        "score": estimate_score, "train": estimate_train, "evaluate": estimate_evaluate, "fit": estimate_fit,
    }  # fmt: skip
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
    return [step.config.reference] if step.stage == "score" and step.config.reference else []
