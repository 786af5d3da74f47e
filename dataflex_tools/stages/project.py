"""The project file `flextools.yaml`: what the commands typed in its folder, or below it, share.

    common:   {model: ..., data: ..., render: ...}    # stages that have the key
    score:    {target: ..., warmup: ...}
    train:    {training: ...}
    evaluate: {data: ...}
    methods:  {less: {settings: ...}}                 # the score stage of one method
    inputs:   make inputs                             # what makes the files named above

A section further down wins over one above it; a config file, options and `--set` win over all.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dataflex_tools.core.config import check_keys, load_yaml
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.data.sources import is_hub_id, parse_source
from dataflex_tools.methods import METHODS
from dataflex_tools.stages.config import STAGES, laid_over

NAME = "flextools.yaml"
_MINE = {0, os.getuid()} if sys.platform != "win32" else {0}  # owners whose file is trusted
_STAGES = {stage: STAGES[stage] for stage in ("score", "train", "evaluate")}
_SECTIONS = ("common", *_STAGES, "methods", "inputs")
# what a plan says of itself: `train` takes it from there, not from what a project's plans mostly have
_OF_THE_PLAN = ("model", "data", "render", "pack", "target", "seed")
_FOLDERS = ("out", "run", "reference", "artifacts", "proxy.reference_losses")
_FILES = tuple(
    f"{training}.{name}"
    for training in ("training", "warmup.training", "proxy.training")
    for name in ("deepspeed", "fsdp_config")
)
_MODELS = ("model", "proxy.reference_model", "embedding.model")


@dataclass(frozen=True)
class Project:
    """A project file and what it holds, checked."""

    path: Path
    sections: Mapping[str, Any]

    def settings(self, stage: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What it says of a stage beside what is `given`, of its method in particular; paths from the current folder.

        What a stage as a whole is told and this method has no use for (a target, say) is left out: a project serves
        many methods. Raises ConfigError for a method that does not exist.
        """
        given = given or {}
        known = {item.name for item in fields(STAGES[stage])}
        common = {key: value for key, value in self._section("common").items() if key in known}
        if stage != "score":  # evaluation data is never the training data by default
            common = {key: value for key, value in common.items() if key not in _OF_THE_PLAN}
        values = laid_over(common, self._section(stage))
        name = given.get("method") or values.get("method")
        if stage == "score" and name is not None:
            values = _of_use({**values, **given}, values, str(name))
            values = laid_over(values, self._section("methods").get(name, {}))
        return rebased(values, self.path.parent)

    def check_inputs(self, values: Mapping[str, Any]) -> None:
        """Raise ConfigError if a file that the project names is not there, and the project says what makes it."""
        command = self.sections.get("inputs")
        if command is None:
            return
        own = {path for stage in _STAGES for path in _paths_of(self.settings(stage))}
        for path in _paths_of(values):
            if path in own and not Path(path).exists():
                raise ConfigError(f"{path}, named in {self.path.name}, does not exist; run `{command}` first")

    def _section(self, name: str) -> dict[str, Any]:
        return dict(self.sections.get(name) or {})


def find_project(start: Path) -> Project | None:
    """The nearest `flextools.yaml` in `start` or above it. Raises ConfigError if it holds something it cannot.

    A file that belongs to somebody else is passed over: settings may name code to run.
    """
    for folder in (start, *start.parents):
        path = folder / NAME
        if path.is_file() and path.stat().st_uid in _MINE:
            return Project(path, _checked(path, load_yaml(path)))
    return None


def _checked(path: Path, sections: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, value in sections.items():
        if key not in _SECTIONS:
            raise ConfigError(f"{path} has no section {key!r}; {did_you_mean(str(key), _SECTIONS)}")
        if key != "inputs" and not isinstance(value, Mapping):
            raise ConfigError(f"{path}: {key} holds {value!r}, wanted a mapping of keys to values")
    known = {item.name for cls in _STAGES.values() for item in fields(cls)}
    for key in sections.get("common", {}):
        if key not in known:
            raise ConfigError(f"{path}: common has no setting {key!r}; {did_you_mean(str(key), known)}")
    for stage, cls in _STAGES.items():
        check_keys(cls, sections.get(stage, {}), where=f"{path}: {stage}")
    for name, values in sections.get("methods", {}).items():
        METHODS.find(str(name))
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path}: methods.{name} holds {values!r}, wanted settings of its score stage")
        check_keys(STAGES["score"], values, where=f"{path}: methods.{name}")
    return sections


_OF_SELECTORS = {"target", "reference", "drop_overlap", "reward_gradient", "budget", "warmup", "gradient", "loss"}
_OF_SELECTORS |= {"token_loss", "embedding", "zeroth"}
_OF_MIXERS = {"pack", "proxy"}


def _of_use(all_values: Mapping[str, Any], values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """`values` without what has no use for this kind of method, as `all_values` has it set up."""
    cls = METHODS.find(method)
    if cls.kind == "mixer":
        unused = set(_OF_SELECTORS)
        unused |= {"render"} if all_values.get("pack") else set()  # which takes documents whole
    else:
        unused = set(_OF_MIXERS)
        unused |= set() if cls.uses_target or all_values.get("drop_overlap") else {"target"}
        unused |= set() if cls.uses_reference else {"reference"}
    return {key: value for key, value in values.items() if key not in unused}


def rebased(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with the paths in it, relative to `folder`, made relative to the current folder."""
    prefix = os.path.relpath(folder)
    if prefix == ".":
        return dict(values)

    def path(text: str) -> str:
        return text if Path(text).expanduser().is_absolute() else os.path.normpath(Path(prefix, text))

    def model(text: str) -> str:
        return path(text) if (folder / text).exists() or not is_hub_id(text) else text

    changed = dict(values)
    for key in ("data", "target"):
        if key in changed:
            changed[key] = _sources(changed[key], folder, path)
    for keys, change in ((_FOLDERS + _FILES, path), (_MODELS, model)):
        for key in keys:
            _change(changed, key.split("."), change)
    return changed


def _sources(value: Any, folder: Path, path: Callable[[str], str]) -> list[Any]:
    """Sources as mappings, with their paths rebased; a Hub id stays."""
    changed = []
    for item in value if isinstance(value, list) else [value]:
        spec = item
        if isinstance(item, str):
            parsed = parse_source(item)
            given = {name: getattr(parsed, name) for name in ("path", "domain", "split")}
            spec = {key: value for key, value in given.items() if value is not None}
        if isinstance(spec, Mapping) and isinstance(text := spec.get("path"), str):
            is_here = (folder / text).exists() or not is_hub_id(text)
            spec = {**spec, "path": path(text) if is_here else text}
        changed.append(spec)
    return changed


def _change(values: dict[str, Any], keys: list[str], change: Callable[[str], str]) -> None:
    """Put `change` of each text under the dotted key in its place, in copies of the mappings on the way."""
    key, *rest = keys
    found = values.get(key)
    if rest and isinstance(found, Mapping):
        values[key] = dict(found)
        _change(values[key], rest, change)
    elif rest:
        return
    elif isinstance(found, str):
        values[key] = change(found)
    elif isinstance(found, list):
        values[key] = [change(item) for item in found]
    elif isinstance(found, Mapping) and isinstance(found.get("path"), str):
        values[key] = {**found, "path": change(found["path"])}


def _paths_of(values: Mapping[str, Any]) -> list[str]:
    """Paths of model, data and target."""
    found = [values.get("model"), *_as_list(values.get("data")), *_as_list(values.get("target"))]
    texts = [item.get("path") if isinstance(item, Mapping) else item for item in found]
    paths = [parse_source(text).path for text in texts if isinstance(text, str)]
    return [path for path in paths if not is_hub_id(path)]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
