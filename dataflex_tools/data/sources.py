"""Where records come from: files, folders, saved datasets, Hub ids and LLaMA-Factory entries, all read as streams."""

import glob
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean, near_path, one_line
from dataflex_tools.core.fingerprint import digest, file_sha256
from dataflex_tools.data.columnar import NO_VALUE, Record, check_stream_ends, refusing
from dataflex_tools.data.dataset_info import entry_settings
from dataflex_tools.data.files import COMPRESSED, bare_name, is_near_kind, kind_of, unreadable
from dataflex_tools.data.folders import (
    folder_files,
    has_own_layout,
    is_pattern,
    pattern_files,
    pattern_root,
)
from dataflex_tools.data.readers import read_file
from dataflex_tools.data.records import COLUMNS
from dataflex_tools.data.spec import SourceSpec

__all__ = [
    "DatasetSource",
    "FileSource",
    "Source",
    "SourceSpec",
    "check_exists",
    "open_source",
    "parse_source",
    "read_records",
]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WITH_SPLIT = re.compile(r"(?P<path>.+?):(?P<split>\w[\w.-]*(\[[^/]*\])?)")
_PLAIN_SPLIT = re.compile(r"\w[\w.-]*")
_URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
_ROWS = 1024  # rows of a dataset decoded at once
OnBad = Callable[[int, str], None]


class Source(Protocol):
    """An opened source; its name is the domain of its rows if nothing else says it."""

    @property
    def spec(self) -> SourceSpec:
        """How it is read, after an entry of a dataset list has been followed."""
        ...

    @property
    def name(self) -> str:
        """File stem, folder or dataset name."""
        ...

    @property
    def reader(self) -> str:
        """What decides how the bytes are read: the ending of a file, "" for a dataset."""
        ...

    def sha256(self) -> str:
        """SHA-256 of the bytes the records come from."""
        ...

    def records(self, on_bad: OnBad | None = None) -> Iterator[Record]:
        """(line or row number from 1, raw record); bad rows go to `on_bad` if the spec skips them."""
        ...

    def place(self, number: int) -> str:
        """Where a row that has been read stands, for messages: of several files the file, too."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Files of one format under the folder `root`, read one after the other."""

    spec: SourceSpec
    name: str
    files: tuple[Path, ...]
    root: Path
    starts: list[tuple[int, Path]] = field(default_factory=list, compare=False, repr=False)

    @property
    def reader(self) -> str:
        """The ending that all files have, compressions, and whether the lines of text are records."""
        packed = sorted({file.suffix.lower() for file in self.files} & set(COMPRESSED))
        return "".join([kind_of(self.files[0]), *packed, " lines" if self.spec.lines else ""])

    @property
    def is_text(self) -> bool:
        """Whether the files are plain text."""
        return kind_of(self.files[0]) == ".txt"

    def sha256(self) -> str:
        """SHA-256 of the file, or of the names and SHA-256 of the files of a folder."""
        if len(self.files) == 1:
            return file_sha256(self.files[0])
        names = [file.relative_to(self.root).as_posix() for file in self.files]
        return digest([[name, file_sha256(file)] for name, file in zip(names, self.files, strict=True)])

    def records(self, on_bad: OnBad | None = None) -> Iterator[Record]:
        """(line or row number from 1, raw record); rows of a folder are numbered through."""
        first = 0
        self.starts.clear()
        for file in self.files:
            self.starts.append((first, file))
            if file.stat().st_size == 0:
                raise DataError(f"{file} is empty (0 bytes); give a file with at least one record")
            bad = _bad_rows(self.spec, str(file), first, on_bad)
            number = 0
            for number, record in read_file(file, bad, self.spec.asked, lines=self.spec.lines):
                yield first + number, record
            first += number

    def place(self, number: int) -> str:
        """The file and the row in it."""
        first, file = max(start for start in self.starts if start[0] < number)
        return f"{file} row {number - first}"


def _bad_rows(spec: SourceSpec, place: str, first: int, on_bad: OnBad | None) -> OnBad:
    """What to do with a bad row: raise, or tell `on_bad`, which numbers rows through."""

    def told(number: int, message: str) -> None:
        if not spec.skip_bad:
            hint = "repair it, or leave such rows out with --skip-bad"
            raise DataError(f"{place} row {number} {message}; {hint}")
        if on_bad is not None:
            on_bad(first + number, message)

    return told


@dataclass(frozen=True)
class DatasetSource:
    """A `datasets.Dataset`: saved to disk, downloaded from the Hub, or a folder with its own layout."""

    spec: SourceSpec
    name: str
    dataset: Any

    @property
    def reader(self) -> str:
        """Its own."""
        return ""

    def sha256(self) -> str:
        """SHA-256 of the Arrow files behind the dataset and its number of rows; of the rows if it lies in memory."""
        files = [file_sha256(Path(file["filename"])) for file in self.dataset.cache_files]
        return digest([files, self.dataset.num_rows, None if files else self.dataset.to_list()])

    def records(self, on_bad: OnBad | None = None) -> Iterator[Record]:
        """(row number from 1, raw record); columns that nobody asks for hold None."""
        files = [Path(file["filename"]) for file in self.dataset.cache_files]
        for file in files:
            check_stream_ends(file)
        names = self.dataset.column_names
        wanted = [name for name in names if name in self.spec.asked]
        empty: dict[str, Any] = dict.fromkeys(names)
        bad = _bad_rows(self.spec, self.spec.path, 0, on_bad)
        view = self.dataset.with_format(None).select_columns(wanted)
        with refusing(f"source {self.spec.path} cannot be read", files[0] if files else None):
            for start in range(0, self.dataset.num_rows, _ROWS):
                stop = min(start + _ROWS, self.dataset.num_rows)
                for number, values in _dataset_rows(view, start, stop, bad):
                    yield number, empty | values

    def place(self, number: int) -> str:
        """The dataset and the row."""
        return f"{self.spec.path} row {number}"


def _dataset_rows(view: Any, start: int, stop: int, bad: OnBad) -> Iterator[Record]:
    """(number from 1, values) of the rows from `start` to `stop`; one that Python cannot hold is bad."""
    if not view.column_names:
        yield from ((index + 1, {}) for index in range(start, stop))
        return
    try:
        columns = view[start:stop]
    except NO_VALUE:
        for index in range(start, stop):
            try:
                values = view[index]
            except NO_VALUE as error:
                bad(index + 1, f"has a value that cannot be read ({one_line(error)})")
            else:
                yield index + 1, values
        return
    for number, row in enumerate(zip(*columns.values(), strict=True), start=start + 1):
        yield number, dict(zip(columns, row, strict=True))


def parse_source(text: str) -> SourceSpec:
    """A spec from its short form: `path`, `domain=path`, `org/name:split`, `dir/dataset_info.json:entry`."""
    domain: str | None = None
    if "=" in text and not _is_here(text):
        before, _, after = text.partition("=")
        if "/" not in before:
            domain, text = before, after
            require(bool(domain) and bool(text), f"source {before}={after} is not of the form domain=path")
    found = _WITH_SPLIT.fullmatch(text)
    if found is None or _is_here(text) or found["path"].lower().endswith(".json"):
        return SourceSpec(path=text, domain=domain)
    return SourceSpec(path=found["path"], domain=domain, split=found["split"])


def _is_here(text: str) -> bool:
    if is_pattern(text):
        return bool(glob.glob(text, recursive=True))
    return Path(text).exists()


def read_records(spec: SourceSpec, *, on_bad: OnBad | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number from 1, raw record) of a source, as a stream.

    With `spec.skip_bad`, rows that cannot be read are told to `on_bad` and left out. Raises DataError otherwise.
    """
    return open_source(spec).records(on_bad)


def check_exists(spec: SourceSpec) -> None:
    """Raise DataError for a path that is nothing here and cannot be a Hub id; costs no more than a look."""
    path, info = Path(spec.path).expanduser(), Path(spec.path.rpartition(":")[0]).expanduser()
    is_entry = info.suffix.lower() == ".json" and info.is_file()
    if path.exists() or is_entry or is_hub_id(spec.path):
        return
    if is_pattern(spec.path):
        pattern_files(spec.path)
        return
    if _URL.match(spec.path):
        hint = "fetch it and name the file, or name a Hub id as org/name"
        raise DataError(f"source {spec.path} is an address; {hint}")
    hint = near_path(path) or "wanted a file, a folder, or a Hub id of the form org/name"
    raise DataError(f"source {spec.path} does not exist; {hint}")


def is_hub_id(text: str) -> bool:
    """Whether a path that is nothing here may be a Hub id: not if it ends nearly as data does."""
    return _HUB_ID.fullmatch(text) is not None and not is_near_kind(Path(text))


def open_source(spec: SourceSpec) -> Source:
    """The source behind a spec. Raises DataError if nothing is there, ConfigError if a setting has no effect on it."""
    source = _open(spec)
    if spec.lines and not (isinstance(source, FileSource) and source.is_text):
        found = "lines has no effect, it holds no text files"
        raise ConfigError(f"source {spec.path}: {found}; leave it out")
    return source


def _open(spec: SourceSpec) -> Source:
    path = Path(spec.path).expanduser()
    info, colon, entry = spec.path.rpartition(":")
    if colon and not path.exists() and info.lower().endswith(".json"):
        return _open_entry(spec, Path(info).expanduser(), entry)
    if path.is_file():
        return _open_file(spec, path)
    if path.is_dir():
        return _open_folder(spec, path)
    check_exists(spec)
    if is_pattern(spec.path):
        _check_no_split(spec)
        root = pattern_root(spec.path)
        return FileSource(spec, _folder_name(root), pattern_files(spec.path), root)
    if is_hub_id(spec.path):
        return _open_dataset(spec, spec.path)
    raise DataError(f"source {path} is neither a file nor a folder")


def _open_entry(spec: SourceSpec, info: Path, entry: str) -> Source:
    given = {name: getattr(spec, name) for name in ("subset", "split") if getattr(spec, name) is not None}
    given |= {"form": spec.form} if spec.form != "auto" else {}
    settings = entry_settings(info, entry) | given
    settings["columns"] = {**settings["columns"], **spec.columns}
    settings["tags"] = {**settings["tags"], **spec.tags}
    required, optional = COLUMNS[settings["form"]]
    free = {*required, *optional} - settings["columns"].keys()
    left_out = [name for name in settings["leave_out"] if name in free]
    settings["leave_out"] = (*left_out, *spec.leave_out)
    source = open_source(replace(spec, domain=spec.domain or entry, **settings))
    if isinstance(source, FileSource) and source.is_text:
        # LLaMA-Factory takes each line of a text file for a record
        return open_source(replace(source.spec, lines=True))
    return source


def _open_file(spec: SourceSpec, path: Path) -> Source:
    if path.name.lower() == "dataset_info.json":
        raise ConfigError(f"source {path} lists datasets; name one of them as {path}:ENTRY")
    if not kind_of(path):
        raise DataError(f"source {unreadable(path)}")
    _check_no_split(spec)
    return FileSource(spec, bare_name(path), (path,), path.parent)


def _check_no_split(spec: SourceSpec) -> None:
    for name in ("split", "subset"):
        message = f"source {spec.path}: {name} has no effect on files; leave it out"
        require(getattr(spec, name) is None, message)


def _open_folder(spec: SourceSpec, path: Path) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        import datasets

        require(spec.subset is None, f"source {path}: subset has no effect on a saved dataset; leave it out")
        try:
            found = datasets.load_from_disk(str(path))
        except (OSError, ValueError) as error:
            cause = one_line(error)
            raise DataError(f"source {path} cannot be loaded as a saved dataset: {cause}") from None
        return DatasetSource(spec, path.name, _one_split(spec, found))
    if has_own_layout(path):
        return _open_dataset(spec, str(path))
    message = "subset has no effect, its README.md names none; leave it out"
    require(spec.subset is None, f"source {path}: {message}")
    if spec.split is None or _PLAIN_SPLIT.fullmatch(spec.split):
        return FileSource(spec, _folder_name(path), folder_files(path, spec.split), path)
    return _open_slice(spec, path)


def _open_slice(spec: SourceSpec, path: Path) -> Source:
    """A part of a split (`train[:10%]`), which `datasets` cuts; its split has to be ours."""
    import datasets

    split = str(spec.split).partition("[")[0]
    files = folder_files(path, split)
    found = datasets.load_dataset_builder(str(path)).config.data_files or {}
    read = {Path(file).resolve() for file in found.get(split, ())}
    if left := [file for file in files if file.resolve() not in read]:
        hint = f"name the split alone, {path}:{split}"
        raise DataError(f"source {path}:{spec.split} would leave out {left[0]}; {hint}")
    return _open_dataset(spec, str(path))


def _folder_name(path: Path) -> str:
    return path.name or path.resolve().name


def _open_dataset(spec: SourceSpec, path: str) -> Source:
    import datasets

    try:
        found = datasets.load_dataset(path, spec.subset, split=spec.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = " ".join(f"{error} {error.__cause__ or ''}".split())
        if "Config name is missing" in cause:
            names = ", ".join(datasets.get_dataset_config_names(path))
            hint = "name one, in YAML as subset: NAME"
            raise ConfigError(f"source {path} has the subsets {names}; {hint}") from None
        near = near_path(Path(path))
        where = "" if Path(path).is_dir() else f"is no file here{f' ({near})' if near else ''} and "
        raise DataError(f"source {path} {where}cannot be loaded as a dataset: {cause}") from None
    return DatasetSource(spec, Path(path).name, _one_split(spec, found))


def _one_split(spec: SourceSpec, found: Any) -> Any:
    import datasets

    if not isinstance(found, datasets.DatasetDict):
        require(
            spec.split is None or found.split is not None,
            f"source {spec.path}: split has no effect on a single saved dataset; leave it out",
        )
        return found
    if spec.split is None and len(found) > 1:
        raise ConfigError(f"source {spec.path} has the splits {', '.join(found)}; name one as {spec.path}:SPLIT")
    split = spec.split or next(iter(found))
    if split not in found:
        raise ConfigError(f"source {spec.path} has no split {split!r}; {did_you_mean(split, found)}")
    return found[split]
