"""Which tokens belong to an answer, from the characters that tokens stand for."""

import copy
import json
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

# T tokens of a row

Span = tuple[int, int]


def with_exact_offsets(tokenizer: Any) -> Any:
    """A tokenizer with the same tokens whose offsets hold the white space of a token; itself if its own do.

    A token of white space alone, trimmed, has no characters, and would belong to no answer.
    """
    if not trims_offsets(tokenizer):
        return tokenizer
    from tokenizers import Tokenizer

    post_processor = _post_processor(tokenizer)
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    body = {"version": "1.0", "added_tokens": [], "model": empty, "post_processor": _untrimmed(post_processor)}
    exact = copy.deepcopy(tokenizer)
    exact.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(body)).post_processor
    return exact


def trims_offsets(tokenizer: Any) -> bool:
    """Whether a token's offsets leave out the white space at its ends."""
    post_processor = _post_processor(tokenizer)
    return bool(post_processor != _untrimmed(post_processor))


def _post_processor(tokenizer: Any) -> Any:
    """Its description; that of the whole tokenizer would hold the vocabulary."""
    found = tokenizer.backend_tokenizer.post_processor
    return None if found is None else json.loads(found.__getstate__())


def swallows_space(tokenizer: Any) -> bool:
    """Whether a token of its own, such as a header's, takes in the white space that follows it."""
    return any(token.rstrip for token in tokenizer.added_tokens_decoder.values())


def _untrimmed(part: Any) -> Any:
    if isinstance(part, list):
        return [_untrimmed(item) for item in part]
    if isinstance(part, dict):
        return {key: False if key == "trim_offsets" else _untrimmed(value) for key, value in part.items()}
    return part


def span_of_token(
    offset_T2: np.ndarray, id_T: np.ndarray, spans: Sequence[Span], *, text: str, added: Container[int]
) -> np.ndarray:
    """Number from 1 of the span each token overlaps, 0 for none, (T,) int64; `added`: ids of tokens outside the model's
    vocabulary.

    A token that begins before a span belongs to it if it holds a letter of it: an added token of a header, or one that
    takes in no more than white space of the answer, is what the answer stands behind.
    """
    span_T = np.zeros(len(offset_T2), np.int64)
    for number, (start, end) in enumerate(spans, start=1):
        is_inside_T = (offset_T2[:, 1] > start) & (offset_T2[:, 0] < end)
        span_T[is_inside_T] = number
        for token in np.flatnonzero(is_inside_T & (offset_T2[:, 0] < start)):
            inside = text[start : min(int(offset_T2[token, 1]), end)]
            if int(id_T[token]) in added or not inside.strip():
                span_T[token] = 0
    return span_T


def starts_in(offset_T2: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Whether each token begins inside one of `spans`, (T,) bool."""
    inside_T = np.zeros(len(offset_T2), bool)
    for start, end in spans:
        inside_T |= (offset_T2[:, 0] >= start) & (offset_T2[:, 0] < end)
    return inside_T
