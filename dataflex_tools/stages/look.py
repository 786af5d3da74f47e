"""The text of a plan's rows, read from the corpus that the artifact names."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.artifact.plan import check_corpus, load_plan
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.errors import FlextoolsError
from dataflex_tools.data.corpus import open_corpus, overlap
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
