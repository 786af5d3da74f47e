"""The text of a plan's rows, read from the corpus that the artifact names."""

import logging
from collections.abc import Callable
from pathlib import Path

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.core.errors import FlextoolsError
from dataflex_tools.data.corpus import open_corpus, overlap
from dataflex_tools.stages.config import ScoreConfig, restored

logger = logging.getLogger("flextools")


def texts_of(artifact: Path) -> Callable[[int], str] | None:
    """Row -> readable text, or None (said in a log line) where the corpus is not on this machine or is another one."""
    manifest = read_manifest(artifact)
    if manifest["kind"] != "plan":
        return None
    try:
        config: ScoreConfig = restored(artifact, manifest["config"])
        corpus = open_corpus(config.data, artifact.parent / "cache", group="domain")
        if config.drop_overlap:
            target = open_corpus(config.target, artifact.parent / "cache", group="subtask")
            corpus = corpus.without(overlap(corpus, target))
    except FlextoolsError as error:  # a method of another installation, or data that is not on this machine
        logger.info("rows are shown without text: %s", error)
        return None
    if corpus.fingerprint != manifest["corpus"]["fingerprint"]:
        logger.info("rows are shown without text: the corpus at %s has changed since", config.data[0].path)
        return None
    return corpus.text
