"""The types of a manifest's fields, and JSON that is read with distrust.

What is declared here is what some part of flextools reads; other fields may be anything, so that a manifest of a later
version with more of them still opens.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.types import FailFast

from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest

_MANIFEST_BYTES = 16 * 2**20  # 20,000 parts of a signal
_DEPTH = 64  # of mappings and lists; ours have 10
_MOST = 2**63 - 1  # what Parquet and numpy count to


def is_inside(path: str) -> bool:
    """Whether a manifest path names something inside the artifact's folder."""
    parts = PurePosixPath(path).parts
    is_plain = bool(parts) and not path.startswith("/") and "\\" not in path and "\0" not in path
    return is_plain and ".." not in parts and ":" not in parts[0]


def _inside(path: str) -> str:
    if not is_inside(path):
        raise ValueError("leads outside the artifact")
    return path


def _counts(value: Any) -> Any:
    if not isinstance(value, dict) or not all(type(n) is int and 0 <= n <= _MOST for n in value.values()):
        raise ValueError("wanted a mapping of names to whole numbers of 0 or more")
    return value


def _names(value: Any) -> Any:
    """Names, or names with how many rows each has."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    return _counts(value)


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=0, le=_MOST)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Inside = Annotated[str, AfterValidator(_inside)]
Counts = Annotated[dict[str, int], BeforeValidator(_counts)]


class FileEntry(_Fields):
    """One file of an artifact."""

    path: Inside
    bytes: Count
    sha256: Sha256
    rows: Count | None


class _Parent(_Fields):
    path: str
    digest: str


class _Model(_Fields):
    name: str
    sha256: str


class _Tokenizer(_Fields):
    sha256: str | None = None
    template: str | None = None
    render: str | None = None


class _ReadBy(_Tokenizer):
    """What a plan or run says of the tokenizer: it is compared with the one at hand."""

    sha256: str
    template: str


class _ScoreConfig(_Fields):
    stage: Literal["score"] = "score"
    model: dict[str, Any] = Field(default_factory=dict)
    drop_overlap: bool = False


class _TrainConfig(_Fields):
    stage: Literal["train"]
    model: dict[str, Any]
    artifacts: Annotated[list[str], Field(min_length=1)]


class _Source(_Fields):
    path: str
    domain: str
    rows: Count | None = None


class _Corpus(_Fields):
    fingerprint: str
    rows: Count
    domains: Annotated[Any, BeforeValidator(_names)] = Field(default_factory=list)
    sources: Annotated[list[_Source], FailFast()] = Field(default_factory=list)
    tokens: Count | None = None


class _Checkpoint(_Fields):
    path: Inside
    mean_learning_rate: Annotated[float, Field(ge=0)]


class _Stats(_Fields):
    checkpoints: Annotated[list[_Checkpoint], FailFast()] = Field(default_factory=list)
    num_tokens: Counts | None = None
    num_documents: Counts | None = None


class _Manifest(_Fields):
    kind: Literal["signal", "plan", "model", "run"]
    digest: Sha256
    files: Annotated[list[FileEntry], FailFast()]
    created: str | None = None
    producer: dict[str, Any] = Field(default_factory=dict)
    licence: str | None = None
    method: str | None = None
    address: str | None = None
    settings: dict[str, Any] | None = None
    spec: dict[str, Any] = Field(default_factory=dict)
    corpus: _Corpus | None = None
    model: _Model | None = None
    tokenizer: _Tokenizer | None = None
    parents: Annotated[list[_Parent], FailFast()] = Field(default_factory=list)
    stats: _Stats = Field(default_factory=_Stats)


class _Signal(_Manifest):
    signal: str
    spec_digest: str


class _Plan(_Manifest):
    method: str
    corpus: _Corpus
    model: _Model | None
    tokenizer: _ReadBy | None
    settings: dict[str, Any]
    config: _ScoreConfig
    parents: Annotated[list[_Parent], FailFast()]
    stats: _Stats


class _Schedule(_Fields):
    entries: Count
    last_step: Count


class _MixtureStats(_Stats):
    weights: dict[str, float]
    entropy: float
    entropy_share: float | None
    schedule: _Schedule
    warnings: list[str]
    facts: dict[str, Any] = Field(default_factory=dict)


class _Mixture(_Plan):
    tokenizer: _ReadBy
    stats: _MixtureStats


class _FitConfig(_Fields):
    stage: Literal["fit"]


class _Table(_Fields):
    path: str
    sha256: Sha256


class _Tables(_Fields):
    tables: dict[str, _Table]
    runs: Count


class _FittedMixture(_Mixture):
    """Of a table of runs: there is no corpus, no model, no tokenizer."""

    corpus: _Tables  # type: ignore[assignment]
    tokenizer: None  # type: ignore[assignment]
    config: _FitConfig  # type: ignore[assignment]


class _RunStats(_Stats):
    selected_rows: Count
    selected_tokens: Count
    steps: Count


class _Run(_Manifest):
    corpus: _Corpus
    model: _Model
    tokenizer: _ReadBy
    config: _TrainConfig
    parents: Annotated[list[_Parent], FailFast()]
    stats: _RunStats


def check_fields(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ArtifactError, with the field and what it holds, unless each field that is read has its type."""
    if fault := field_fault(manifest):
        raise ArtifactError(f"{path}: {fault}; it was not written by flextools, or changed: do not use it")


def field_fault(manifest: Mapping[str, Any]) -> str:
    """What is wrong with the first field that has another type than its readers expect, "" if none has."""
    kind = manifest.get("kind")
    kinds: dict[str, type[_Manifest]] = {"signal": _Signal, "plan": _Plan, "run": _Run}
    own = kinds.get(str(kind), _Manifest)
    if kind == "plan" and manifest.get("facet") == "mix":
        config = manifest.get("config")
        is_fitted = isinstance(config, Mapping) and config.get("stage") == "fit"
        own = _FittedMixture if is_fitted else _Mixture
    try:
        own.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            return f"{place} is missing"
        wanted = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        return f"{place} is {short(first['input'])}: {wanted}"
    if kind == "signal" and manifest["spec_digest"] != digest(manifest.get("spec", {})):
        return "spec_digest is not that of its spec"
    return ""


def read_json(path: Path) -> Any:
    """The JSON value in a file, for files that others may have written.

    Raises ArtifactError for what is no JSON, for NaN and infinity, keys that stand twice, text that is no Unicode, and for
    sizes and depths that no file of flextools has.
    """
    try:
        size = path.stat().st_size
        if size > _MANIFEST_BYTES:
            raise ValueError(f"{size:,} bytes, at most {_MANIFEST_BYTES:,} are read")
        content = json.loads(path.read_bytes(), parse_constant=_refused, parse_float=_finite, object_pairs_hook=_once)
        _check_depth(content)
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ArtifactError(f"{path} cannot be read (half of a surrogate pair is no text); {_AGAIN}") from None
    except (ValueError, OSError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else short(error, 200, quoted=False)
        raise ArtifactError(f"{path} cannot be read ({why}); {_AGAIN}") from None
    return content


_AGAIN = "run `flextools score` again"


def short(value: Any, limit: int = 60, *, quoted: bool = True) -> str:
    """The beginning of a value, for messages; a huge one is never spelled out whole."""
    if isinstance(value, str):
        value = value[: limit + 1]
    elif isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value):,}"
    elif type(value) is int and abs(value) > _MOST:
        return "a huge number"
    text = repr(value) if quoted else str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is more than a float holds")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    seen: set[str] = set()
    for key, _ in pairs if len(content) < len(pairs) else ():
        if key in seen:
            raise ValueError(f"the key {key[:40]!r} stands twice")
        seen.add(key)
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(_DEPTH):
        level = [item for value in level for item in _inner(value) if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {_DEPTH} deep")


def _inner(value: Any) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value)
