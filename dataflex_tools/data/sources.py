"""Where records come from: files, folders, saved datasets, Hub ids and LLaMA-Factory entries, all read as streams."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean, near_path
from dataflex_tools.core.fingerprint import digest, file_sha256
from dataflex_tools.data.dataset_info import entry_settings
from dataflex_tools.data.readers import READERS, Record
from dataflex_tools.data.records import COLUMNS, FORMS, TAGS

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WITH_SPLIT = re.compile(r"(?P<path>.+?):(?P<split>\w[\w.-]*(\[[^/]*\])?)")
OnBad = Callable[[int, str], None]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source of a corpus and how to read it.

    `path`: a file, a folder, a Hub id, or `dir/dataset_info.json:entry`. `columns` maps our column name to the name in
    the file; `tags` renames the keys and roles of turns, with LLaMA-Factory's names. `skip_bad` leaves out rows that
    cannot be used and counts them, instead of stopping at the first.
    """

    path: str
    domain: str | None = None
    form: str = "auto"
    subset: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    domain_column: str | None = None
    subtask_column: str | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        require(bool(self.path), "a source has an empty path")
        require(self.domain != "", f"source {self.path}: the domain is empty")
        if self.form != "auto" and self.form not in FORMS:
            raise ConfigError(f"source {self.path}: form is {self.form!r}; {did_you_mean(self.form, [*FORMS, 'auto'])}")
        forms = FORMS if self.form == "auto" else (self.form,)
        known = {name for form in forms for names in COLUMNS[form] for name in names}
        for kind, given, names in (("columns", self.columns, known), ("tags", self.tags, set(TAGS))):
            for name in given:
                if name not in names:
                    raise ConfigError(f"source {self.path}: {kind} has no name {name!r}; {did_you_mean(name, names)}")


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


@dataclass(frozen=True)
class FileSource:
    """Files of one format, read one after the other."""

    spec: SourceSpec
    name: str
    files: tuple[Path, ...]

    @property
    def reader(self) -> str:
        """The ending that all files have."""
        return self.files[0].suffix.lower()

    def sha256(self) -> str:
        """SHA-256 of the file, or of the names and SHA-256 of the files of a folder."""
        if len(self.files) == 1:
            return file_sha256(self.files[0])
        return digest([[file.name, file_sha256(file)] for file in self.files])

    def records(self, on_bad: OnBad | None = None) -> Iterator[Record]:
        """(line or row number from 1, raw record); rows of a folder are numbered through."""
        first = 0
        for file in self.files:
            if file.stat().st_size == 0:
                raise DataError(f"{file} is empty (0 bytes); give a file with at least one record")
            number = 0
            for number, record in READERS[file.suffix.lower()](file, self._bad(file, first, on_bad)):
                yield first + number, record
            first += number

    def _bad(self, file: Path, first: int, on_bad: OnBad | None) -> OnBad:
        def told(number: int, message: str) -> None:
            if not self.spec.skip_bad:
                raise DataError(f"{file} row {number} {message}; repair it, or leave such rows out with --skip-bad")
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
        """(row number from 1, raw record)."""
        number = 0
        for columns in self.dataset.with_format(None).iter(batch_size=1024):
            for values in zip(*columns.values(), strict=True):
                number += 1
                yield number, dict(zip(columns, values, strict=True))


def parse_source(text: str) -> SourceSpec:
    """A spec from its short form: `path`, `domain=path`, `org/name:split`, `dir/dataset_info.json:entry`."""
    domain: str | None = None
    if "=" in text and not Path(text).exists():
        before, _, after = text.partition("=")
        if "/" not in before:
            domain, text = before, after
            require(bool(domain) and bool(text), f"source {before}={after} is not of the form domain=path")
    found = _WITH_SPLIT.fullmatch(text)
    if found is None or Path(text).exists() or found["path"].endswith(".json"):
        return SourceSpec(path=text, domain=domain)
    return SourceSpec(path=found["path"], domain=domain, split=found["split"])


def read_records(spec: SourceSpec, *, on_bad: OnBad | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number from 1, raw record) of a source, as a stream.

    With `spec.skip_bad`, rows that cannot be read are told to `on_bad` and left out. Raises DataError otherwise.
    """
    return open_source(spec).records(on_bad)


def is_hub_id(path: str) -> bool:
    """Whether a path has the form of a Hub id, org/name, and not that of a file."""
    return _HUB_ID.fullmatch(path) is not None and Path(path).suffix.lower() not in READERS


def check_exists(spec: SourceSpec) -> None:
    """Raise DataError for a path that is nothing here and cannot be a Hub id; costs no more than a look."""
    path, info = Path(spec.path).expanduser(), Path(spec.path.rpartition(":")[0]).expanduser()
    if not (path.exists() or is_hub_id(spec.path) or (info.suffix == ".json" and info.exists())):
        hint = near_path(path) or "wanted a file, a folder, or a Hub id of the form org/name"
        raise DataError(f"source {spec.path} does not exist; {hint}")


def open_source(spec: SourceSpec) -> Source:
    """The source behind a spec. Raises DataError if nothing is there, ConfigError if a setting has no effect on it."""
    path = Path(spec.path).expanduser()
    info, colon, entry = spec.path.rpartition(":")
    if colon and not path.exists() and info.endswith(".json"):
        return _open_entry(spec, Path(info).expanduser(), entry)
    if path.is_file():
        return _open_file(spec, path)
    if path.is_dir():
        return _open_folder(spec, path)
    if is_hub_id(spec.path):
        return _open_dataset(spec, spec.path)
    check_exists(spec)
    raise DataError(f"source {path} is neither a file nor a folder")


def _open_entry(spec: SourceSpec, info: Path, entry: str) -> Source:
    given = {name: getattr(spec, name) for name in ("subset", "split") if getattr(spec, name) is not None}
    given |= {"form": spec.form} if spec.form != "auto" else {}
    settings = entry_settings(info, entry) | given
    settings["columns"] = {**settings["columns"], **spec.columns}
    settings["tags"] = {**settings["tags"], **spec.tags}
    return open_source(replace(spec, domain=spec.domain or entry, **settings))


def _open_file(spec: SourceSpec, path: Path) -> Source:
    if path.name == "dataset_info.json":
        raise ConfigError(f"source {path} lists datasets; name one of them as {path}:ENTRY")
    if path.suffix.lower() not in READERS:
        raise DataError(f"source {path} ends in {path.suffix!r}; files that can be read end in {', '.join(READERS)}")
    for name in ("split", "subset"):
        require(getattr(spec, name) is None, f"source {path}: {name} has no effect on a file; leave it out")
    return FileSource(spec, path.stem, (path,))


def _open_folder(spec: SourceSpec, path: Path) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        import datasets

        require(spec.subset is None, f"source {path}: subset has no effect on a saved dataset; leave it out")
        try:
            found = datasets.load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise DataError(f"source {path} cannot be loaded as a saved dataset: {error}") from None
        return DatasetSource(spec, path.name, _one_split(spec, found))
    shown = [file for file in path.iterdir() if not file.name.startswith(".")]
    files = sorted(file for file in shown if file.suffix.lower() in READERS)
    files = [file for file in files if file.suffix.lower() != ".txt"] or files  # beside data, text is a note about it
    endings = sorted({file.suffix.lower() for file in files})
    if not files or spec.split is not None or spec.subset is not None:
        return _open_dataset(spec, str(path))
    if endings == [".txt"] and any(file.is_dir() for file in shown):
        raise DataError(f"source {path} holds .txt files and folders; name the folder that holds the data, and no other")
    if len(endings) > 1:
        raise DataError(f"source {path} holds files of several kinds ({', '.join(endings)}); name one file or kind")
    return FileSource(spec, path.name, tuple(files))


def _open_dataset(spec: SourceSpec, path: str) -> Source:
    import datasets

    if Path(path).is_dir() and not any(Path(path).iterdir()):
        raise DataError(f"source {path} is an empty folder; give one with {', '.join(READERS)} files")
    try:
        found = datasets.load_dataset(path, spec.subset, split=spec.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"source {path} is no file here and cannot be loaded as a dataset: {cause}") from None
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
