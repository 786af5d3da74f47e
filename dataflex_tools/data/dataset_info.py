"""Entries of a LLaMA-Factory `dataset_info.json`, read as settings of a source.

Written after `get_dataset_list` and `DatasetAttr.join` in hiyouga/LLaMA-Factory
src/llamafactory/data/parser.py: columns that an entry does not name are not used.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.data.records import TAGS

logger = logging.getLogger("flextools")

_READ = {
    "file_name": str,
    "hf_hub_url": str,
    "ms_hub_url": str,
    "om_hub_url": str,
    "file_sha1": str,
    "subset": str,
    "split": str,
    "formatting": str,
    "ranking": bool,
    "columns": dict,
    "tags": dict,
}
# what cannot be followed, and why or what to do instead
_REFUSED = {
    "script_url": "scripts are not run; save what it gives as files",
    "cloud_file_name": "fetch the file and name it as file_name",
    "folder": "fetch that folder of the repository and name it as file_name",
    "revision": "fetch that state of the repository and name it as file_name",
    "num_samples": "all rows are read; how many are trained on is said to `flextools train`",
}
# their column name to ours, by form
_COLUMNS = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "system": "system",
    },
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
}
# those that an entry without `columns` has
_DEFAULT = {"alpaca": ("instruction", "input", "output"), "sharegpt": ("conversations",)}


def is_listing(path: Path) -> bool:
    """Whether a `dataset_info.json` lists datasets, and is no description that `datasets` wrote."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    named = {"file_name", "hf_hub_url", "ms_hub_url", "script_url"}
    entries = entries.values() if isinstance(entries, dict) else ()
    return any(isinstance(entry, dict) and named & entry.keys() for entry in entries)


def entry_settings(info: Path, name: str) -> dict[str, Any]:
    """Fields of a `SourceSpec` (path, form, subset, split, columns, tags, leave_out) for one entry.

    A `file_name` that exists wins over `hf_hub_url`. An entry that maps a prompt and no response is
    text for pretraining.
    Raises ConfigError for what cannot be followed: rankings, images, scripts, sub-sampling.
    """
    entry = _entry(info, name)
    where = f"{info} entry {name!r}"
    _check(entry, where)
    theirs = entry.get("formatting", "alpaca")
    form = {"openai": "sharegpt"}.get(theirs, theirs)
    if form not in _COLUMNS:
        hint = did_you_mean(theirs, [*_COLUMNS, "openai"])
        raise ConfigError(f"{where} has formatting {theirs!r}; {hint}")
    default = {"role_tag": "role", "content_tag": "content"} if theirs == "openai" else {}
    return {
        **_place(info, entry, where),
        **_columns(entry.get("columns"), form, where),
        "tags": default | _tags(entry.get("tags") or {}, where),
    }


def _entry(info: Path, name: str) -> dict[str, Any]:
    try:
        entries = json.loads(info.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"dataset list {info} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"dataset list {info} is not JSON in UTF-8: {error}") from None
    if not isinstance(entries, dict) or name not in entries:
        known = entries if isinstance(entries, dict) else ()
        raise ConfigError(f"dataset list {info} has no entry {name!r}; {did_you_mean(name, known)}")
    entry = entries[name]
    if not isinstance(entry, dict):
        raise DataError(f"{info} entry {name!r} holds {type(entry).__name__}, wanted an object")
    return {key: value for key, value in entry.items() if value is not None}


def _check(entry: Mapping[str, Any], where: str) -> None:
    for key, value in entry.items():
        if key in _REFUSED:
            raise ConfigError(f"{where} has {key!r}, which is not supported: {_REFUSED[key]}")
        if key not in _READ:
            hint = did_you_mean(key, _READ)
            raise ConfigError(f"{where} has {key!r}, which is not supported; {hint}")
        if not isinstance(value, _READ[key]):
            wanted = {str: "a text", bool: "true or false", dict: "an object"}[_READ[key]]
            raise ConfigError(f"{where}: {key} holds {value!r}, wanted {wanted}")
    if entry.get("ranking"):
        found = "has ranking: true (chosen and rejected answers)"
        raise ConfigError(f"{where} {found}; wanted single answers")
    for kind in ("columns", "tags"):
        for key, value in entry.get(kind, {}).items():
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"{where}: {kind}.{key} holds {value!r}, wanted a name")


def _place(info: Path, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that say where the data lies: path, subset and split."""
    file = info.parent / entry.get("file_name", "")
    is_file = "file_name" in entry and (file.exists() or "hf_hub_url" not in entry)
    if not is_file:
        if "hf_hub_url" not in entry:
            found = "has neither file_name nor hf_hub_url"
            raise ConfigError(f"{where} {found}; other hubs are not read")
        place = {"path": entry["hf_hub_url"], "split": entry.get("split", "train")}
        return {**place, "subset": entry.get("subset")}
    _compare_sha1(file, entry.get("file_sha1"), where)
    split = entry.get("split")
    if split == "train" and file.is_file():
        split = None  # a file is its train split
    return {"path": str(file), "split": split, "subset": entry.get("subset")}


def _compare_sha1(file: Path, wanted: str | None, where: str) -> None:
    """Warn where a file is not the one that the entry was written for, as LLaMA-Factory does."""
    if wanted is None or not file.is_file():
        return
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha1").hexdigest()
    if found != wanted.lower():
        message = "%s: file_sha1 is %s, %s has %s; it is read as it is"
        logger.warning(message, where, wanted, file, found)


def _columns(given: Mapping[str, str | None] | None, form: str, where: str) -> dict[str, Any]:
    """The fields that say what the columns are: form, columns, leave_out."""
    known = _COLUMNS[form]
    if given is None:
        left_out = [ours for ours in known.values() if ours not in _DEFAULT[form]]
        return {"form": form, "columns": {}, "leave_out": left_out}
    named = {key: name for key, name in given.items() if name is not None}
    for key in named:
        if key not in known:
            found = f"maps the column {key!r}, which {form} records do not use here"
            raise ConfigError(f"{where} {found}; take it out")
    if form == "alpaca" and "response" not in named:
        return _pretraining(named, where)
    if form == "alpaca" and "prompt" not in named and "query" in named:
        named["prompt"] = named.pop("query")  # the two are joined, and one is enough
    needed = "messages" if form == "sharegpt" else "prompt"
    if needed not in named:
        raise ConfigError(f"{where} maps columns but no {needed!r}; name the column that holds it")
    columns = {known[key]: name for key, name in named.items()}
    left_out = [ours for ours in known.values() if ours not in columns]
    return {"form": form, "columns": columns, "leave_out": left_out}


def _pretraining(named: Mapping[str, str], where: str) -> dict[str, Any]:
    """An entry that maps a prompt alone is text. Raises ConfigError if it maps anything else."""
    if list(named) != ["prompt"]:
        found = ", ".join(map(repr, named)) or "nothing"
        wanted = "'response' too, or, for plain text, 'prompt' alone"
        raise ConfigError(f"{where} maps {found}; wanted {wanted}")
    return {"form": "text", "columns": {"text": named["prompt"]}, "leave_out": []}


def _tags(given: Mapping[str, str | None], where: str) -> dict[str, str]:
    for key in given:
        if key not in TAGS:
            raise ConfigError(f"{where} has no tag {key!r}; {did_you_mean(key, TAGS)}")
    return {key: tag for key, tag in given.items() if tag is not None}
