"""Settings: YAML and `--set` to frozen dataclasses; unknown keys are errors with the nearest name.

Types are checked and converted by pydantic; this module adds the hints and the one-line messages.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dataflex_tools.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML or JSON file holds. Raises ConfigError if it is missing, malformed or not a mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"config file {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"config file {path} holds {type(value).__name__}, wanted a mapping of keys to values")
    return value


def apply_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`config` with each `a.b=value` set; values are read as YAML. Raises ConfigError for a malformed item."""
    result: dict[str, Any] = _copied(config)
    for item in overrides:
        path, equals, text = item.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {item!r} is not of the form key.subkey=value")
        node, keys = result, path.strip().split(".")
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {item!r}: {key!r} holds {node!r}, not a mapping")
        try:
            node[keys[-1]] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item!r}: the value is not YAML: {' '.join(str(error).split())}") from None
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls`; `where` names the place for messages, e.g. "method 'less'".

    Raises ConfigError for an unknown key (with the nearest name), a missing one, or a value of the wrong type or range.
    """
    from pydantic import TypeAdapter, ValidationError

    _check_keys(cls, values, where)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise cause from None
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
        found = "" if first["type"] == "missing" else f", found {first['input']!r}"
        raise ConfigError(f"{where}: {key}: {first['msg']}{found}") from None


def _check_keys(cls: type, values: Mapping[str, Any], where: str) -> None:
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where} has no setting {key!r}; {did_you_mean(str(key), known)}")
        for inner in _dataclasses_in(hints[key]):
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Mapping):
                    _check_keys(inner, item, f"{where}: {key}")


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [typing.cast(type, hint)]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) in (typing.Union, tuple, list):
        return [found for arg in typing.get_args(hint) for found in _dataclasses_in(arg)]
    return []


def to_mapping(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON values, every default written out; the inverse of `from_mapping`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): to_mapping(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_mapping(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition`; for `__post_init__` checks."""
    if not condition:
        raise ConfigError(message)


def differing_names(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of the keys in which two nested mappings differ, for messages."""
    names = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names += [f"{key}.{inner}" for inner in differing_names(old, new)]
        elif old != new:
            names.append(key)
    return names
