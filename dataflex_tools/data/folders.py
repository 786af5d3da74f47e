"""The files that a folder or a pattern stands for: all, or an error that says what is missed."""

import glob
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.data.dataset_info import is_listing
from dataflex_tools.data.files import (
    COMPRESSED,
    KINDS,
    bare_name,
    is_near_kind,
    kind_of,
    unreadable,
)

logger = logging.getLogger("flextools")

_MAGIC = re.compile(r"[*?[]")
# the words that `datasets` knows for its three splits
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_ANY = "|".join(sorted(_SPLIT_OF, key=len, reverse=True))
_NUMBER = r"([-._ ]*\d+([-._ ]*of[-._ ]*\d+)?)?"  # of a shard: -00000-of-00002
_IS_SPLIT = re.compile(rf"({_ANY}){_NUMBER}")
_BEGINS_WITH_SPLIT = re.compile(rf"({_ANY})[-._ ].*")
_ENDS_WITH_SPLIT = re.compile(rf".*[-._ ]({_ANY}){_NUMBER}")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*")
# what lies beside data and is none
_METADATA = ("config.json", "dataset_info.json", "dataset_infos.json")
_ABOUT = re.compile("readme|licen[cs]e|copying|notice|changelog|citation|authors|requirements")
_PASSED_OVER = (
    ".md .rst .html .htm .pdf .png .jpg .jpeg .gif .svg .yaml .yml .toml .ini .cfg .py .sh .ipynb "
    ".cff .bib .log .lock .crc .md5 .sha256 .idx"
).split()
_OTHER_DATA = (
    ".lz4 .br .z .xlsx .xls .ods .avro .orc .db .sqlite .sqlite3 .duckdb .pkl .pickle .npy .npz "
    ".h5 .hdf5 .tfrecord .mds .xml .bin .part .crdownload .tmp .incomplete"
).split()


def is_pattern(text: str) -> bool:
    """Whether a source is a pattern of file names (`*`, `?`, `[...]`, `**` for any folders)."""
    return _MAGIC.search(text) is not None and not Path(text).expanduser().exists()


def pattern_root(pattern: str) -> Path:
    """The folder that all files of a pattern lie in: what stands before its first wildcard."""
    parts = Path(pattern).expanduser().parts
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    return Path(*parts[:first])


def pattern_files(pattern: str) -> tuple[Path, ...]:
    """The files that match a pattern, in the order of their names.

    Raises DataError if there are none, or some cannot be read or are of another kind.
    """
    found = sorted(Path(name) for name in glob.glob(os.path.expanduser(pattern), recursive=True))
    folders = [path for path in found if path.is_dir()]
    if folders and "**" not in pattern:
        hint = f"let the pattern end in the names of files, for example '{pattern}/*.jsonl'"
        raise DataError(f"source {pattern} also matches the folder {folders[0]}; {hint}")
    files = [path for path in found if path not in set(folders)]
    if "**" in pattern:  # follows links to folders, which may be inside themselves
        first: dict[str, Path] = {}
        for path in files:
            first.setdefault(os.path.realpath(path), path)
        files = list(first.values())
    if not files:
        hint = "give another pattern, a file or a folder"
        raise DataError(f"source {pattern} matches no file; {hint}")
    for file in files:
        if not kind_of(file):
            raise DataError(f"source {pattern} matches what cannot be read: {unreadable(file)}")
    _check_one_kind(pattern, files)
    return tuple(files)


def folder_files(folder: Path, split: str | None) -> tuple[Path, ...]:
    """The data files in a folder and in the folders inside it, by name; of one split if named.

    Raises DataError or ConfigError, with the names, if some data would be left out or mixed up:
    files of several kinds or splits, archives and other formats, links to nothing; and if the
    folder is a model or a result instead.
    """
    if instead := _what_else(folder):
        raise DataError(f"source {folder} {instead}")
    shown = _walk(folder)
    data = _data_files(folder, shown)
    _check_nothing_is_left(folder, shown, data)
    _check_one_kind(str(folder), data)
    return _of_split(folder, data, split)


def has_own_layout(folder: Path) -> bool:
    """Whether the README of a folder says which files make which split: `configs` of `datasets`."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    import yaml
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(readme)
    except (yaml.YAMLError, ValueError) as error:
        cause = " ".join(str(error).split())
        found = f"begins with metadata that cannot be read: {cause}"
        raise DataError(f"{readme} {found}; repair or remove it") from None
    return bool(metadata and metadata.get("configs"))


def _what_else(folder: Path) -> str:
    """What a folder is instead of data, and what to do; "" if nothing is known."""
    names = {item.name for item in folder.iterdir()}
    if "adapter_config.json" in names:
        return "is a LoRA adapter, no data; give a file or folder of records"
    if "tokenizer_config.json" in names or {"config.json", "model.safetensors"} <= names:
        return f"is a model or tokenizer, no data; give it as --model, {_HERE}"
    if "manifest.json" in names and _is_result(folder / "manifest.json"):
        return f"is a result of flextools, no data; give it as --artifacts, {_HERE}"
    return ""


_HERE = "and here a file or folder of records"


def _is_result(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and {"kind", "digest"} <= found.keys()


def _walk(folder: Path) -> list[Path]:
    """All files under a folder but hidden ones, by name; links are followed, each folder once."""
    found, seen = [], {os.path.realpath(folder)}
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(Path(where, name))
            if not name.startswith((".", "__MACOSX", "__pycache__")) and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        found += [Path(where, name) for name in names if not name.startswith(".")]
    for file in found:
        if not file.exists():
            hint = "fetch the file, or remove the link"
            raise DataError(f"source {folder} holds {file}, a link to nothing; {hint}")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _data_files(folder: Path, shown: Sequence[Path]) -> list[Path]:
    for file in shown:
        if file.name == "state.json" and file.parent != folder:
            hint = f"name one, as {file.parent}"
            raise DataError(f"source {folder} holds saved datasets in folders; {hint}")
    readable = [file for file in shown if kind_of(file) and file.name not in _METADATA]
    records = [file for file in readable if kind_of(file) != ".txt"]
    listing = folder / "dataset_info.json"
    if listing in shown and is_listing(listing):
        hint = f"name one as {listing}:ENTRY, or one of its files"
        raise ConfigError(f"source {folder} has a list of datasets; {hint}")
    if records:  # a text beside them may be about them
        texts = [file for file in readable if kind_of(file) == ".txt"]
        about = {file for file in texts if _ABOUT.match(file.name.lower())}
        readable = [file for file in readable if file not in about]
    if not readable:
        found = "is an empty folder"
        if shown:
            found = f"holds nothing that can be read ({_named(folder, shown)})"
        raise DataError(f"source {folder} {found}; give one with {', '.join(KINDS)} files")
    return readable


def _check_nothing_is_left(folder: Path, shown: Sequence[Path], data: Sequence[Path]) -> None:
    unread = [file for file in shown if not kind_of(file)]
    others = [file for file in unread if file.suffix and file.suffix.lower() not in _PASSED_OVER]
    left = [file for file in others if is_near_kind(file) or file.suffix.lower() in _OTHER_DATA]
    if left:
        found = f"would be read in part, without {_named(folder, left)}"
        hint = f"name what is to be read as a pattern: '{_pattern(folder, data)}'"
        raise DataError(f"source {folder} {found}; unpack, convert or rename that, or {hint}")
    if others:
        logger.warning("%s: no data, passed over: %s", folder, _named(folder, others))


def _check_one_kind(source: str, files: Sequence[Path]) -> None:
    endings = sorted({kind_of(file) for file in files})
    if len(endings) > 1:
        pattern = f"{source.rstrip('/')}/*{endings[0]}"
        hint = f"name one file, or those of one kind as a pattern such as '{pattern}'"
        if _MAGIC.search(source):
            hint = "let the pattern end in the ending of one kind"
        found = ", ".join(endings)
        raise DataError(f"source {source} holds files of several kinds ({found}); {hint}")
    unpacked = {file.with_suffix("") for file in files if file.suffix.lower() in COMPRESSED}
    if twice := sorted(unpacked & set(files)):
        found = f"holds {twice[0]} both unpacked and compressed"
        raise DataError(f"source {source} {found}; remove one of the two")


def _of_split(folder: Path, files: Sequence[Path], split: str | None) -> tuple[Path, ...]:
    groups: dict[str, list[Path]] = {}
    is_sure = False  # whether the name of some file says "held out" and nothing else
    for file in files:
        label, is_whole = _split_of(folder, file)
        is_text = kind_of(file) == ".txt"
        if is_text and not is_whole:
            label = ""  # the title of a text
        groups.setdefault(label, []).append(file)
        is_sure |= is_whole and not is_text and label in ("validation", "test")
    labels = sorted(set(groups) - {""}, key=lambda label: (not label.startswith("train"), label))
    if split is not None:
        return _named_split(folder, groups, labels, split)
    if len(labels) > 1 or (is_sure and "" in groups):
        found = ", ".join(f"{label} ({_named(folder, groups[label])})" for label in labels)
        more = f" beside {_named(folder, groups[''])}" if "" in groups else ""
        one = "name a file, or a split" if more else "name one"
        pattern = _pattern(folder, files)
        hint = f"{one} as {folder}:{labels[0]}; the pattern '{pattern}' reads all of them"
        raise ConfigError(f"source {folder} holds several splits: {found}{more}; {hint}")
    return tuple(files)


def _named_split(
    folder: Path,
    groups: Mapping[str, Sequence[Path]],
    labels: Sequence[str],
    split: str,
) -> tuple[Path, ...]:
    name = split if split in groups else _SPLIT_OF.get(split.lower(), split)
    if not labels and name == "train":
        return tuple(groups[""])  # as `datasets` has it
    if name not in labels:
        hint = did_you_mean(split, labels or ["train"])
        raise ConfigError(f"source {folder} has no split {split!r}; {hint}")
    if name == "train" and "" in groups:
        found = f"{_named(folder, groups[''])} would be left out of the split {split!r}"
        hint = f"name the files as a pattern such as '{_pattern(folder, groups[name])}'"
        raise DataError(f"source {folder}: {found}; {hint}, or move the others")
    return tuple(groups[name])


def _split_of(folder: Path, file: Path) -> tuple[str, bool]:
    """(the split that a file's path names, "" if none; whether a whole name in it is that word)."""
    inside = file.relative_to(folder)
    for part in inside.parts[:-1]:
        if found := _IS_SPLIT.fullmatch(part.lower()):
            return _SPLIT_OF[found[1]], True
    name = bare_name(file)
    if found := _IS_SPLIT.fullmatch(name.lower()):
        return _SPLIT_OF[found[1]], True
    if file.parent.name == "data" and (shard := _SHARD.fullmatch(name)):
        return shard[1], True
    found = _BEGINS_WITH_SPLIT.fullmatch(name.lower()) or _ENDS_WITH_SPLIT.fullmatch(name.lower())
    return (_SPLIT_OF[found[1]], False) if found else ("", False)


def _pattern(folder: Path, files: Sequence[Path]) -> str:
    """A pattern that matches these files, and as little else as can be said."""
    depth = "**/" if any(file.parent != folder for file in files) else ""
    plain = {file.suffix for file in files if file.suffix.lower() not in COMPRESSED}
    packed = {"".join(file.suffixes[-2:]) for file in files if file.suffix.lower() in COMPRESSED}
    endings = plain | packed
    ending = endings.pop() if len(endings) == 1 else f"{kind_of(files[0])}*"
    return f"{folder}/{depth}*{ending}"


def _named(folder: Path, files: Sequence[Path]) -> str:
    names = [str(file.relative_to(folder)) for file in files]
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
