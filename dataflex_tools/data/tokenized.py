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
from dataflex_tools.core.hashes import FileDigests, digests_in
from dataflex_tools.core.progress import Progress
from dataflex_tools.data.chat import Rendering, Span, day_of
from dataflex_tools.data.corpus import Corpus
from dataflex_tools.data.ipc import is_whole, not_whole, read_ipc, write_ipc
from dataflex_tools.data.offsets import (
    span_of_token,
    starts_in,
    swallows_space,
    trims_offsets,
    with_exact_offsets,
)
from dataflex_tools.data.templates import answer_headers, check_template, rendering
from dataflex_tools.data.truncate import CUT_ANSWER, CUT_PROMPT, cut

# N rows, T tokens of a row, S rows of a shard

logger = logging.getLogger("flextools")

IGNORED = -100  # the label that torch's cross entropy leaves out
SHARD_ROWS = 4096
_BATCH = 256  # texts given to the tokenizer at once; it spreads them over the cores
_FORMAT = 1
_LOST_REASONING, _REFUSED = 4, 8  # bits of the column `cut`, beside those of `truncate`
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

    `mask_history` (LLaMA-Factory's name) trains on the last answer of a conversation only, not on all of them. What a
    record itself marks as not to be trained on carries no label either way.
    """

    template: str = "auto"
    cutoff_len: int = 2048
    answer_only: bool = False
    mask_history: bool = False

    def __post_init__(self) -> None:
        check_template(self.template)
        require(self.cutoff_len >= 2, f"cutoff_len is {self.cutoff_len}, wanted at least 2 tokens")


def render_digest(render: RenderSettings, tokenizer_sha256: str, tokenizer: Any = None) -> str:
    """SHA-256 (64 hex digits) of all that decides the tokens of a conversation; `tokenizer_sha256` covers vocabulary,
    special tokens and chat template, `tokenizer` what else it does.
    """
    # named only where set: what was addressed before the setting existed keeps its address
    given = {name: True for name in ("answer_only", "mask_history") if getattr(render, name)}
    return digest(
        {"format": _FORMAT, "template": render.template, "cutoff_len": render.cutoff_len, "tokenizer": tokenizer_sha256}
        | given
        | ({} if tokenizer is None else _traits(tokenizer, render))
    )


def _traits(tokenizer: Any, render: RenderSettings) -> dict[str, Any]:
    """What decides tokens or labels beside the tokenizer's files; what was tokenised before it was heeded was wrong."""
    traits: dict[str, Any] = {}
    if render.template == "auto" and (day := day_of(tokenizer)) is not None:
        traits["day"] = day
    if trims_offsets(tokenizer) or swallows_space(tokenizer):
        traits["offsets"] = "exact"
    if getattr(tokenizer, "split_special_tokens", False):
        traits["split_special_tokens"] = True
    return traits


@dataclass(frozen=True)
class _Shard:
    start_S: np.ndarray  # (S + 1,) int64
    input_ids: np.ndarray
    is_label: np.ndarray


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens and labels of N rows. `num_tokens_N`, `num_labels_N`: (N,) int32; a label at position 0 predicts nothing
    and is not counted. `left_out_B`: (B,) int64, rows of the corpus that are no rows here, as they were refused and their
    source may skip such. `counts`: rows with `truncated_prompt`, `truncated_answer`, `without_labels`, and where there
    are some `refused`, and `earlier_reasoning_left_out` by the template.
    """

    ids_N16: np.ndarray
    num_tokens_N: np.ndarray
    num_labels_N: np.ndarray
    group_N: np.ndarray
    group_names: tuple[str, ...]
    render_digest: str
    counts: Mapping[str, int]
    left_out_B: np.ndarray
    mask_history: bool
    _shards: tuple[_Shard, ...]
    _stored_N: np.ndarray

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
        num_rows = len(self._shards[0].start_S) - 1  # of all shards but the last
        number, inside = divmod(int(self._stored_N[row]), num_rows)
        shard = self._shards[number]
        return shard, int(shard.start_S[inside]), int(shard.start_S[inside + 1])


def tokenize_corpus(corpus: Corpus, tokenizer: Any, render: RenderSettings, cache: Path, *, tokenizer_sha256: str) -> Tokens:
    """Tokens of every row of `corpus`, in its order, taken from `cache` as far as they are there.

    Rows without a label are kept, with `num_labels_N` 0; refused ones of a source that may skip them are left out. Ranks
    share the work through the cache. Raises ConfigError for a tokenizer without character offsets, DataError for a refused
    conversation of another source, or if no row has labels.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"{type(tokenizer).__name__} has no character offsets, which labels need; use a fast tokenizer")
    address = render_digest(render, tokenizer_sha256, tokenizer)
    paths = [
        cache / "tokens" / address[:16] / f"{_shard_name(address, corpus.ids_N16[start : start + SHARD_ROWS])}.arrow"
        for start in range(0, len(corpus), SHARD_ROWS)
    ]
    _write_missing(paths, corpus, tokenizer, render, digests_in(cache))
    tables = [read_ipc(path) for path in paths]
    cut_N = np.concatenate([table["cut"].chunk(0).to_numpy() for table in tables])
    refused_B = np.flatnonzero(cut_N & _REFUSED)
    if len(refused_B):
        _check_may_leave_out(corpus, refused_B, tokenizer, render)
    tokens = _opened(corpus, address, render, tables, cut_N)
    _report(tokens, render)
    return tokens


def _check_may_leave_out(corpus: Corpus, refused_B: np.ndarray, tokenizer: Any, render: RenderSettings) -> None:
    """Raise DataError for a refused row that must not be left out, or if none is left; else count and name them."""
    for row in refused_B:
        if not corpus.may_skip(int(row)):
            raise DataError(_refusal(corpus, int(row), tokenizer, render))
    first = _refusal(corpus, int(refused_B[0]), tokenizer, render)
    if len(refused_B) == len(corpus):
        raise DataError(f"none of the {len(corpus):,} rows can be used; first: {first}")
    if dist.is_main():
        logger.warning("%s bad rows left out, refused by the template; first: %s", f"{len(refused_B):,}", first)


def _refusal(corpus: Corpus, row: int, tokenizer: Any, render: RenderSettings) -> str:
    """Why a row that is known to be refused is."""
    try:
        _rendered(corpus, row, tokenizer, render)
    except DataError as error:
        return str(error)
    return f"{corpus.place(row)} gives no token at all"


def _shard_name(address: str, ids_S16: np.ndarray) -> str:
    # shards of before version 2 may hold rows that are refused now: they are made again, under the same address
    return hashlib.sha256(f"{address}/2".encode() + np.ascontiguousarray(ids_S16).tobytes()).hexdigest()


def _write_missing(paths: list[Path], corpus: Corpus, tokenizer: Any, render: RenderSettings, digests: FileDigests) -> None:
    missing = not_whole(paths, digests)
    # each rank begins at its own place and looks again before each shard, so ranks share the work without waiting
    first = len(missing) * dist.rank() // dist.world_size()
    total = sum(min(SHARD_ROWS, len(corpus) - index * SHARD_ROWS) for index in missing)
    exact = with_exact_offsets(tokenizer) if missing else tokenizer
    with Progress("tokenise", total) as progress:
        for index in missing[first:] + missing[:first]:
            if is_whole(paths[index], digests):
                continue
            start = index * SHARD_ROWS
            rows = range(start, min(start + SHARD_ROWS, len(corpus)))
            batch = _encode_shard(corpus, rows, exact, render)
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
    starts = pa.array(np.cumsum([0, *map(len, ids)]), pa.int64())
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
    """(token ids, whether each is a label, what was cut) of each row; nothing of a refused one."""
    rendered = [_rendered_or_skipped(corpus, row, tokenizer, render) for row in rows]
    texts = [found[0].text for found in rendered if found is not None]
    encoded = iter(_tokens_of(texts, tokenizer))
    added = frozenset(tokenizer.added_tokens_decoder)
    for row, found in zip(rows, rendered, strict=True):
        ids, offsets = ([], []) if found is None else next(encoded)
        if found is None or not ids:
            if not corpus.may_skip(row):
                raise DataError(f"{corpus.place(row)} gives no token at all")
            yield np.zeros(0, np.int32), np.zeros(0, bool), _REFUSED
            continue
        shown, headers = found
        ids_T, offset_T2, has_bos = np.array(ids, np.int32), np.array(offsets, np.int64), ids[0] == tokenizer.bos_token_id
        span_T = span_of_token(offset_T2, ids_T, shown.spans, text=shown.text, added=added)
        kept, how = cut(span_T, render.cutoff_len, keep_first=has_bos)
        if render.answer_only:
            kept, span_T = _answers_of(kept, span_T, starts_in(offset_T2, headers), keep_first=has_bos)
        is_label_T = span_T[kept] > 0
        is_label_T[0] = False  # nothing comes before it that could predict it
        yield ids_T[kept], is_label_T, how | (_LOST_REASONING if shown.lost_reasoning else 0)


def _tokens_of(texts: list[str], tokenizer: Any) -> Iterator[tuple[list[int], list[Span]]]:
    """(token ids, character offsets) of each text."""
    if not texts:
        return iter(())
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def _answers_of(
    kept: np.ndarray, span_T: np.ndarray, is_header_T: np.ndarray, *, keep_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(positions of `kept` that are not prompt, `span_T`); as they are but without a label if there is no prompt."""
    is_shown_T = (span_T > 0) | is_header_T
    is_shown_T[0] |= keep_first
    shown = kept[is_shown_T[kept]]
    # the same tokens twice would pass for an answer that its prompt does not change
    return (shown, span_T) if 0 < len(shown) < len(kept) else (kept, np.zeros_like(span_T))


def _rendered_or_skipped(
    corpus: Corpus, row: int, tokenizer: Any, settings: RenderSettings
) -> tuple[Rendering, list[Span]] | None:
    """What `_rendered` gives; None for a refused row of a source that may skip it."""
    try:
        return _rendered(corpus, row, tokenizer, settings)
    except DataError:
        if not corpus.may_skip(row):
            raise
        return None


def _rendered(corpus: Corpus, row: int, tokenizer: Any, settings: RenderSettings) -> tuple[Rendering, list[Span]]:
    """(text and spans with labels, their headers if these are needed) of a row."""
    conversation, template = corpus.conversation(row), settings.template
    try:
        found = rendering(conversation, tokenizer, template, mask_history=settings.mask_history)
        headers = []
        if settings.answer_only:
            headers = answer_headers(conversation, tokenizer, template, found.text, found.spans)
        return found, headers
    except DataError as error:
        hint = "" if corpus.may_skip(row) else "; or leave such rows out with --skip-bad"
        raise DataError(f"{corpus.place(row)}: {error}{hint}") from None


def _opened(corpus: Corpus, address: str, render: RenderSettings, tables: list[pa.Table], cut_N: np.ndarray) -> Tokens:
    shards, num_tokens, num_labels = [], [], []
    for table in tables:
        ids, labels = table["input_ids"].chunk(0), table["is_label"].chunk(0)
        start_S = ids.offsets.to_numpy()
        shards.append(_Shard(start_S, ids.values.to_numpy(), labels.values.to_numpy()))
        num_tokens.append(np.diff(start_S).astype(np.int32))
        num_labels.append(table["num_labels"].chunk(0).to_numpy())
    left_out_B = np.flatnonzero(cut_N & _REFUSED)
    stored_N = np.flatnonzero((cut_N & _REFUSED) == 0)
    num_labels_N = np.concatenate(num_labels)[stored_N]
    counts = {
        "truncated_prompt": int((cut_N & CUT_PROMPT != 0).sum()),
        "truncated_answer": int((cut_N & CUT_ANSWER != 0).sum()),
        "without_labels": int((num_labels_N == 0).sum()),
    }
    rare = {"refused": len(left_out_B), "earlier_reasoning_left_out": int((cut_N & _LOST_REASONING != 0).sum())}
    return Tokens(
        ids_N16=corpus.ids_N16[stored_N],
        num_tokens_N=np.concatenate(num_tokens)[stored_N],
        num_labels_N=num_labels_N,
        group_N=corpus.group_N[stored_N],
        group_names=corpus.group_names,
        render_digest=address,
        counts=counts | {name: count for name, count in rare.items() if count},
        left_out_B=left_out_B,
        mask_history=render.mask_history,
        _shards=tuple(shards),
        _stored_N=stored_N,
    )


def _report(tokens: Tokens, render: RenderSettings) -> None:
    counts = tokens.counts
    if counts["without_labels"] == len(tokens):
        raise DataError(
            f"none of the {len(tokens):,} rows has a label with template {render.template!r} and cutoff_len "
            f"{render.cutoff_len}; raise cutoff_len, or use a template that marks the answers"
            + (" (answer_only needs records with a prompt)" if render.answer_only else "")
        )
    names = ("truncated_prompt", "truncated_answer", "without_labels")
    if any(counts[name] for name in names):
        logger.warning(
            "%s rows at cutoff_len %s: %s with a cut prompt, %s with a cut answer, %s without labels (never selected)",
            f"{len(tokens):,}", render.cutoff_len, *(f"{counts[name]:,}" for name in names),
        )  # fmt: skip
    if num_lost := counts.get("earlier_reasoning_left_out", 0):
        logger.warning(
            "%s of %s rows: the template leaves out the reasoning of answers that another question follows, and they are "
            "trained on without it; render.mask_history=true trains on last answers only",
            f"{num_lost:,}",
            f"{len(tokens):,}",
        )
