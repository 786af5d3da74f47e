"""Open what a stage reads: corpora, tokenizer, tokens; the cheap checks that come before a model is loaded."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from dataflex_tools.artifact.ids import copies_of
from dataflex_tools.core import dist
from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.core.fingerprint import digest, ids_digest
from dataflex_tools.core.mixing import Mixture
from dataflex_tools.core.signals import Samples
from dataflex_tools.data.corpus import Corpus, open_corpus
from dataflex_tools.data.packed import Blocks, PackSettings, pack_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.templates import document_text
from dataflex_tools.data.tokenized import RenderSettings, tokenize_corpus
from dataflex_tools.models.load import (
    empty_model,
    load_tokenizer,
    max_positions,
    positions_end,
    tokenizer_sha256,
)
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.sampler.mixture_sampler import MixtureSampler
from dataflex_tools.score.held_out import reporting_rows
from dataflex_tools.train.settings import TrainingSettings, num_steps

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
        masked = {"mask_history": True} if render.mask_history else {}
        return {"sha256": self.sha256, "template": render.template, "cutoff_len": render.cutoff_len, **masked}


@dataclass(frozen=True)
class Side:
    """A corpus and its tokens."""

    corpus: Corpus
    tokens: Any  # Tokens, or Blocks of packed text

    def samples(self) -> Samples:
        """What a method may know of it."""
        copy_of_N = copies_of(self.corpus.ids_N16)
        return Samples(
            num_tokens_N=self.tokens.num_tokens_N,
            has_labels_N=self.tokens.num_labels_N > 0,
            group_N=self.tokens.group_N,
            group_names=self.tokens.group_names,
            copy_of_N=copy_of_N if (copy_of_N != np.arange(len(copy_of_N))).any() else None,
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


@dataclass(frozen=True)
class Text:
    """Data as a mixer sees it: the rows to train on, and the held-out part of packed text."""

    side: Side
    held_out: Blocks | None

    @property
    def train(self) -> Any:
        """Tokens of the rows to train on."""
        return self.side.tokens

    @cached_property
    def train_digest(self) -> str:
        """SHA-256 of the rows to train on and their domains."""
        return rows_digest(self.train)

    @cached_property
    def held_out_digest(self) -> str | None:
        """SHA-256 of the held-out rows and their domains."""
        return rows_digest(self.held_out) if self.held_out is not None else None


def rows_digest(tokens: Any) -> str:
    """SHA-256 (64 hex digits) of rows, their domains and how they were rendered."""
    groups = hashlib.sha256(np.ascontiguousarray(tokens.group_N, dtype="<i4").tobytes()).hexdigest()
    facts = {"groups": groups, "names": list(tokens.group_names), "render": tokens.render_digest}
    return digest({"ids": ids_digest(tokens.ids_N16), **facts})


def router_rule(model: ModelSettings) -> dict[str, str]:
    """What an address says of the router's loss: nothing of a model that asks for none."""
    from dataflex_tools.train.router_loss import router_term

    return {"router_loss": "global batch"} if router_term(empty_model(model).config) is not None else {}


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
    dist.begin()
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


def read_text(
    sources: Sequence[SourceSpec], tokenizer: Tokenizer, render: RenderSettings, pack: PackSettings | None, cache: Path
) -> Text:
    """The data of a mixer: packed blocks, train and held-out, or the samples as they are."""
    if pack is not None and render != RenderSettings():
        raise ConfigError("render has no effect with pack, which takes documents whole; leave one of them out")
    corpus = read_corpus(sources, cache, group="domain")
    if pack is None:
        return Text(tokenize(corpus, tokenizer, render, cache), None)
    corpus = without_refused(corpus, tokenizer)
    train = pack_corpus(corpus, tokenizer.value, pack, cache, tokenizer_sha256=tokenizer.sha256, part="train")
    held_out = None
    if pack.held_out:
        held_out = pack_corpus(corpus, tokenizer.value, pack, cache, tokenizer_sha256=tokenizer.sha256, part="held_out")
        reporting_rows(held_out)  # what cannot be evaluated is better known before it is trained
    return Text(Side(corpus, train), held_out)


def without_refused(corpus: Corpus, tokenizer: Tokenizer) -> Corpus:
    """Documents without those that cannot be shown, where their source says that such rows are left out."""
    if not any(report.skip_bad for report in corpus.reports):
        return corpus
    refused, first = [], ""
    for row in filter(corpus.may_skip, range(len(corpus))):
        try:
            document_text(corpus.conversation(row), tokenizer.value)
        except DataError as error:
            first = first or f"{corpus.place(row)}: {error}"
            refused.append(row)
    if not refused:
        return corpus
    if len(refused) == len(corpus):
        raise DataError(f"none of the {len(corpus):,} documents can be used; first: {first}")
    if dist.is_main():
        logger.warning("%s bad rows left out, refused by the template; first: %s", f"{len(refused):,}", first)
    return corpus.without(np.array(refused))


def check_pack(pack: PackSettings | None, model: ModelSettings) -> None:
    """Raise ConfigError if blocks are too long for the model, or their documents would see each other and must not."""
    if pack is not None and not pack.attend_across_documents and "flash" in (model.attn_implementation or ""):
        raise ConfigError(
            f"pack.attend_across_documents is false and model.attn_implementation {model.attn_implementation!r}: "
            "FlashAttention tells documents apart only in batches of one; use sdpa or eager"
        )
    if pack is not None and (most := max_positions(model)) is not None and pack.block_size > most:
        raise ConfigError(f"pack.block_size is {pack.block_size}, {model.path} has positions for {most} tokens; lower it")


def pack_all(corpus: Corpus, tokenizer: Tokenizer, pack: PackSettings, cache: Path) -> Side:
    """Text that no one trains on, packed as a run's was; nothing is held out of it."""
    whole = replace(pack, held_out=0.0)
    corpus = without_refused(corpus, tokenizer)
    tokens = pack_corpus(corpus, tokenizer.value, whole, cache, tokenizer_sha256=tokenizer.sha256, part="train")
    return Side(corpus, tokens)


def mixture_sampler(
    tokens: Any, mixture: Mixture, training: TrainingSettings, *, seed: int, unit: Literal["rows", "tokens"] = "tokens",
    max_epochs: float | None = None, rows: np.ndarray | None = None, where: str = "training",
) -> MixtureSampler:  # fmt: skip
    """A stream of labelled rows, or of the `rows` given, that follows a mixture through a training; `where`: its settings.

    Raises ConfigError if the mixture names other domains than the data has, or weighs one that has no row.
    """
    names, size = tuple(tokens.group_names), training.global_batch_size
    for mine, theirs, fault in ((mixture.names, names, "is no domain of the data"), (names, mixture.names, "has no weight")):
        for name in mine:
            if name not in theirs:
                raise ConfigError(f"domain {name!r} {fault}; {did_you_mean(name, theirs)} (name sources as NAME=PATH)")
    weight_SK = mixture.weight_SK[:, [mixture.names.index(name) for name in names]]
    chosen = np.sort(tokens.rows_with_labels() if rows is None else rows)
    rows_K = [_as_range(chosen[tokens.group_N[chosen] == code]) for code in range(len(names))]
    for code, name in enumerate(names):
        if not len(rows_K[code]) and (weight_SK[:, code] > 0).any():
            raise ConfigError(
                f"the mixture gives {name!r} a weight of {weight_SK[:, code].max():.3g}, and no row of it is there"
            )
    if isinstance(tokens, Blocks):
        unit = "rows"  # blocks are equally long: shares of rows are shares of tokens, and nothing is held per row
    num_tokens_K = [np.asarray(tokens.num_tokens_N)[np.asarray(part)] for part in rows_K] if unit == "tokens" else None
    num_rows = sum(len(part) for part, is_in in zip(rows_K, (weight_SK > 0).any(axis=0), strict=True) if is_in)
    total = num_steps(training, num_rows, where=where) * size
    return MixtureSampler(
        rows_K, (mixture.step_S * size, weight_SK), seed=seed, unit=unit, num_tokens_K=num_tokens_K,
        max_epochs=max_epochs, total=total,
    )  # fmt: skip


def _as_range(row_B: np.ndarray) -> range | np.ndarray:
    """The rows as a range if they are one: a domain of packed blocks takes no memory then."""
    is_run = len(row_B) and row_B[-1] - row_B[0] + 1 == len(row_B)
    return range(int(row_B[0]), int(row_B[-1]) + 1) if is_run else row_B


def tokenize(corpus: Corpus, tokenizer: Tokenizer, render: RenderSettings, cache: Path) -> Side:
    """Tokenise what the cache lacks; ranks share the work through it. The side's corpus is without what was left out."""
    tokens = tokenize_corpus(corpus, tokenizer.value, render, cache, tokenizer_sha256=tokenizer.sha256)
    return Side(corpus.without(tokens.left_out_B) if len(tokens.left_out_B) else corpus, tokens)


def check_fits(side: Side, tokenizer: Tokenizer, model: ModelSettings) -> None:
    """Raise ConfigError if the model cannot read the rows: a token without an embedding, or a row beyond its positions."""
    _check_vocabulary(side, tokenizer, model)
    check_positions(side, model)


def _check_vocabulary(side: Side, tokenizer: Tokenizer, model: ModelSettings) -> None:
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


def check_positions(side: Side, model: ModelSettings, *, num_new: int = 0) -> None:
    """Compare the longest row, or prompt with `num_new` tokens behind it, with the positions the model has.

    Raises ConfigError where positions are looked up in a table, and warns where they are computed.
    """
    most = max_positions(model)
    num_tokens_N = np.asarray(side.tokens.num_tokens_N)
    if num_new:
        num_tokens_N = num_tokens_N - np.asarray(side.tokens.num_labels_N) + num_new
    if most is None or not len(num_tokens_N) or (longest := int(num_tokens_N.max())) <= most:
        return
    what = f"{side.corpus.place(int(num_tokens_N.argmax()))} has {longest:,} tokens"
    if num_new:
        what = f"a prompt with generation.max_new_tokens={num_new} comes to {longest:,} tokens"
    if positions_end(model):
        lower = "generation.max_new_tokens or render.cutoff_len" if num_new else f"render.cutoff_len to at most {most}"
        raise ConfigError(f"{what}, {model.path} has positions for {most:,}; set {lower}")
    if dist.is_main():
        num_long = int((num_tokens_N > most).sum())
        logger.warning(
            "%s, %s was made for %s: %s of %s rows are longer; render.cutoff_len=%d cuts them",
            what,
            model.path,
            f"{most:,}",
            f"{num_long:,}",
            f"{len(num_tokens_N):,}",
            most,
        )


def with_labels(target: Side, tokenizer: Tokenizer, render: RenderSettings, cache: Path) -> Side:
    """The target without rows that have no label, whose gradient would be undefined.

    Raises DataError if their source does not say that such rows are left out.
    """
    empty = np.flatnonzero(target.tokens.num_labels_N == 0)
    if not len(empty):
        return target
    if not all(target.corpus.may_skip(int(row)) for row in empty):
        raise DataError(
            f"{len(empty)} of {len(target.corpus)} target rows have no answer token within "
            f"render.cutoff_len={render.cutoff_len} (first: row {empty[0]}); raise render.cutoff_len or remove them"
        )
    if dist.is_main():
        first = target.corpus.place(int(empty[0]))
        logger.warning("%s bad rows left out of the target: no label; first: %s", f"{len(empty):,}", first)
    return tokenize(target.corpus.without(empty), tokenizer, render, cache)
