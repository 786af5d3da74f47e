"""Prompts of a target's samples: what stands before the last answer of each, as tokens and as turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.corpus import Corpus
from dataflex_tools.data.templates import trained_turns
from dataflex_tools.data.tokenized import IGNORED, Tokens

# T tokens of a prompt


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is answered. `input_ids`: (T,) int32, as trained on; `end_ids`: the tokens that end an answer; `reference`:
    the text of the sample's own answer."""

    row: int
    sample_id: str
    input_ids: np.ndarray
    end_ids: tuple[int, ...]
    messages: tuple[Mapping[str, str], ...]
    reference: str


class Prompts:
    """The prompts of a tokenised corpus, by row. An answer ends with the end-of-sequence token or with the special token
    that ends the sample's own answer.

    Raises ConfigError if no answer of the corpus ends with either, so that drawn ones would hardly end.
    """

    def __init__(self, corpus: Corpus, tokens: Tokens, tokenizer: Any) -> None:
        self._corpus, self.tokens, self.tokenizer = corpus, tokens, tokenizer
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = added | set(tokenizer.all_special_ids)
        labelled = tokens.rows_with_labels()
        if len(labelled) and not any(self._ending(int(row)) for row in labelled):
            raise ConfigError(
                f"none of the {len(labelled)} target answers ends with a special token of the tokenizer, so drawn answers "
                "would not end either; use a template whose end of turn the tokenizer knows, or raise render.cutoff_len"
            )

    def __getitem__(self, row: int) -> Prompt:
        """The prompt of a row that has labels. Raises DataError for a record without prompt."""
        labels_T, ids_T = self.tokens.labels(row), self.tokens.input_ids(row)
        start_K = _starts_of_answers(labels_T)
        turns, reference = self._turns(row, len(start_K))
        end_ids = {self.tokenizer.eos_token_id, *self._ending(row)} - {None}
        return Prompt(
            row, self.tokens.ids_N16[row].tobytes().hex(), ids_T[: start_K[-1]], tuple(sorted(end_ids)), turns, reference
        )  # fmt: skip

    def _ending(self, row: int) -> list[int]:
        """The last special token of the row's answer, if it has one."""
        labels_T = self.tokens.labels(row)
        last = labels_T[_starts_of_answers(labels_T)[-1] :]
        return [int(token) for token in last if int(token) in self._special][-1:]

    def _turns(self, row: int, num_answers: int) -> tuple[tuple[Mapping[str, str], ...], str]:
        """(the turns before answer number `num_answers`, its text): a row cut to length may have lost later ones."""
        conversation = self._corpus.conversation(row)
        if "prompt" in conversation:
            return ({"role": "user", "content": conversation["prompt"]},), conversation["completion"]
        if "messages" not in conversation:
            raise DataError(f"{self._corpus.place(row)} is plain text, which has no prompt; leave it out of the target")
        messages = conversation["messages"]
        answers = trained_turns(messages, mask_history=self.tokens.mask_history)
        if num_answers > len(answers):
            raise DataError(
                f"{self._corpus.place(row)} has {len(answers)} answers to train on and labels in {num_answers} places, so "
                "which turn is the answer is unknown; use template 'chatml'"
            )
        index = answers[num_answers - 1]
        if "tool_calls" in messages[index] or not messages[index]["content"]:
            raise DataError(
                f"{self._corpus.place(row)} is answered with a tool call, and rewards compare texts; leave it out of the "
                "target"
            )
        return tuple(messages[:index]), messages[index]["content"]


def _starts_of_answers(labels_T: np.ndarray) -> np.ndarray:
    """First position of each run of labels, ascending."""
    is_label_T = labels_T != IGNORED
    return np.flatnonzero(is_label_T & ~np.concatenate([[False], is_label_T[:-1]]))
