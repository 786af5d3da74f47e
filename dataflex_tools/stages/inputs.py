"""Open what a stage reads: corpora, tokenizer, tokens; the cheap checks that come before a model is loaded."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from dataflex_tools.core import dist
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.signals import Samples
from dataflex_tools.data.corpus import Corpus, open_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.tokenized import RenderSettings, Tokens, tokenize_corpus
from dataflex_tools.models.load import empty_model, load_tokenizer, tokenizer_sha256
from dataflex_tools.models.settings import ModelSettings

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer with its address."""

    value: Any
    sha256: str

    @classmethod
    def of(cls, model: ModelSettings) -> "Tokenizer":
        """The tokenizer that belongs to `model`."""
        value = load_tokenizer(model)
        return cls(value, tokenizer_sha256(value))

    def info(self, render: RenderSettings) -> dict[str, Any]:
        """The `tokenizer` entry of a manifest."""
        return {"sha256": self.sha256, "template": render.template, "cutoff_len": render.cutoff_len}


@dataclass(frozen=True)
class Side:
    """A corpus and its tokens."""

    corpus: Corpus
    tokens: Tokens

    def samples(self) -> Samples:
        """What a method may know of it."""
        return Samples(
            num_tokens_N=self.tokens.num_tokens_N,
            has_labels_N=self.tokens.num_labels_N > 0,
            group_N=self.tokens.group_N,
            group_names=self.tokens.group_names,
        )

    def info(self) -> dict[str, Any]:
        """The `corpus` entry of a manifest."""
        return {
            "fingerprint": self.corpus.fingerprint,
            "rows": len(self.corpus),
            "domains": {name: int((self.corpus.group_N == code).sum()) for code, name in enumerate(self.corpus.group_names)},
            "sources": self.corpus.sources_info(),
            "tokens": int(self.tokens.num_tokens_N.sum()),
        }


def cache_folder(root: Path, *, is_dry: bool) -> AbstractContextManager[Path]:
    """Where corpora and tokens are cached: under `root`, or for a dry run in a folder that goes away."""
    if not is_dry:
        return nullcontext(root / "cache")
    folder = TemporaryDirectory(prefix="flextools-dry-run-")

    class _AsPath(AbstractContextManager[Path]):
        def __enter__(self) -> Path:
            return Path(folder.name)

        def __exit__(self, *_: object) -> None:
            folder.cleanup()

    return _AsPath()


def read_corpus(sources: Sequence[SourceSpec], cache: Path, *, group: Literal["domain", "subtask"]) -> Corpus:
    """Ingest once on rank 0, open everywhere; says what was read."""
    if not dist.is_main():
        dist.barrier()
    corpus = open_corpus(sources, cache, group=group)
    if dist.is_main():
        for report in corpus.reports:
            bad = f", {report.num_bad:,} bad rows skipped" if report.num_bad else ""
            same = f", {report.num_duplicates:,} duplicates" if report.num_duplicates else ""
            logger.info(
                "read %s: %s %s records as %s %r%s%s",
                report.path, f"{report.num_rows:,}", report.form, group, report.domain, bad, same,
            )  # fmt: skip
        dist.barrier()
    return corpus


def drop_target_rows(pool: Corpus, target: Corpus, *, drop: bool) -> Corpus:
    """The pool without rows that are target rows too, or with a warning that counts them."""
    from dataflex_tools.data.corpus import overlap

    rows = overlap(pool, target)
    if not len(rows):
        return pool
    if not drop:
        logger.warning(
            "%d of %d pool rows are target rows too (first: row %d); they will score high. Leave them out with "
            "--drop-overlap", len(rows), len(pool), int(rows[0]),
        )  # fmt: skip
        return pool
    logger.info("left out %d pool rows that are target rows too", len(rows))
    if len(rows) == len(pool):
        raise DataError(f"all {len(pool)} pool rows are target rows too; nothing is left to score")
    return pool.without(rows)


def tokenize(corpus: Corpus, tokenizer: Tokenizer, render: RenderSettings, cache: Path) -> Side:
    """Tokenise what the cache lacks; ranks share the work through it."""
    return Side(corpus, tokenize_corpus(corpus, tokenizer.value, render, cache, tokenizer_sha256=tokenizer.sha256))


def check_vocabulary(side: Side, tokenizer: Tokenizer, model: ModelSettings) -> None:
    """Raise ConfigError if a token of the data has no embedding in the model: the tokenizer belongs to another one."""
    num_embeddings = empty_model(model).get_input_embeddings().num_embeddings
    if len(tokenizer.value) <= num_embeddings:
        return
    largest = max(side.tokens.largest_id(), tokenizer.value.pad_token_id)
    if largest >= num_embeddings:
        raise ConfigError(
            f"the data has token {largest} ({tokenizer.value.convert_ids_to_tokens(largest)!r}), {model.path} has "
            f"embeddings for {num_embeddings} tokens; use the model's own tokenizer, or resize its embeddings"
        )


def require_labels(target: Side, cutoff_len: int) -> None:
    """Raise DataError if a target sample has no label left: its gradient would be undefined."""
    empty = np.flatnonzero(target.tokens.num_labels_N == 0)
    if len(empty):
        raise DataError(
            f"{len(empty)} of {len(target.corpus)} target rows have no answer token within render.cutoff_len={cutoff_len} "
            f"(first: row {empty[0]}); raise render.cutoff_len or remove them"
        )
