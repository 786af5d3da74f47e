"""Marks around the texts of a conversation, which show where a chat template puts them, and whether it does."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THINK_END = "</think>"
TOOLS = -1  # the turn that marks in tool definitions belong to


def pieces(turn: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what it is, the key it is under, its text) of the texts of a turn, without white space around them.

    In the order in which they are shown. What an answer holds before `</think>` is reasoning.
    """
    content = turn["content"]
    found = [("reasoning", "reasoning_content", turn.get("reasoning_content", ""))]
    if turn["role"] == "assistant" and THINK_END in content:
        thought, _, content = content.rpartition(THINK_END)
        found.append(("reasoning", "content", thought.rpartition("<think>")[2]))
    found.append(("content", "content", content))
    return [(name, key, text.strip()) for name, key, text in found if text.strip()]


def _place(content: str, text: str, name: str) -> int:
    """Where a piece of an answer's content begins."""
    thought, thought_end, _ = content.rpartition(THINK_END)
    if name == "reasoning":
        return thought.rindex(text)
    return content.index(text, len(thought) + len(thought_end))


class Marker:
    """Sets numbered marks; `names[number]` is (turn, what the marked text is)."""

    def __init__(self, word: str) -> None:
        self._word = word
        self.names: list[tuple[int, str]] = []

    def turn(self, index: int, turn: Mapping[str, Any]) -> dict[str, Any]:
        """The turn with a mark before and after each text, inside the white space around it, and in its tool calls."""
        marked = dict(turn)
        for name, key, text in pieces(turn):
            value = marked[key]
            at = _place(value, text, name) if key == "content" and turn["role"] == "assistant" else value.index(text)
            end = at + len(text)
            marked[key] = value[:at] + self._mark(index, name) + text + self._mark(index, name) + value[end:]
        if "tool_calls" in turn:
            marked["tool_calls"] = [self._call(index, call) for call in turn["tool_calls"]]
        return marked

    def tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        """The definitions with a mark before each name."""
        return None if tools is None else [self._tool(tool) for tool in tools]

    def _tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        if "function" in tool:
            return {**tool, "function": self._tool(tool["function"])}
        return {**tool, "name": self._mark(TOOLS, str(tool["name"])) + tool["name"]}

    def _call(self, index: int, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        name = self._mark(index, "tool_calls") + function["name"]
        marked = {**function, "name": name, "arguments": self._leaves(index, function["arguments"])}
        return {**call, "function": marked}

    def _leaves(self, index: int, value: Any) -> Any:
        """A mark before every text and key."""
        if isinstance(value, str):
            return self._mark(index, "tool_calls") + value
        if isinstance(value, list):
            return [self._leaves(index, item) for item in value]
        if isinstance(value, Mapping):
            return {self._mark(index, "tool_calls") + key: self._leaves(index, item) for key, item in value.items()}
        return value

    def _mark(self, index: int, name: str) -> str:
        self.names.append((index, name))
        return f"{self._word}{len(self.names) - 1}w"


@dataclass(frozen=True)
class Marked:
    """A rendering without its marks, and where each of them stood: `places[number]`, in characters of `text`."""

    text: str
    names: list[tuple[int, str]]
    places: dict[int, int]

    @classmethod
    def of(cls, rendered: str, word: str, names: list[tuple[int, str]]) -> "Marked":
        """Take the marks out of a rendering."""
        kept: list[str] = []
        places: dict[int, int] = {}
        end = length = 0
        for found in re.finditer(rf"{word}(\d+)w", rendered):
            kept.append(rendered[end : found.start()])
            length += len(kept[-1])
            places.setdefault(int(found[1]), length)
            end = found.end()
        return cls("".join([*kept, rendered[end:]]), names, places)

    def missing(self) -> list[tuple[int, str]]:
        """(turn, what it is) of the marked texts that are not shown."""
        return [name for number, name in enumerate(self.names) if number not in self.places]

    def first(self, index: int) -> int | None:
        """Where the first shown text of a turn begins."""
        return min((self.places[number] for number in self._of(index)), default=None)

    def last(self, index: int, other: "Marked") -> tuple[int, int] | None:
        """Where the last mark of a turn stands, here and in another rendering that shows it."""
        shared = [number for number in self._of(index) if number in other.places]
        if not shared:
            return None
        number = max(shared, key=lambda number: (self.places[number], number))
        return self.places[number], other.places[number]

    def last_before(self, index: int, other: "Marked") -> tuple[int, int]:
        """Where the last mark before a turn stands, here and in another rendering that shows it; the starts if none."""
        limit = self.first(index)
        best = (0, 0)
        for number, (turn, _) in enumerate(self.names):
            if 0 <= turn < index and number in self.places and number in other.places:
                place = self.places[number]
                if place >= best[0] and (limit is None or place <= limit):
                    best = place, other.places[number]
        return best

    def _of(self, index: int) -> list[int]:
        return [number for number, (turn, _) in enumerate(self.names) if turn == index and number in self.places]


def shared_start(one: str, other: str, tokens: Sequence[str]) -> int | None:
    """Length of what two texts have in common at their start, up to a border of one of `tokens`.

    None if they part inside plain text, where the border of what they share is unknown.
    """
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if length is None:
        return min(len(one), len(other))
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    borders = [
        found.start() for text in (one, other) for found in pattern.finditer(text) if found.start() <= length < found.end()
    ]
    return min(borders, default=None)
