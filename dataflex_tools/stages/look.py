"""The text of a plan's rows, read from the corpus that the artifact names."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.artifact.plan import check_corpus, load_plan
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.errors import ArtifactError, ConfigError, FlextoolsError
from dataflex_tools.data.corpus import Corpus, open_corpus, overlap
from dataflex_tools.data.packed import is_held_out
from dataflex_tools.data.sources import parse_source
from dataflex_tools.stages.config import ScoreConfig, restored

logger = logging.getLogger("flextools")


def texts_of(artifact: Path, sources: Sequence[str] = ()) -> Callable[[int], str] | None:
    """Row -> readable text of the corpus in `sources`, by default of what the artifact names.

    None (said in a log line) where the artifact has no rows, or the corpus is not on this machine. Raises ArtifactError if
    `sources` are another corpus than the artifact was made for.
    """
    manifest = read_manifest(artifact)
    if manifest["kind"] != "plan":
        return None
    try:
        config: ScoreConfig = restored(artifact, manifest["config"])
        data = tuple(map(parse_source, sources)) or config.data
        corpus = open_corpus(data, cache_folder(artifact.parent), group="domain")
        if config.drop_overlap:
            target = open_corpus(config.target, cache_folder(artifact.parent), group="subtask")
            corpus = corpus.without(overlap(corpus, target))
    except FlextoolsError as error:  # a method of another installation, or data that is not on this machine
        logger.info("rows are shown without text: %s", error)
        return None
    if corpus.fingerprint != manifest["corpus"]["fingerprint"]:
        if sources:
            check_corpus(load_plan(artifact), corpus.fingerprint, corpus.ids_N16)
        logger.info("rows are shown without text: the corpus at %s has changed since", data[0].path)
        return None
    return corpus.text


def copy_text(artifact: Path, files: Mapping[str, Path]) -> None:
    """Write the documents of each domain that a mixture's trainings see, without those held out, as JSONL `{"text": ...}`.

    Raises ConfigError for data that is not packed text, ArtifactError if the data has changed since.
    """
    manifest = read_manifest(artifact)
    config: ScoreConfig = restored(artifact, manifest["config"])
    if config.pack is None:
        raise ConfigError(f"export: --copy writes documents of text (pack), {artifact} mixes samples; leave it out")
    corpus = open_corpus(config.data, cache_folder(artifact.parent), group="domain")
    if corpus.fingerprint != manifest["corpus"]["fingerprint"]:
        raise ArtifactError(f"the data of {artifact} has changed since it was made; run `flextools score` again")
    is_train_N = ~is_held_out(corpus.ids_N16, config.pack)
    for name, path in files.items():
        rows = np.flatnonzero(is_train_N & (corpus.group_N == corpus.group_names.index(name)))
        _write_documents(path, corpus, rows, name)


def _write_documents(path: Path, corpus: Corpus, rows: np.ndarray, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        with hidden.open("w", encoding="utf-8") as handle:
            for row in rows:
                document = corpus.conversation(int(row))
                if "text" not in document:
                    raise ConfigError(f"export: --copy writes documents of text, domain {name!r} has conversations")
                handle.write(json.dumps({"text": document["text"]}, ensure_ascii=False) + "\n")
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
