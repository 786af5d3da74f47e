"""Shards of packed text: a run of documents as blocks of one length, a function of these documents alone."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.core import dist
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.hashes import FileDigests
from dataflex_tools.core.progress import Progress
from dataflex_tools.data.corpus import Corpus
from dataflex_tools.data.ipc import is_whole, not_whole, read_ipc, write_ipc
from dataflex_tools.data.templates import document_text

# B blocks of a record batch, T tokens of a block, D documents that begin in a piece of text, S documents of a shard

_BATCH_CHARS = 1 << 20  # characters given to the tokenizer at once; what it says of a token takes some 100 bytes
# Rows are the shard's blocks, and after them, in a record batch of its own, what is left over: less than a block
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.large_list(pa.int32())),
        ("starts", pa.large_list(pa.int32())),
        ("num_labels", pa.int32()),
        ("largest_id", pa.int32()),
        ("id", pa.binary(16)),
    ]
)


@dataclass(frozen=True)
class PackShard:
    """Consecutive documents of one domain and part, `rows_S`: (S,) int64 corpus rows, and the file for their blocks."""

    path: Path
    rows_S: np.ndarray


@dataclass(frozen=True)
class Packing:
    """How documents become blocks; `id_prefix` is hashed in front of a block's tokens."""

    tokenizer: Any
    block_size: int
    attend_across_documents: bool
    id_prefix: bytes


@dataclass(frozen=True)
class BlockBatch:
    """Blocks that lie one after the other in a file. `input_ids_BT`: (B, T) int32, memory-mapped; `start_D`: (D,) int32,
    where documents begin inside their block, those of block b from `edge_B1[b]` to `edge_B1[b + 1]`.
    """

    input_ids_BT: np.ndarray
    start_D: np.ndarray
    edge_B1: np.ndarray


@dataclass(frozen=True)
class OpenShard:
    """A shard's blocks. `num_labels_B`: (B,) int32; `ids_B16`: (B, 16) uint8; `leftover`: tokens after the last block."""

    batches: tuple[BlockBatch, ...]
    num_labels_B: np.ndarray
    ids_B16: np.ndarray
    largest_id: int
    leftover: int


def write_missing(shards: Sequence[PackShard], corpus: Corpus, packing: Packing, digests: FileDigests) -> None:
    """Pack the shards that have no file yet, or not as it was written; when it returns, on any rank, all have one.

    Raises DataError, naming the document, for one that cannot be rendered or gives no token.
    """
    missing = [shards[index] for index in not_whole([shard.path for shard in shards], digests)]
    # each rank begins at its own place and looks again before each shard, so ranks share the work without waiting
    first = len(missing) * dist.rank() // dist.world_size()
    with Progress("pack", sum(len(shard.rows_S) for shard in missing)) as progress:
        for shard in missing[first:] + missing[:first]:
            if not is_whole(shard.path, digests):
                write_ipc(shard.path, _SCHEMA, _pack(corpus, shard.rows_S, packing, progress))


def read_shard(path: Path, block_size: int) -> OpenShard:
    """The blocks in a file that `write_missing` wrote; tokens stay on disk until they are looked at."""
    table = read_ipc(path)
    batches = []
    for ids, starts in zip(table["input_ids"].chunks[:-1], table["starts"].chunks[:-1], strict=True):
        values_BT = ids.values.to_numpy().reshape(-1, block_size)
        batches.append(BlockBatch(values_BT, starts.values.to_numpy(), starts.offsets.to_numpy()))
    ids = [np.frombuffer(chunk.buffers()[1], np.uint8)[: len(chunk) * 16] for chunk in table["id"].chunks]
    return OpenShard(
        batches=tuple(batches),
        num_labels_B=table["num_labels"].to_numpy()[:-1],
        ids_B16=np.concatenate(ids).reshape(-1, 16)[:-1],
        largest_id=int(table["largest_id"].to_numpy().max()),
        leftover=len(table["input_ids"].chunks[-1].values),
    )


def _pack(corpus: Corpus, rows_S: np.ndarray, packing: Packing, progress: Progress) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard's file; in memory are a few documents and less than a block, not the shard."""
    left_T, left_D = np.zeros(0, np.int32), np.zeros(0, np.int64)
    for rows, texts in _pieces(corpus, rows_S, packing.tokenizer):
        documents = _encode(corpus, rows, texts, packing.tokenizer)
        length_D = np.array([len(left_T), *map(len, documents)])
        token_T = np.concatenate([left_T, *documents])
        start_D = np.concatenate([left_D, length_D.cumsum()[:-1]])
        whole = len(token_T) // packing.block_size * packing.block_size
        if whole:
            yield _record_batch(token_T[:whole], start_D[start_D < whole], packing)
        progress.advance(len(rows), len(token_T) - len(left_T))
        left_T, left_D = token_T[whole:], start_D[start_D >= whole] - whole
    yield _record_batch(left_T, left_D, packing)


def _pieces(corpus: Corpus, rows_S: np.ndarray, tokenizer: Any) -> Iterator[tuple[list[int], list[str]]]:
    """(rows, texts) of consecutive documents, about `_BATCH_CHARS` characters at a time."""
    rows: list[int] = []
    texts: list[str] = []
    num_chars = 0
    for row in rows_S.tolist():
        try:
            text = document_text(corpus.conversation(row), tokenizer)
        except DataError as error:
            raise DataError(f"{corpus.place(row)}: {error}") from None
        rows.append(row)
        texts.append(text)
        num_chars += len(text)
        if num_chars >= _BATCH_CHARS:
            yield rows, texts
            rows, texts, num_chars = [], [], 0
    if rows:
        yield rows, texts


def _encode(corpus: Corpus, rows: list[int], texts: list[str], tokenizer: Any) -> list[np.ndarray]:
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    for row, ids in zip(rows, encoded, strict=True):
        if not ids:
            raise DataError(f"{corpus.place(row)} gives no token at all")
    return [np.array(ids, np.int32) for ids in encoded]


def _record_batch(token_T: np.ndarray, start_D: np.ndarray, packing: Packing) -> pa.RecordBatch:
    """Blocks of tokens and where documents begin in them; tokens that fill none are one row."""
    token_edges = np.append(np.arange(0, max(len(token_T), 1), packing.block_size), len(token_T))
    start_edges = np.searchsorted(start_D, token_edges)
    inside_D = (start_D - np.repeat(token_edges[:-1], np.diff(start_edges))).astype(np.int32)
    facts = [
        _facts(token_T[begin:end], inside_D[first:last], packing)
        for (begin, end), (first, last) in zip(pairwise(token_edges), pairwise(start_edges), strict=True)
    ]
    num_labels, largest_id, ids = zip(*facts, strict=True)
    columns = [
        pa.LargeListArray.from_arrays(pa.array(token_edges, pa.int64()), pa.array(token_T, pa.int32())),
        pa.LargeListArray.from_arrays(pa.array(start_edges, pa.int64()), pa.array(inside_D, pa.int32())),
        pa.array(num_labels, pa.int32()),
        pa.array(largest_id, pa.int32()),
        pa.array(ids, pa.binary(16)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _facts(token_T: np.ndarray, start_D: np.ndarray, packing: Packing) -> tuple[int, int, bytes]:
    """(labels, largest token id, content id) of a block; position 0 of a block has no label, whatever stands there."""
    unlabelled = 0 if packing.attend_across_documents else int((start_D > 0).sum())
    content = (token_T.astype("<i4").tobytes(), start_D.astype("<i4").tobytes())
    sha256 = hashlib.sha256(b"".join(chain([packing.id_prefix], content)))
    return max(len(token_T) - 1 - unlabelled, 0), int(token_T.max(initial=0)), sha256.digest()[:16]
