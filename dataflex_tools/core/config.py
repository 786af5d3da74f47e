"""Settings: YAML and `--set` to frozen dataclasses; unknown keys are errors with the nearest name.

Types are checked and converted by pydantic; this module adds the hints and the one-line messages.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml

from dataflex_tools.core.errors import ConfigError, aliases, did_you_mean

T = TypeVar("T")
_SHOWN_PATHS = 4  # places of a key in one line


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML or JSON file holds. Raises ConfigError if it is missing, malformed or not a mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (IsADirectoryError, NotADirectoryError):
        raise ConfigError(f"config file {path} is a folder or lies in a file; give a YAML or JSON file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not YAML: {_yaml_cause(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {path} is not text in UTF-8; give a YAML or JSON file") from None
    if not isinstance(value, dict):
        found = "is empty" if value is None else f"holds {type(value).__name__}"
        raise ConfigError(f"config file {path} {found}, wanted a mapping of keys to values")
    return value


def _yaml_cause(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


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
            raise ConfigError(f"--set {item!r}: the value is not YAML: {_yaml_cause(error)}") from None
    return result


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top: mappings key by key, all else replaced."""
    result: dict[str, Any] = _copied(base)
    for key, value in over.items():
        mine = result.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        result[key] = merged(typing.cast(Mapping[str, Any], mine), value) if both else _copied(value)
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls`; `where` names the place for messages, e.g. "method 'less'".

    What `values` leaves out of an inner dataclass is what the outer one's default has there, which may differ from the
    inner class's own. Raises ConfigError for an unknown key (with the nearest name), a missing one, or a value of the wrong
    type or range.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} holds {values!r}, wanted a mapping of keys to values")
    check_keys(cls, values, where=where)
    _check_text(values, where)
    filled = _filled(cls, values)
    try:
        return TypeAdapter(cls).validate_python(filled)
    except ConfigError as error:
        raise ConfigError(_in_full(str(error), _place_of(cls, filled, str(error)))) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
        key = ".".join(place)
        if first["type"] == "missing":
            raise ConfigError(f"{where}: {key} is missing, and has no default; give it") from None
        if first["type"] == "tuple_type":
            key = ".".join(part for part in place if "[" not in part)
            raise ConfigError(f"{where}: {key} is {first['input']!r}, wanted a list of values") from None
        raise ConfigError(f"{where}: {key}: {first['msg']}, found {first['input']!r}") from None


def _filled(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with each mapping that stands for an inner dataclass filled up from the outer class's default of it."""
    result = dict(values)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if isinstance(result.get(item.name), Mapping) and dataclasses.is_dataclass(default):
            result[item.name] = _laid_over(default, result[item.name])
    return result


def _laid_over(default: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    names = getattr(default, "alternatives", ())
    if any(values.get(name) is not None and getattr(default, name) is None for name in names):
        return dict(values)  # another choice, of which the default says nothing
    result = {f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.init}
    for key, value in values.items():
        inner = result[key]
        is_part = isinstance(value, Mapping) and dataclasses.is_dataclass(inner)
        result[key] = _laid_over(inner, value) if is_part else value
    return result


def _place_of(cls: type, values: Mapping[str, Any], message: str) -> list[str]:
    """Names of the inner dataclasses, outermost first, of which the innermost is refused with this message."""
    from pydantic import TypeAdapter, ValidationError

    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        for inner in _dataclasses_in(hints[key]) if isinstance(value, Mapping) else ():
            try:
                TypeAdapter(inner).validate_python(dict(value))
            except ConfigError as error:
                if str(error) == message:
                    return [key, *_place_of(inner, value, message)]
            except ValidationError:
                continue
    return []


def _in_full(message: str, place: Sequence[str]) -> str:
    """A message with its names in full: what is called `training.` at (proxy, training) is `proxy.training.`."""
    if len(place) < 2:
        return message
    return re.sub(rf"(?<![\w.]){place[-1]}\.", f"{'.'.join(place)}.", message)


def _check_text(value: Any, where: str) -> None:
    """Raise ConfigError for a text that no file of ours can hold: bytes that are not UTF-8."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            found = f"{value!r}, which is not text in UTF-8"
            raise ConfigError(f"{where} holds {found}; give it another name") from None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(key, where)
            _check_text(item, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_text(item, where)


def check_keys(cls: type, values: Mapping[str, Any], *, where: str) -> None:
    """Raise ConfigError, with the nearest name, for a key that the dataclass `cls` or one inside it does not have."""
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where} has no setting {key!r}; {_meant(cls, str(key), value, known)}")
        for inner in _dataclasses_in(hints[key]):
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Mapping):
                    check_keys(inner, item, where=f"{where}: {key}")


def _meant(cls: type, key: str, value: Any, known: Sequence[str]) -> str:
    """A hint for an unknown key: a name of this class, or where deeper in it the key has a place."""
    names = (key, *aliases(key))
    if not set(names) & set(known) and (paths := _paths_to(cls, names)):
        rest = ""
        while isinstance(value, Mapping) and len(value) == 1:
            ((inner, value),) = value.items()
            rest += f".{inner}"
        return f"did you mean {' or '.join(repr(path + rest) for path in paths)}?"
    return did_you_mean(key, known)


def _paths_to(cls: type, names: Sequence[str]) -> list[str]:
    """Dotted paths of the fields with one of these names in the dataclasses inside `cls`; the shallowest of each branch."""
    found = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for inner in _dataclasses_in(hints[field.name]):
            own = [item.name for item in dataclasses.fields(inner) if item.name in names]
            found += [f"{field.name}.{path}" for path in own or _paths_to(inner, names)]
    return list(dict.fromkeys(found))[:_SHOWN_PATHS]


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


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: old, now new` for each value in which two nested mappings differ, names dotted; for messages."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old = before.get(key)
        new = now.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping | None) and isinstance(new, Mapping | None):
            found += [f"{key}.{inner}" for inner in differences(old or {}, new or {})]
        elif _are_mappings(old) and _are_mappings(new) and len(old) == len(new):
            by_place = [{str(index): item for index, item in enumerate(items)} for items in (old, new)]
            found += [f"{key}.{inner}" for inner in differences(*by_place)]
        else:
            found.append(f"{key}: {_short(old)}, now {_short(new)}")
    return found


def _are_mappings(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    if value and _are_mappings(value):
        return f"{len(value)} entries"
    text = ", ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
