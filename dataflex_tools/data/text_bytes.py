"""UTF-8 bytes of the text that tokens stand for, which losses under different tokenizers are compared by (bits per byte).

A table over the vocabulary, then a lookup, so that no row is decoded:

* byte-level vocabularies (GPT-2, Llama 3, Qwen): exact for every token, those that are parts of a character included;
* `<0xE4>` of a byte fallback (Llama 2, Mistral, Gemma) is one byte, any other token what it adds to a text when decoded
  between two words: exact but for the space that such tokenizers put in front of a whole text, one byte per text;
* WordPiece and words: as decoded, with one space before a word, whatever stood there; an unknown word counts nothing.

Counted is the text as the tokenizer's normaliser leaves it. A token that begins before the answer counts whole.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from tokenizers import pre_tokenizers

# V entries of a vocabulary, B rows asked for, T tokens of a row

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class LabelRows(Protocol):
    """What is read of a tokenized corpus."""

    def labels(self, row: int) -> np.ndarray:
        """Labels of a row, (T,) int64: the token id where it is trained on, negative elsewhere."""
        ...


def label_bytes(tokens: LabelRows, rows: Sequence[int] | np.ndarray, tokenizer: Any) -> np.ndarray:
    """Bytes of the text of each row's label tokens, (B,) int64; a label at position 0, which has no loss, counts nothing.

    `tokenizer`: a fast tokenizer of transformers. The table is made anew by each call: ask for all rows at once.
    """
    bytes_V = token_bytes(tokenizer)
    bytes_B = np.zeros(len(rows), np.int64)
    for index, row in enumerate(rows):
        label_T = tokens.labels(int(row))[1:]
        bytes_B[index] = bytes_V[label_T[label_T >= 0]].sum()
    return bytes_B


def token_bytes(tokenizer: Any) -> np.ndarray:
    """Bytes of the text each token of a fast tokenizer stands for, (V,) int64 by id; 0 for special tokens and unused ids."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    kinds, falls_back = _kinds(tokenizer)
    bytes_V = np.zeros(max(vocabulary.values()) + 1, np.int64)
    ordinary = {}
    for text, index in vocabulary.items():
        if falls_back and _BYTE.fullmatch(text):  # before the others: trainers may list these as special
            bytes_V[index] = 1
        elif index in special:
            continue
        elif index in added:  # kept as it is written
            bytes_V[index] = len(text.encode())
        else:
            ordinary[text] = index
    count = _in_byte_alphabet(ordinary) if "ByteLevel" in kinds else _decoded(ordinary, tokenizer.backend_tokenizer)
    bytes_V[list(count)] = list(count.values())
    return bytes_V


def _kinds(tokenizer: Any) -> tuple[set[str], bool]:
    """(types of what turns text to tokens and back, whether unknown characters become byte tokens)."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = {kind for name in ("normalizer", "pre_tokenizer", "decoder") for kind in _types_in(description[name])}
    return kinds, bool(description["model"].get("byte_fallback"))


def _types_in(part: Any) -> set[str]:
    if isinstance(part, list):
        return {kind for item in part for kind in _types_in(item)}
    if isinstance(part, dict):
        return {str(part.get("type"))} | {kind for item in part.values() for kind in _types_in(item)}
    return set()


def _in_byte_alphabet(vocabulary: Mapping[str, int]) -> dict[int, int]:
    """Bytes by id where each character stands for a byte; a token with another character is text, as in decoding."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    return {index: len(text) if alphabet.issuperset(text) else len(text.encode()) for text, index in vocabulary.items()}


def _decoded(vocabulary: Mapping[str, int], backend: Any) -> dict[int, int]:
    """Bytes by id that a token adds between two words: what decoders do to the ends of a text is not its doing."""
    indices = sorted(vocabulary.values())
    word = next((index for index in indices if backend.decode([index]).isalpha()), None)
    around = [] if word is None else [word]
    texts = backend.decode_batch([[*around, index, *around] for index in indices], skip_special_tokens=False)
    alone = len(backend.decode(around * 2, skip_special_tokens=False).encode())
    return {index: max(0, len(text.encode()) - alone) for index, text in zip(indices, texts, strict=True)}
