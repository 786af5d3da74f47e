"""What a user says about a source: where it is, which columns it has, and how to read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.data.records import COLUMNS, FORMS, FUNCTIONS, TAGS, UNREADABLE


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source of a corpus and how to read it.

    `path`: a file, a folder, a pattern of file names, a Hub id, or `dir/dataset_info.json:entry`.
    `columns` maps our column name to the name in the file; `leave_out` names those of our columns
    that are not used though the file has them; `tags` renames the keys and roles of turns, with
    LLaMA-Factory's names. `lines`: each line of a text file is a record, instead of the whole file.
    `skip_bad` leaves out rows that cannot be used and counts them, instead of stopping at the
    first.
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
    leave_out: Sequence[str] = ()
    lines: bool = False

    def __post_init__(self) -> None:
        require(bool(self.path), "a source has an empty path")
        self._check_text()
        require(self.domain != "", f"source {self.path}: the domain is empty")
        if self.form != "auto" and self.form not in FORMS:
            hint = did_you_mean(self.form, [*FORMS, "auto"])
            raise ConfigError(f"source {self.path}: form is {self.form!r}; {hint}")
        forms = FORMS if self.form == "auto" else (self.form,)
        known = {name for form in forms for names in COLUMNS[form] for name in names}
        checked = (
            ("columns", self.columns, known),
            ("tags", self.tags, set(TAGS)),
            ("leave_out", self.leave_out, known),
        )
        for kind, given, names in checked:
            for name in given:
                if name not in names:
                    hint = did_you_mean(name, names)
                    raise ConfigError(f"source {self.path}: {kind} has no name {name!r}; {hint}")
        for name in self.leave_out:
            require(
                name not in self.columns,
                f"source {self.path}: leave_out and columns both name {name!r}",
            )

    def _check_text(self) -> None:
        """Raise ConfigError for a text that manifests cannot hold: bytes that are not UTF-8."""
        settings = (
            self.path,
            self.domain,
            self.subset,
            self.split,
            self.domain_column,
            self.subtask_column,
        )
        texts = [text for text in settings if text is not None]
        for text in [*texts, *self.columns.values(), *self.tags.values()]:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                found = f"{text!r} is not text in UTF-8"
                raise ConfigError(f"source {self.path!r}: {found}; give it another name") from None

    @property
    def asked(self) -> frozenset[str]:
        """The columns of the file, by its names, that can decide what becomes of a row."""
        forms = FORMS if self.form == "auto" else (self.form,)
        ours = {name for form in forms for names in COLUMNS[form] for name in names}
        ours |= {FUNCTIONS, *UNREADABLE}
        theirs = {self.columns.get(name, name) for name in ours} - self.unused
        groups = {column for column in (self.domain_column, self.subtask_column) if column}
        return frozenset(theirs | groups | {column.partition(".")[0] for column in groups})

    @property
    def unused(self) -> frozenset[str]:
        """The columns of the file that `leave_out` takes away."""
        return frozenset(self.leave_out) - frozenset(self.columns.values())
