"""How another trainer loads what a domain was read from: the files behind a source, and its columns."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataflex_tools.core.config import from_mapping
from dataflex_tools.core.errors import FlextoolsError
from dataflex_tools.data.records import COLUMNS
from dataflex_tools.data.sources import FileSource, SourceSpec, open_source

# a text file is one document, as it is when it is scored
_BUILDERS: dict[str, dict[str, str]] = {
    ".json": {"path": "json"},
    ".jsonl": {"path": "json"},
    ".ndjson": {"path": "json"},
    ".csv": {"path": "csv"},
    ".tsv": {"path": "csv", "sep": "\t"},
    ".parquet": {"path": "parquet"},
    ".arrow": {"path": "arrow"},
    ".txt": {"path": "text", "sample_by": "document"},
}
_PACKED = (".gz", ".zst", ".bz2", ".xz")
# FILEEXT2TYPE of LLaMA-Factory; its text files are read line by line, which are other documents
_LLAMAFACTORY_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
# our name of a column to LLaMA-Factory's, by form
_ALPACA = {"instruction": "prompt", "input": "query", "output": "response", "system": "system", "history": "history"}
_COLUMNS = {
    "text": {"text": "prompt"},
    "prompt_completion": {"prompt": "prompt", "completion": "response"},
    "alpaca": _ALPACA,
    "sharegpt": {"conversations": "messages", "system": "system", "tools": "tools"},
    "messages": {"messages": "messages", "tools": "tools"},
}
_OF_MESSAGES = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"
}  # fmt: skip


@dataclass(frozen=True)
class Loadable:
    """What is known of a source: absolute `files` of one kind, or a data set of the Hub; its form and its columns.

    `columns`: our name to the file's; of data that is on this machine those that its first record has.
    """

    form: str
    files: tuple[str, ...] = ()
    hub: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def datasets(self) -> dict[str, Any]:
        """Arguments of `datasets.load_dataset`, empty if there is no way to say them."""
        if self.hub:
            return {"split": "train", **self.hub}
        endings = {_ending(str(Path(file).with_suffix(""))) if _ending(file) in _PACKED else _ending(file)
                   for file in self.files}  # fmt: skip
        builder = _BUILDERS.get(endings.pop(), {}) if len(endings) == 1 else {}
        return {**builder, "data_files": list(self.files), "split": "train"} if builder else {}

    @property
    def text_column(self) -> str | None:
        """The column of the text of documents, None for other forms."""
        return self.columns.get("text", "text") if self.form == "text" else None

    @property
    def llamafactory(self) -> dict[str, Any]:
        """The entry of a `dataset_info.json`, empty if there is no way to say it."""
        where, names = self._llamafactory_place(), _COLUMNS.get(self.form, {})
        columns = {names[ours]: theirs for ours, theirs in self.columns.items() if ours in names}
        if not where or not columns:
            return {}
        if self.form not in ("sharegpt", "messages"):
            return {**where, "columns": columns}
        tags = {**(_OF_MESSAGES if self.form == "messages" else {}), **self.tags}
        return {**where, "formatting": "sharegpt", "columns": columns, **({"tags": tags} if tags else {})}

    def _llamafactory_place(self) -> dict[str, str]:
        if self.hub:
            renamed = {"path": "hf_hub_url", "name": "subset", "split": "split"}
            return {renamed[key]: value for key, value in self.hub.items()}
        if not self.files or any(_ending(file) not in _LLAMAFACTORY_ENDINGS for file in self.files):
            return {}
        if len(self.files) == 1:
            return {"file_name": self.files[0]}
        folder = Path(self.files[0]).parent  # of a folder it reads every file
        return {"file_name": str(folder)} if sorted(map(str, folder.iterdir())) == sorted(self.files) else {}


def loadable(path: str, form: str, settings: Mapping[str, Any]) -> Loadable:
    """What can be said of a source: its path, the form it was read in, and its settings as recorded, {} if unknown."""
    spec = from_mapping(SourceSpec, {"path": path, **settings}, where="source")
    names = COLUMNS[form][0] if form in COLUMNS else ()
    columns = {name: spec.columns.get(name, name) for name in names}
    known = Loadable(form, columns=columns, tags=spec.tags)
    here, info = Path(path).expanduser(), Path(path.rpartition(":")[0]).expanduser()
    if here.exists() or (info.suffix == ".json" and info.exists()):
        return _looked_at(spec, known)
    if "://" in path:
        return replace(known, files=(path,))
    if _ending(path):
        return replace(known, files=(os.path.abspath(here),))
    hub = {"path": path, "name": spec.subset, "split": spec.split}
    return replace(known, hub={key: value for key, value in hub.items() if value} if settings else {})


def _looked_at(spec: SourceSpec, known: Loadable) -> Loadable:
    """With the files and columns that are there."""
    try:
        source = open_source(spec)
        _, first = next(iter(source.records()))
    except (FlextoolsError, StopIteration):  # something else lies there now
        return known
    files = tuple(os.path.abspath(file) for file in source.files) if isinstance(source, FileSource) else ()
    required, more = COLUMNS.get(known.form, ((), ()))
    columns = {name: source.spec.columns.get(name, name) for name in (*required, *more)}
    return replace(
        known, files=files, columns={ours: name for ours, name in columns.items() if name in first}, tags=source.spec.tags
    )


def _ending(path: str) -> str:
    return Path(path).suffix.lower()
