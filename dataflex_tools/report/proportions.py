"""A mixture's weights at one step, and where each domain's data lies: what an export has to say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataflex_tools.artifact.manifest import facet_of, read_manifest
from dataflex_tools.artifact.mixture import LoadedMixture, counts_of, load_mixture
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ArtifactError, ConfigError, did_you_mean

# K domains with a weight above 0


@dataclass(frozen=True)
class Wanted:
    """Which weights to take and how.

    `step`: those that hold at this optimizer step, by default those after the last change. `sources`: `domain=path` texts,
    where a trainer finds a domain. `draws`: "documents" for a trainer that draws whole documents, which differ in length.
    """

    step: int | None = None
    sources: tuple[str, ...] = ()
    draws: Literal["blocks", "documents"] = "blocks"

    def __post_init__(self) -> None:
        require(self.step is None or self.step >= 0, f"export: --step is {self.step}, wanted an optimizer step of 0 or more")
        require(self.draws in ("blocks", "documents"), f"export: --draws is {self.draws!r}, wanted blocks or documents")

    @property
    def paths(self) -> dict[str, str]:
        """The path given for each domain. Raises ConfigError for a malformed text or a domain named twice."""
        paths: dict[str, str] = {}
        for text in self.sources:
            name, equals, path = text.partition("=")
            require(bool(name and equals and path), f"export: --source {text!r} is not of the form DOMAIN=PATH")
            require(name not in paths, f"export: --source names domain {name!r} twice; give one path or pattern")
            paths[name] = path
        return paths


@dataclass(frozen=True)
class Place:
    """Where data of a domain lies, its part of the domain's weight, in (0, 1], and a name for it.

    `is_given`: the user named the path.
    """

    path: str
    name: str
    share: float = 1.0
    is_given: bool = False


@dataclass(frozen=True)
class Proportions:
    """K domains, weights (K,) that sum to 1, and the places of each domain, none where they are not known.

    `step`: from which optimizer step on the weights hold. `num_tokens` and `num_documents`: of each domain, if known.
    """

    names: tuple[str, ...]
    weight_K: np.ndarray
    places: Mapping[str, tuple[Place, ...]]
    step: int
    origin: Mapping[str, str]
    num_tokens: Any = None
    num_documents: Any = None
    notes: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        """Comment lines for the top of a file."""
        lines = (f"flextools mixture {self.origin['method']} (digest {self.origin['digest'][:16]})", *self.notes)
        return "".join(f"# {' '.join(line.split())}\n" for line in lines)

    def weighted(self, wanted: str) -> list[tuple[str, Place, float]]:
        """Each place with its weight; `wanted` says in the error what the trainer reads.

        Raises ConfigError for a domain without a place.
        """
        found = []
        for name, weight in zip(self.names, self.weight_K.tolist(), strict=True):
            if not self.places[name]:
                raise ConfigError(
                    f"export: domain {name!r} has no source of its own in the corpus, wanted {wanted}; name its data with "
                    f"--source '{name}=PATH'"
                )
            found += [(name, place, weight * place.share) for place in self.places[name]]
        return found

    def per_document(self) -> "Proportions":
        """The probabilities of a draw of whole documents: weights divided by a domain's mean tokens per document.

        Raises ConfigError if the artifact does not say them.
        """
        token_K, document_K = (counts_of(counts, self.names) for counts in (self.num_tokens, self.num_documents))
        if token_K is None or document_K is None or not (token_K > 0).all() or not (document_K > 0).all():
            raise ConfigError(
                "export: --draws documents needs the tokens and documents of each domain, which the artifact lacks "
                "(stats.num_tokens, stats.num_documents); leave it out, or run `flextools score` again"
            )
        mean_K = token_K / document_K
        shown = ", ".join(f"{name} {mean:,.1f}" for name, mean in zip(self.names, mean_K, strict=True))
        note = f"probabilities are of draws of whole documents, for these mean tokens of one: {shown}"
        probability_K = self.weight_K / mean_K
        return replace(self, weight_K=probability_K / probability_K.sum(), notes=(*self.notes, note))

    def per_block(self) -> "Proportions":
        """The same, with a line that says what it supposes."""
        note = "probabilities are of draws of one length in tokens (blocks); for whole documents: --draws documents"
        return replace(self, notes=(*self.notes, note))


def proportions_of(folder: Path, wanted: Wanted) -> Proportions:
    """The weights of a mixture artifact; domains of weight 0 are left out, and the notes say so.

    Raises ArtifactError if `folder` holds no mixture, ConfigError for a source of an unknown domain.
    """
    loaded, given = _mixture(folder), wanted.paths
    mixture, manifest = loaded.mixture, loaded.manifest
    for name in given:
        if name not in mixture.names:
            raise ConfigError(f"export: --source names {name!r}, no domain of {folder}; {did_you_mean(name, mixture.names)}")
    last = len(mixture.step_S) - 1
    entry = last if wanted.step is None else int(np.searchsorted(mixture.step_S, wanted.step, side="right")) - 1
    begins, weight_K, notes = int(mixture.step_S[entry]), mixture.weight_SK[entry], []
    if last > 0:
        notes.append(
            f"the mixture is a schedule of {last + 1:,} entries, and this format knows constants only: these are the "
            f"weights from optimizer step {begins:,} on; --step N takes those of another step"
        )
    if dropped := [name for name, weight in zip(mixture.names, weight_K, strict=True) if weight == 0]:
        notes.append(f"left out for their weight of 0: {', '.join(dropped)}")
    names = tuple(name for name in mixture.names if name not in dropped)
    corpus = manifest.get("corpus") or {}
    return Proportions(
        names=names,
        weight_K=weight_K[weight_K > 0] / weight_K.sum(),
        places={name: _places(name, corpus.get("sources") or [], given) for name in names},
        step=begins,
        origin={key: str(manifest[key]) for key in ("method", "digest")},
        num_tokens=(manifest.get("stats") or {}).get("num_tokens"),
        num_documents=(loaded.manifest.get("stats") or {}).get("num_documents"),
        notes=tuple(notes),
    )


def _mixture(folder: Path) -> LoadedMixture:
    manifest = read_manifest(folder)
    if manifest.get("kind") == "plan" and facet_of(manifest) == "select":
        raise ArtifactError(
            f"{folder} is a selection (method {manifest['method']}), which has rows and no proportions; for `datasets` use "
            f"`dataset.select(dataflex_tools.load_artifact({str(folder)!r}).select(fraction=0.05))`, or train on it with "
            f"`flextools train --artifacts {folder}`"
        )
    return load_mixture(folder)


def _places(name: str, sources: Sequence[Mapping[str, Any]], given: Mapping[str, str]) -> tuple[Place, ...]:
    """The path given, else the corpus' sources of the domain, which share its weight by their rows."""
    if name in given:
        return (Place(given[name], name, is_given=True),)
    own = [source for source in sources if source.get("domain") == name]
    if total := sum(source.get("rows") or 0 for source in own):
        own = [source for source in own if source.get("rows")]
    names = [name] if len(own) == 1 else [f"{name} part {number}" for number in range(1, len(own) + 1)]
    return tuple(
        Place(source["path"], label, source["rows"] / total if total else 1 / len(own))
        for label, source in zip(names, own, strict=True)
    )
