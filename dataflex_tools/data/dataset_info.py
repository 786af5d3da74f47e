"""Entries of a LLaMA-Factory `dataset_info.json`, read as settings of a source."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.data.records import TAGS

_READ = {"file_name", "hf_hub_url", "subset", "split", "formatting", "columns", "tags", "ranking", "ms_hub_url",
         "om_hub_url"}  # fmt: skip
# their column name to ours, by form
_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history",
               "system": "system"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
}  # fmt: skip


def entry_settings(info: Path, name: str) -> dict[str, Any]:
    """Fields of a `SourceSpec` (path, form, subset, split, columns, tags) for one entry.

    A `file_name` that exists wins over `hf_hub_url`. Raises ConfigError for what cannot be followed: rankings, images,
    scripts, sub-sampling.
    """
    entry = _entry(info, name)
    where = f"{info} entry {name!r}"
    if entry.get("ranking"):
        raise ConfigError(f"{where} has ranking: true (chosen and rejected answers); wanted single answers")
    for key in entry:
        if key not in _READ:
            raise ConfigError(f"{where} has {key!r}, which is not supported; remove it or name the file itself")
    theirs = entry.get("formatting", "alpaca")
    form = {"openai": "sharegpt"}.get(theirs, theirs)
    if form not in _COLUMNS:
        raise ConfigError(f"{where} has formatting {theirs!r}; {did_you_mean(str(theirs), [*_COLUMNS, 'openai'])}")
    file = info.parent / str(entry.get("file_name", ""))
    is_file = "file_name" in entry and (file.exists() or "hf_hub_url" not in entry)
    if not is_file and "hf_hub_url" not in entry:
        raise ConfigError(f"{where} has neither file_name nor hf_hub_url")
    default = {"role_tag": "role", "content_tag": "content"} if theirs == "openai" else {}
    return {
        "path": str(file) if is_file else entry["hf_hub_url"],
        "form": form,
        "subset": entry.get("subset"),
        "split": entry.get("split") if is_file else entry.get("split", "train"),
        "columns": _columns(entry.get("columns") or {}, form, where),
        "tags": default | _tags(entry.get("tags") or {}, where),
    }


def _entry(info: Path, name: str) -> dict[str, Any]:
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"dataset list {info} does not exist") from None
    except ValueError as error:
        raise DataError(f"dataset list {info} is not JSON: {error}") from None
    if not isinstance(entries, dict) or name not in entries:
        known = entries if isinstance(entries, dict) else ()
        raise ConfigError(f"dataset list {info} has no entry {name!r}; {did_you_mean(name, known)}")
    entry = entries[name]
    if not isinstance(entry, dict):
        raise DataError(f"{info} entry {name!r} holds {type(entry).__name__}, wanted an object")
    return entry


def _columns(given: Mapping[str, str], form: str, where: str) -> dict[str, str]:
    for key in given:
        if key not in _COLUMNS[form]:
            raise ConfigError(f"{where} maps the column {key!r}, which {form} records do not use here")
    return {_COLUMNS[form][key]: name for key, name in given.items()}


def _tags(given: Mapping[str, str], where: str) -> dict[str, str]:
    for key in given:
        if key not in TAGS:
            raise ConfigError(f"{where} has no tag {key!r}; {did_you_mean(key, TAGS)}")
    return dict(given)
