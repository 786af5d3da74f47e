"""A mixture's weights at one step, and where each domain's data lies: what an export has to say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataflex_tools.artifact.manifest import facet_of, read_manifest
from dataflex_tools.artifact.mixture import LoadedMixture, counts_of, load_mixture
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ArtifactError, ConfigError, did_you_mean
from dataflex_tools.core.printable import printable

# K domains with a weight above 0


@dataclass(frozen=True)
class Wanted:
    """Which weights to take and how.

    `step`: those that hold at this optimizer step, by default those after the last change. `sources`: `domain=path` texts,
    where a trainer finds a domain. `draws`: whole "documents", which differ in length, or "blocks" of one length; None is
    what the trainer is known to draw.
    """

    step: int | None = None
    sources: tuple[str, ...] = ()
    draws: Literal["blocks", "documents"] | None = None

    def __post_init__(self) -> None:
        require(self.step is None or self.step >= 0, f"export: --step is {self.step}, wanted an optimizer step of 0 or more")
        require(
            self.draws in (None, "blocks", "documents"), f"export: --draws is {self.draws!r}, wanted blocks or documents"
        )

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

    `is_given`: the user named the path. `form` and `settings`: how it was read, as recorded.
    """

    path: str
    name: str
    share: float = 1.0
    is_given: bool = False
    form: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proportions:
    """K domains, weights (K,) that sum to 1, and the places of each domain, none where they are not known.

    `step`: from which optimizer step on the weights hold. `num_tokens` and `num_documents`: of the documents of each domain
    that are trained on, if known. `is_packed`: whether it was decided on packed text.
    """

    names: tuple[str, ...]
    weight_K: np.ndarray
    places: Mapping[str, tuple[Place, ...]]
    step: int
    origin: Mapping[str, str]
    num_tokens: Any = None
    num_documents: Any = None
    is_packed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        """Comment lines for the top of a file."""
        lines = (f"flextools mixture {self.origin['method']} (digest {self.origin['digest'][:16]})", *self.notes)
        return "".join(f"# {printable(' '.join(line.split()))}\n" for line in lines)

    def noted(self, *notes: str) -> "Proportions":
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))

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
                "export: the mean length of a domain's documents, by which draws of documents are weighed, is not in the "
                "artifact (stats.num_tokens, stats.num_documents); run `flextools score` again, or give --draws blocks if "
                "all examples of your data have one length"
            )
        mean_K = token_K / document_K
        shown = ", ".join(f"{name} {mean:,.1f}" for name, mean in zip(self.names, mean_K, strict=True))
        note = f"probabilities are of draws of whole documents, for these mean tokens of one: {shown}"
        probability_K = self.weight_K / mean_K
        return replace(self, weight_K=probability_K / probability_K.sum(), notes=(*self.notes, note))

    def per_block(self) -> "Proportions":
        """The same, with a line that says what it supposes."""
        note = "probabilities are of draws of one length in tokens (blocks), not of whole documents"
        several = [name for name in self.names if len(self.places[name]) > 1]
        parted = f"{', '.join(several)}: several sources share a domain's weight by their rows, not by their tokens"
        return self.noted(note, *([parted] if several else []))


def proportions_of(folder: Path, wanted: Wanted, copies: Mapping[str, str]) -> Proportions:
    """The weights of a mixture artifact; domains of weight 0 are left out, and the notes say so.

    `copies`: files of the text that a domain is trained on, by domain, if they are written.

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
    stats, config = manifest.get("stats") or {}, manifest.get("config") or {}
    pack = config.get("pack") or {}
    if pack.get("held_out"):
        notes.append(_held_out_note(manifest, names, is_left_out=bool(copies)))
    sources = _sources(manifest)
    return Proportions(
        names=names,
        weight_K=weight_K[weight_K > 0] / weight_K.sum(),
        places={name: _places(name, sources, given, copies) for name in names},
        step=begins,
        origin={key: str(manifest[key]) for key in ("method", "digest")},
        num_tokens=stats.get("document_tokens", stats.get("num_tokens")),
        num_documents=stats.get("num_documents"),
        is_packed=bool(pack),
        notes=tuple(notes),
    )


def _held_out_note(manifest: Mapping[str, Any], names: Sequence[str], *, is_left_out: bool) -> str:
    """What became of the documents that no training of ours sees."""
    share = manifest["config"]["pack"]["held_out"]
    if is_left_out:
        return f"the documents that pack.held_out ({share:g}) keeps back are left out of the copied text"
    domains, kept = (manifest.get("corpus") or {}).get("domains") or {}, (manifest["stats"].get("num_documents") or {})
    counts = [
        f"{name} {domains[name] - kept[name]:,} of {domains[name]:,}" for name in names if name in kept and name in domains
    ]
    which = f" ({', '.join(counts)})" if counts else ""
    return (
        f"the sources still have the documents that pack.held_out ({share:g}) keeps back{which}: a model trained on them "
        "must not be judged by that text; --copy writes the text without them"
    )


def _sources(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The corpus' sources, each with the `settings` it was read by, {} where they are not recorded."""
    sources = (manifest.get("corpus") or {}).get("sources") or []
    specs = (manifest.get("config") or {}).get("data") or []
    if len(specs) != len(sources):
        specs = [{}] * len(sources)
    return [{**source, "settings": spec} for source, spec in zip(sources, specs, strict=True)]


def _mixture(folder: Path) -> LoadedMixture:
    manifest = read_manifest(folder)
    if manifest.get("kind") == "plan" and facet_of(manifest) == "select":
        raise ArtifactError(
            f"{folder} is a selection (method {manifest['method']}), which has rows and no proportions; for `datasets` use "
            f"`dataset.select(dataflex_tools.load_artifact({str(folder)!r}).select(fraction=0.05))`, or train on it with "
            f"`flextools train --artifacts {folder}`"
        )
    return load_mixture(folder)


def _places(
    name: str, sources: Sequence[Mapping[str, Any]], given: Mapping[str, str], copies: Mapping[str, str]
) -> tuple[Place, ...]:
    """The path given, the copy, else the corpus' sources of the domain, which share its weight by their rows."""
    if name in given:
        return (Place(given[name], name, is_given=True),)
    if name in copies:
        return (Place(copies[name], name, form="text"),)
    own = [s for s in sources if s.get("domain") == name and not s["settings"].get("domain_column")]
    if total := sum(source.get("rows") or 0 for source in own):
        own = [source for source in own if source.get("rows")]
    names = [name] if len(own) == 1 else [f"{name} part {number}" for number in range(1, len(own) + 1)]
    return tuple(
        Place(
            source["path"], label, source["rows"] / total if total else 1 / len(own), form=source.get("form", ""),
            settings=source["settings"],
        )
        for label, source in zip(names, own, strict=True)
    )  # fmt: skip
