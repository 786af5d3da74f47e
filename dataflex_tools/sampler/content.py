"""What a plan knows of its corpus, and whether a data set is that corpus: by content, not by length alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from dataflex_tools.artifact.ids import as_keys
from dataflex_tools.artifact.plan import LoadedPlan
from dataflex_tools.core.errors import ArtifactError, DataError
from dataflex_tools.data.records import COLUMNS, detect_form, preview, renamed, sample_id, to_conversation

# N rows of the plan, R rows looked at

SAMPLE_ID = "sample_id"
_INPUT_IDS = "input_ids"


@dataclass(frozen=True, eq=False)
class PlanContent:
    """Ids and lengths of a plan's rows. `sources`: how its records were read, (form, columns, tags) of each source."""

    folder: str
    ids_N16: np.ndarray
    num_tokens_N: np.ndarray
    sources: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]]

    @classmethod
    def of(cls, plan: LoadedPlan) -> "PlanContent":
        """What the plan on disk says."""
        specs = plan.manifest.get("config", {}).get("data") or []
        infos = plan.manifest["corpus"].get("sources") or []
        found = []
        for spec, info in zip(specs, infos, strict=False):
            source = (info["form"], spec.get("columns") or {}, spec.get("tags") or {})
            found += [source] if source not in found else []
        return cls(str(plan.folder), plan.ids_N16, plan.num_tokens_N, found)

    def check(self, dataset: Any, rows: np.ndarray | None = None) -> None:
        """Raise ArtifactError unless `dataset` has as many rows as the plan and row i of it is row i of the plan.

        `rows`: those to look at; all if not given. Compared are a column `sample_id`, else the records themselves, else the
        lengths of `input_ids`. Raises DataError for a record that has no content to compare.
        """
        total = len(self.ids_N16)
        if isinstance(dataset, datasets.Dataset):
            dataset = dataset.with_format(None)  # as records, whatever the trainer reads them as
        if len(dataset) != total:
            raise ArtifactError(
                f"{self.folder} was made for {total:,} rows, the data set has {len(dataset):,}: give the data it was made "
                "for, in its order, without the rows it left out"
            )
        row_R = np.arange(total) if rows is None else np.unique(rows)
        first = dataset[int(row_R[0])]
        if not isinstance(first, Mapping):
            raise DataError(f"a row of the data set is {type(first).__name__}, wanted a mapping of columns to values")
        if SAMPLE_ID in first:
            ids = b"".join(bytes(record[SAMPLE_ID]) for record in _records(dataset, row_R))
        elif self._form_of(first) is None and _INPUT_IDS in first:
            self._check_lengths(dataset, row_R)
            return
        else:
            ids = b"".join(self._sample_id(row, record) for row, record in _numbered(dataset, row_R))
        self._compare(np.frombuffer(ids, dtype=np.uint8).reshape(-1, 16), row_R, dataset)

    def _compare(self, ids_R16: np.ndarray, row_R: np.ndarray, dataset: Any) -> None:
        differs_R = (ids_R16 != self.ids_N16[row_R]).any(axis=1)
        if not differs_R.any():
            return
        row = int(row_R[differs_R][0])
        known = np.isin(as_keys(ids_R16[differs_R]), as_keys(self.ids_N16)).all()
        reason = "they are other rows of the plan: do not shuffle it" if known else "give the data the plan was made for"
        source = self._form_of(dataset[row])
        text = preview(to_conversation(dataset[row], source[0], columns=source[1], tags=source[2])) if source else ""
        shown = f", {text[:60]!r}" if text else ""
        raise ArtifactError(
            f"{int(differs_R.sum()):,} of the {len(row_R):,} rows looked at are not those of {self.folder} (first: row "
            f"{row}{shown}); {reason}"
        )

    def _check_lengths(self, dataset: Any, row_R: np.ndarray) -> None:
        """Tokens say which row it is only by their number, if they were made as the plan's were."""
        length_R = np.array([len(record[_INPUT_IDS]) for record in _records(dataset, row_R)])
        if np.array_equal(length_R, self.num_tokens_N[row_R]):
            return
        row = int(row_R[length_R != self.num_tokens_N[row_R]][0])
        raise ArtifactError(
            f"the data set holds tokens, not those of {self.folder} (row {row} has {length_R[row_R == row][0]}, in the plan "
            f"{self.num_tokens_N[row]}), so its rows cannot be told; keep the columns of the text beside the tokens, or add "
            "those of plan.scores()['sample_id'] before you tokenise or shuffle"
        )

    def _form_of(self, record: Mapping[str, Any]) -> tuple[str, Mapping[str, str], Mapping[str, str]] | None:
        """How a record is read: as one of the plan's sources, else by its columns; None if it has no text."""
        for form, columns, tags in self.sources:
            names = renamed(record, columns)
            if all(names.get(name) is not None for name in COLUMNS[form][0]):
                return form, columns, tags
        try:
            return detect_form(record), {}, {}
        except DataError:
            return None

    def _sample_id(self, row: int, record: Mapping[str, Any]) -> bytes:
        source = self._form_of(record)
        if source is None:
            detect_form(record)  # says which columns there are
            raise AssertionError("a record that fits a form has one")
        try:
            return sample_id(to_conversation(record, source[0], columns=source[1], tags=source[2]))
        except DataError as error:
            raise DataError(f"row {row} of the data set: {error}") from None


def _records(dataset: Any, row_R: np.ndarray) -> Iterator[Any]:
    if isinstance(dataset, datasets.Dataset):
        return iter(dataset.select(row_R))
    return (dataset[row] for row in row_R.tolist())


def _numbered(dataset: Any, row_R: np.ndarray) -> Iterator[tuple[int, Any]]:
    return zip(row_R.tolist(), _records(dataset, row_R), strict=True)
