"""Text for pretraining: documents joined and cut into blocks of one length, by domain, with a part held out."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.hashes import digests_in
from dataflex_tools.core.rng import key_of
from dataflex_tools.data.chat import day_of
from dataflex_tools.data.corpus import Corpus
from dataflex_tools.data.pack_shards import BlockBatch, OpenShard, Packing, PackShard, read_shard, write_missing
from dataflex_tools.data.tokenized import IGNORED

# N blocks, T tokens of a block, D documents, K domains, B rows asked for, P record batches on disk

logger = logging.getLogger("flextools")

Part = Literal["train", "held_out"]
SHARD_DOCUMENTS = 4096
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How text becomes blocks.

    `block_size`: tokens of a block. `held_out`: share of the documents kept for evaluation, drawn by `seed`. Without
    `attend_across_documents` no token sees another document, and a document's first token is no label.
    """

    block_size: int = 1024
    held_out: float = 0.0
    attend_across_documents: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.block_size >= 2, f"pack.block_size is {self.block_size}, wanted at least 2 tokens")
        require(0 <= self.held_out < 1, f"pack.held_out is {self.held_out}, wanted a share from 0 to below 1")


def blocks_digest(settings: PackSettings, tokenizer_sha256: str, day: str | None = None) -> str:
    """SHA-256 (64 hex digits) of all that decides the blocks of given documents; not of which documents are held out.

    `day`: what a chat template that prints the day is given in its place.
    """
    kept = {name: getattr(settings, name) for name in ("block_size", "attend_across_documents")}
    return digest({"blocks": _FORMAT, "tokenizer": tokenizer_sha256} | kept | ({} if day is None else {"day": day}))


def is_held_out(ids_N16: np.ndarray, settings: PackSettings) -> np.ndarray:
    """Whether each document is kept for evaluation, (N,) bool, by a keyed hash of its content.

    It depends on nothing else: a document stays where it is when others come, go or move, and its copies go with it. A
    larger `held_out` keeps what a smaller one did.
    """
    if settings.held_out == 0:
        return np.zeros(len(ids_N16), dtype=bool)
    key, ids = key_of(settings.seed, "held_out").to_bytes(8, "little"), np.ascontiguousarray(ids_N16).tobytes()
    hashes = (hashlib.blake2b(ids[at : at + 16], digest_size=8, key=key).digest() for at in range(0, len(ids), 16))
    values_N = np.frombuffer(b"".join(hashes), dtype="<u8")
    return np.asarray(values_N < np.uint64(settings.held_out * 2**64))


@dataclass(frozen=True, eq=False)
class Blocks:
    """N blocks of `block_size` tokens, domain by domain in the order of `group_names`; read as `Tokens` are.

    `ids_N16`: equal blocks share an id. `num_labels_N`: (N,) int32. `attends_across`: whether a token may look at another
    document. `num_documents_K`, `leftover_K`: (K,) int64, documents packed, and tokens of theirs that are in no block.
    """

    ids_N16: np.ndarray
    num_labels_N: np.ndarray
    group_N: np.ndarray
    group_names: tuple[str, ...]
    block_size: int
    attends_across: bool
    render_digest: str
    num_documents_K: np.ndarray
    leftover_K: np.ndarray
    _largest_id: int
    _batches: tuple[BlockBatch, ...]
    _first_P: np.ndarray

    def __len__(self) -> int:
        return len(self.group_N)

    @cached_property
    def num_tokens_N(self) -> np.ndarray:
        """Tokens of each block, (N,) int32: `block_size`."""
        return np.full(len(self), self.block_size, dtype=np.int32)

    @property
    def num_tokens_K(self) -> np.ndarray:
        """Tokens in the blocks of each domain, (K,) int64; `leftover_K` is not in it."""
        return np.bincount(self.group_N, minlength=len(self.group_names)).astype(np.int64) * self.block_size

    @property
    def counts(self) -> Mapping[str, int]:
        """Tokens of documents that are in no block (`leftover_tokens`), and blocks `without_labels`."""
        return {"leftover_tokens": int(self.leftover_K.sum()), "without_labels": int((self.num_labels_N == 0).sum())}

    def domain_rows(self, code: int) -> range:
        """Rows of a domain."""
        first, end = np.searchsorted(self.group_N, [code, code + 1])
        return range(int(first), int(end))

    def input_ids(self, row: int) -> np.ndarray:
        """Token ids of a block, (T,) int32, read-only: a view of the file."""
        batch, inside = self._at(row)
        view_T: np.ndarray = batch.input_ids_BT[inside]
        return view_T

    def starts(self, row: int) -> np.ndarray:
        """Positions at which documents begin, ascending, (D,) int32; text before the first goes on from another block."""
        batch, inside = self._at(row)
        return batch.start_D[batch.edge_B1[inside] : batch.edge_B1[inside + 1]]

    def labels(self, row: int) -> np.ndarray:
        """Labels of a block, (T,) int64: the token id where it is trained on, -100 elsewhere."""
        label_T = self.input_ids(row).astype(np.int64)
        label_T[0] = IGNORED  # nothing comes before it that could predict it
        if not self.attends_across:
            label_T[self.starts(row)] = IGNORED
        return label_T

    def positions(self, row: int) -> np.ndarray:
        """Position ids of a block, (T,) int64, from 0; without attention across documents they begin anew with each."""
        position_T = np.arange(self.block_size)
        if self.attends_across:
            return position_T
        begin_T = np.zeros(self.block_size, dtype=np.int64)
        begin_T[self.starts(row)] = self.starts(row)
        return np.asarray(position_T - np.maximum.accumulate(begin_T))

    def rows_with_labels(self) -> np.ndarray:
        """Rows that have a loss, ascending, (B,) int64."""
        return np.flatnonzero(self.num_labels_N > 0).astype(np.int64)

    def largest_id(self) -> int:
        """The largest token id of the documents."""
        return self._largest_id

    def _at(self, row: int) -> tuple[BlockBatch, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside the {len(self):,} blocks")
        number = int(np.searchsorted(self._first_P, row, side="right")) - 1
        return self._batches[number], row - int(self._first_P[number])


def pack_corpus(
    corpus: Corpus, tokenizer: Any, settings: PackSettings, cache: Path, *, tokenizer_sha256: str, part: Part
) -> Blocks:
    """Blocks of the documents of one part of `corpus`, taken from `cache` as far as they are there.

    Documents of a domain are tokenised whole, joined in corpus order shard by shard, and cut; what is left at the end of a
    shard is left out, counted and logged. Ranks share the work through the cache. Raises DataError for a domain without
    a document or a block, ConfigError for a held-out part of nothing or a tokenizer that lacks what `render` needs.
    """
    if part == "held_out" and settings.held_out == 0:
        raise ConfigError("pack.held_out is 0, so nothing is held out; set it to a share of the documents, such as 0.01")
    is_chat = any(report.form != "text" for report in corpus.reports)
    address = blocks_digest(settings, tokenizer_sha256, day_of(tokenizer) if is_chat else None)
    shards_K = _shards(corpus, settings, cache / "blocks" / address[:16], address, part)
    prefix = f"{tokenizer_sha256}/{settings.block_size}/{settings.attend_across_documents}/".encode()
    packing = Packing(tokenizer, settings.block_size, settings.attend_across_documents, prefix)
    num_documents_K = np.array([sum(len(shard.rows_S) for shard in shards) for shards in shards_K], dtype=np.int64)
    _check(num_documents_K > 0, corpus.group_names, num_documents_K, np.zeros_like(num_documents_K), settings, part)
    write_missing([shard for shards in shards_K for shard in shards], corpus, packing, digests_in(cache))
    opened_K = [[read_shard(shard.path, settings.block_size) for shard in shards] for shards in shards_K]
    blocks = _opened(corpus, settings, address, num_documents_K, opened_K)
    _check(blocks.num_tokens_K > 0, blocks.group_names, num_documents_K, blocks.leftover_K, settings, part)
    leftover = ", ".join(f"{name} {num:,}" for name, num in zip(blocks.group_names, blocks.leftover_K, strict=True))
    logger.info(
        "%s part: %s blocks of %s tokens from %s documents; tokens left over: %s",
        part, f"{len(blocks):,}", f"{blocks.block_size:,}", f"{num_documents_K.sum():,}", leftover,
    )  # fmt: skip
    return blocks


def _shards(corpus: Corpus, settings: PackSettings, folder: Path, address: str, part: Part) -> list[list[PackShard]]:
    """The shards of each domain. A file is named by its documents: a longer corpus has the same full shards."""
    is_part_N = is_held_out(corpus.ids_N16, settings) == (part == "held_out")
    shards_K: list[list[PackShard]] = []
    for code, name in enumerate(corpus.group_names):
        is_domain_N = corpus.group_N == code
        if not is_domain_N.any():
            raise DataError(f"domain {name!r} has no document; leave it out, or give it some")
        rows = np.flatnonzero(is_domain_N & is_part_N)
        runs = [rows[start : start + SHARD_DOCUMENTS] for start in range(0, len(rows), SHARD_DOCUMENTS)]
        names = [hashlib.sha256(address.encode() + corpus.ids_N16[run].tobytes()).hexdigest() for run in runs]
        shards_K.append([PackShard(folder / f"{name}.arrow", run) for name, run in zip(names, runs, strict=True)])
    return shards_K


def _opened(
    corpus: Corpus, settings: PackSettings, address: str, num_documents_K: np.ndarray, opened_K: list[list[OpenShard]]
) -> Blocks:
    opened = [shard for shards in opened_K for shard in shards]
    batches = tuple(batch for shard in opened for batch in shard.batches)
    num_blocks_K = [sum(len(shard.num_labels_B) for shard in shards) for shards in opened_K]
    return Blocks(
        ids_N16=np.concatenate([np.zeros((0, 16), np.uint8), *(shard.ids_B16 for shard in opened)]),
        num_labels_N=np.concatenate([np.zeros(0, np.int32), *(shard.num_labels_B for shard in opened)]),
        group_N=np.repeat(np.arange(len(opened_K), dtype=np.int32), num_blocks_K),
        group_names=corpus.group_names,
        block_size=settings.block_size,
        attends_across=settings.attend_across_documents,
        render_digest=address,
        num_documents_K=num_documents_K,
        leftover_K=np.array([sum(shard.leftover for shard in shards) for shards in opened_K], dtype=np.int64),
        _largest_id=max((shard.largest_id for shard in opened), default=0),
        _batches=batches,
        _first_P=np.cumsum([0, *(len(batch.input_ids_BT) for batch in batches)])[:-1],
    )


def _check(
    has_blocks_K: np.ndarray,
    names: tuple[str, ...],
    num_documents_K: np.ndarray,
    num_tokens_K: np.ndarray,
    settings: PackSettings,
    part: Part,
) -> None:
    """Raise DataError, with all that are concerned, if a domain has no block in this part."""
    if has_blocks_K.all():
        return
    kind = "held-out" if part == "held_out" else "training"
    found = "; ".join(
        f"domain {names[code]!r} ({num_tokens_K[code]:,} tokens in {num_documents_K[code]:,} {kind} documents)"
        for code in np.flatnonzero(~has_blocks_K)
    )
    change = {"held_out": "raise", "train": "lower"}[part]
    changed = f"{change} pack.held_out ({settings.held_out:g}), " if settings.held_out else ""
    raise DataError(
        f"no block of {settings.block_size:,} tokens in {found}; {changed}lower pack.block_size, or give more text"
    )
