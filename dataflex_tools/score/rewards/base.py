"""What is rewarded, and what a reward is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dataflex_tools.core.errors import FlextoolsError
from dataflex_tools.core.fingerprint import digest


class RewardError(FlextoolsError):
    """A reward that could not be had, or is no number; those that came before it are stored."""


@dataclass(frozen=True)
class RewardRequest:
    """An answer to be rewarded: the turns it answers ({role, content}), its text, the text of the target's own answer."""

    messages: tuple[Mapping[str, str], ...]
    answer: str
    reference: str

    @property
    def key(self) -> str:
        """Equal requests have equal keys (64 hex digits)."""
        return digest({"messages": [*self.messages], "answer": self.answer, "reference": self.reference})

    @property
    def prompt(self) -> str:
        """The turns as one text: the content alone if there is one turn, else a paragraph each with its role in front."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)

    @property
    def shown(self) -> str:
        """The answer's beginning, for messages."""
        return repr(self.answer[:60])


class Reward(Protocol):
    """Tells what answers are worth."""

    def __call__(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, float]]:
        """(place in `requests`, reward), each place once, as they come in and in any order.

        Raises RewardError for one that cannot be had, after those that can still be had have been given.
        """
        ...
