"""A corpus as tokens with labels: cut to length, stored in shards, memory-mapped."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.core import dist
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.progress import Progress
from dataflex_tools.data.corpus import Corpus
from dataflex_tools.data.ipc import read_ipc, write_ipc
from dataflex_tools.data.templates import Span, answer_headers, check_template, render
from dataflex_tools.data.truncate import CUT_ANSWER, CUT_PROMPT, cut

# N rows, T tokens of a row, S rows of a shard

logger = logging.getLogger("flextools")

IGNORED = -100  # the label that torch's cross entropy leaves out
SHARD_ROWS = 4096
_BATCH = 256  # texts given to the tokenizer at once; it spreads them over the cores
_FORMAT = 1
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.large_list(pa.int32())),
        ("is_label", pa.large_list(pa.uint8())),
        ("num_labels", pa.int32()),
        ("cut", pa.uint8()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """How a conversation becomes tokens: the template (see `templates`) and the most tokens a row may have.

    `answer_only` leaves prompts out: of the cut row, the begin-of-sequence token, each answer and the assistant header
    before it are kept, so that the label tokens are the same with and without prompt. A row that has no prompt, or none
    left, then has no label. (An answer without any token before it loses its first label, which nothing could predict.)
    """

    template: str = "auto"
    cutoff_len: int = 2048
    answer_only: bool = False

    def __post_init__(self) -> None:
        check_template(self.template)
        require(self.cutoff_len >= 2, f"cutoff_len is {self.cutoff_len}, wanted at least 2 tokens")


def render_digest(render: RenderSettings, tokenizer_sha256: str) -> str:
    """SHA-256 (64 hex digits) of all that decides the tokens of a conversation; `tokenizer_sha256` covers its chat
    template."""
    # named only where set: what was addressed before the setting existed keeps its address
    answer_only = {"answer_only": True} if render.answer_only else {}
    return digest(
        {"format": _FORMAT, "template": render.template, "cutoff_len": render.cutoff_len, "tokenizer": tokenizer_sha256}
        | answer_only
    )


@dataclass(frozen=True)
class _Shard:
    start_S: np.ndarray  # (S + 1,) int64
    input_ids: np.ndarray
    is_label: np.ndarray


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens and labels of N rows. `num_tokens_N`, `num_labels_N`: (N,) int32; a label at position 0 predicts nothing
    and is not counted. `counts`: rows with `truncated_prompt`, `truncated_answer`, `without_labels`.
    """

    ids_N16: np.ndarray
    num_tokens_N: np.ndarray
    num_labels_N: np.ndarray
    group_N: np.ndarray
    group_names: tuple[str, ...]
    render_digest: str
    counts: Mapping[str, int]
    _shards: tuple[_Shard, ...]

    def __len__(self) -> int:
        return len(self.num_tokens_N)

    def input_ids(self, row: int) -> np.ndarray:
        """Token ids of a row, (T,) int32, read-only."""
        shard, start, end = self._at(row)
        return shard.input_ids[start:end]

    def labels(self, row: int) -> np.ndarray:
        """Labels of a row, (T,) int64: the token id where it is trained on, -100 elsewhere."""
        shard, start, end = self._at(row)
        return np.where(shard.is_label[start:end] != 0, shard.input_ids[start:end].astype(np.int64), IGNORED)

    def rows_with_labels(self) -> np.ndarray:
        """Rows that have a loss, ascending, (B,) int64."""
        return np.flatnonzero(self.num_labels_N > 0).astype(np.int64)

    def largest_id(self) -> int:
        """The largest token id of all rows."""
        return max(int(shard.input_ids.max()) for shard in self._shards)

    def _at(self, row: int) -> tuple[_Shard, int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside the {len(self):,} rows")
        number, inside = divmod(row, len(self._shards[0].start_S) - 1)  # all shards but the last are equally long
        shard = self._shards[number]
        return shard, int(shard.start_S[inside]), int(shard.start_S[inside + 1])


def tokenize_corpus(corpus: Corpus, tokenizer: Any, render: RenderSettings, cache: Path, *, tokenizer_sha256: str) -> Tokens:
    """Tokens of every row of `corpus`, in its order, taken from `cache` as far as they are there.

    Rows without a label are kept, with `num_labels_N` 0. Ranks share the work through the cache. Raises ConfigError
    for a tokenizer without character offsets, DataError for a refused conversation or if no row has labels.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"{type(tokenizer).__name__} has no character offsets, which labels need; use a fast tokenizer")
    address = render_digest(render, tokenizer_sha256)
    paths = [
        cache / "tokens" / address[:16] / f"{_shard_name(address, corpus.ids_N16[start : start + SHARD_ROWS])}.arrow"
        for start in range(0, len(corpus), SHARD_ROWS)
    ]
    _write_missing(paths, corpus, tokenizer, render)
    tokens = _opened(corpus, address, [read_ipc(path) for path in paths])
    _report(tokens, render)
    return tokens


def _shard_name(address: str, ids_S16: np.ndarray) -> str:
    return hashlib.sha256(address.encode() + np.ascontiguousarray(ids_S16).tobytes()).hexdigest()


def _write_missing(paths: list[Path], corpus: Corpus, tokenizer: Any, render: RenderSettings) -> None:
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    # each rank begins at its own place and looks again before each shard, so ranks share the work without waiting
    first = len(missing) * dist.rank() // dist.world_size()
    total = sum(min(SHARD_ROWS, len(corpus) - index * SHARD_ROWS) for index in missing)
    with Progress("tokenise", total) as progress:
        for index in missing[first:] + missing[:first]:
            if paths[index].exists():
                continue
            start = index * SHARD_ROWS
            rows = range(start, min(start + SHARD_ROWS, len(corpus)))
            batch = _encode_shard(corpus, rows, tokenizer, render)
            write_ipc(paths[index], _SCHEMA, [batch])
            progress.advance(len(rows), len(batch.column(0).values))


def _encode_shard(corpus: Corpus, rows: range, tokenizer: Any, render: RenderSettings) -> pa.RecordBatch:
    ids, labelled, num_labels, cuts = [], [], [], []
    for start in range(rows.start, rows.stop, _BATCH):
        for ids_T, is_label_T, how in _encode(corpus, range(start, min(start + _BATCH, rows.stop)), tokenizer, render):
            ids.append(ids_T)
            labelled.append(is_label_T)
            num_labels.append(int(is_label_T.sum()))
            cuts.append(how)
    starts = pa.array(np.concatenate([[0], np.cumsum([len(row) for row in ids])]), pa.int64())
    columns = [
        pa.LargeListArray.from_arrays(starts, pa.array(np.concatenate(ids), pa.int32())),
        pa.LargeListArray.from_arrays(starts, pa.array(np.concatenate(labelled).astype(np.uint8))),
        pa.array(num_labels, pa.int32()),
        pa.array(cuts, pa.uint8()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _encode(
    corpus: Corpus, rows: range, tokenizer: Any, render: RenderSettings
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(token ids, whether each is a label, what was cut) of each row."""
    rendered = [_rendered(corpus, row, tokenizer, render) for row in rows]
    encoded = tokenizer(
        [text for text, _, _ in rendered], add_special_tokens=False, return_offsets_mapping=True,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    columns = zip(rows, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for row, (_, spans, headers), ids, offsets in columns:
        if not ids:
            raise DataError(f"{corpus.place(row)} gives no token at all")
        ids_T, offset_T2, has_bos = np.array(ids, np.int32), np.array(offsets, np.int64), ids[0] == tokenizer.bos_token_id
        span_T = _span_of_token(offset_T2, spans)
        kept, how = cut(span_T, render.cutoff_len, keep_first=has_bos)
        if render.answer_only:
            kept, span_T = _answers_of(kept, span_T, _starts_in(offset_T2, headers), keep_first=has_bos)
        is_label_T = span_T[kept] > 0
        is_label_T[0] = False  # nothing comes before it that could predict it
        yield ids_T[kept], is_label_T, how


def _answers_of(
    kept: np.ndarray, span_T: np.ndarray, is_header_T: np.ndarray, *, keep_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(positions of `kept` that are not prompt, `span_T`); as they are but without a label if there is no prompt."""
    is_shown_T = (span_T > 0) | is_header_T
    is_shown_T[0] |= keep_first
    shown = kept[is_shown_T[kept]]
    # the same tokens twice would pass for an answer that its prompt does not change
    return (shown, span_T) if 0 < len(shown) < len(kept) else (kept, np.zeros_like(span_T))


def _rendered(corpus: Corpus, row: int, tokenizer: Any, settings: RenderSettings) -> tuple[str, list[Span], list[Span]]:
    """(text, spans with labels, their headers if these are needed) of a row."""
    conversation, template = corpus.conversation(row), settings.template
    try:
        text, spans = render(conversation, tokenizer, template)
        headers = answer_headers(conversation, tokenizer, template, text, spans) if settings.answer_only else []
        return text, spans, headers
    except DataError as error:
        raise DataError(f"{corpus.place(row)}: {error}") from None


def _span_of_token(offset_T2: np.ndarray, spans: list[Span]) -> np.ndarray:
    """Number from 1 of the span each token overlaps, 0 for none, (T,) int64."""
    span_T = np.zeros(len(offset_T2), np.int64)
    for number, (start, end) in enumerate(spans, start=1):
        span_T[(offset_T2[:, 1] > start) & (offset_T2[:, 0] < end)] = number
    return span_T


def _starts_in(offset_T2: np.ndarray, spans: list[Span]) -> np.ndarray:
    """Whether each token begins inside one of `spans`, (T,) bool."""
    inside_T = np.zeros(len(offset_T2), bool)
    for start, end in spans:
        inside_T |= (offset_T2[:, 0] >= start) & (offset_T2[:, 0] < end)
    return inside_T


def _opened(corpus: Corpus, address: str, tables: list[pa.Table]) -> Tokens:
    shards, num_tokens, num_labels, cuts = [], [], [], []
    for table in tables:
        ids, labels = table["input_ids"].chunk(0), table["is_label"].chunk(0)
        start_S = ids.offsets.to_numpy()
        shards.append(_Shard(start_S, ids.values.to_numpy(), labels.values.to_numpy()))
        num_tokens.append(np.diff(start_S).astype(np.int32))
        num_labels.append(table["num_labels"].chunk(0).to_numpy())
        cuts.append(table["cut"].chunk(0).to_numpy())
    num_labels_N, cut_N = np.concatenate(num_labels), np.concatenate(cuts)
    counts = {
        "truncated_prompt": int((cut_N & CUT_PROMPT != 0).sum()),
        "truncated_answer": int((cut_N & CUT_ANSWER != 0).sum()),
        "without_labels": int((num_labels_N == 0).sum()),
    }
    return Tokens(
        corpus.ids_N16, np.concatenate(num_tokens), num_labels_N, corpus.group_N, corpus.group_names, address, counts,
        tuple(shards),
    )  # fmt: skip


def _report(tokens: Tokens, render: RenderSettings) -> None:
    if tokens.counts["without_labels"] == len(tokens):
        raise DataError(
            f"none of the {len(tokens):,} rows has a label with template {render.template!r} and cutoff_len "
            f"{render.cutoff_len}; raise cutoff_len, or use a template that marks the answers"
            + (" (answer_only needs records with a prompt)" if render.answer_only else "")
        )
    if any(tokens.counts.values()):
        logger.warning(
            "%s rows at cutoff_len %s: %s with a cut prompt, %s with a cut answer, %s without labels (never selected)",
            f"{len(tokens):,}", render.cutoff_len, *(f"{count:,}" for count in tokens.counts.values()),
        )  # fmt: skip
