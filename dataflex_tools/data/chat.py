"""A conversation through the tokenizer's own chat template: its text, where its answers lie, and that nothing is missing.

Answers are looked for in the one rendering of the whole conversation. Where the conversation up to an answer, rendered
alone, is a prefix of it, the answer begins after that. Many templates render a turn differently once others follow (an
empty think block or an end token in the last turn only, a think tag in the prompt for an answer only). Then a mark is set
around each text in a second rendering, and only what stands between two marks is compared.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.marks import TOOLS, Marked, Marker, pieces, shared_start
from dataflex_tools.data.turns import parse_calls

Span = tuple[int, int]
Turn = dict[str, Any]

# some chat templates print the day; a fixed one keeps the text, and so its tokens, the same on every day
DAY = datetime(2024, 7, 26)
_OTHER_DAY = datetime(1999, 1, 3, 13, 47, 11)  # differs in every part
_FIXED = {"date_string": DAY.strftime("%d %b %Y")}
_NOW = re.compile(r"""\bstrftime_now\(\s*("[^"\\]*"|'[^'\\]*')\s*\)""")
_KEYS = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")
_NO_CHANCE = 16  # characters
_REPAIR = "use a template that shows it, or take it out of the record"


@dataclass(frozen=True)
class Rendering:
    """The text of a conversation and the spans of its answers, in characters.

    `turns`: the turn each span belongs to, None if that is unknown. `lost_reasoning`: the template leaves out the
    reasoning of an answer that another user turn follows, as it does when the model is asked.
    """

    text: str
    spans: list[Span]
    turns: list[int] | None
    lost_reasoning: bool = False


def day_of(tokenizer: Any) -> str | None:
    """The fixed day, "2024-07-26", if a chat template of the tokenizer would print today's; else None."""
    found = tokenizer.chat_template or {}
    sources = found.values() if isinstance(found, dict) else [found]
    prints = any("strftime_now" in source and _prints_day(source, tokenizer) for source in sources)
    return DAY.date().isoformat() if prints else None


def _prints_day(source: str, tokenizer: Any) -> bool:
    """Whether another day is another text; templates that are given a date do not ask for it."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    for tools in (None, [tool]):
        chats = [_Chat(turns, tools, tokenizer, fixed=_with_day(source, day)) for day in (DAY, _OTHER_DAY)]
        try:
            if chats[0].text != chats[1].text:
                return True
        except DataError:
            return True  # refused: nothing is known of it
    return False


def render_chat(messages: Sequence[Turn], tools: Any, tokenizer: Any) -> Rendering:
    """The conversation as the template shows it, with the span of every assistant turn.

    Raises DataError if the template refuses it, leaves a part of it out, or does not let its answers be found.
    """
    chat = _with_shown_calls(_Chat(list(messages), tools, tokenizer))
    lost_reasoning = chat.check_shown()
    answers = chat.answers()
    if _marks_answers(chat.source):
        spans = chat.generated()
        return Rendering(chat.text, spans, answers if len(spans) == len(answers) else None, lost_reasoning)
    return Rendering(chat.text, [chat.span(index) for index in answers], answers, lost_reasoning)


def chat_text(messages: Sequence[Turn], tools: Any, tokenizer: Any) -> str:
    """The conversation as the template shows it. Raises DataError if it refuses it or leaves a part of it out."""
    chat = _with_shown_calls(_Chat(list(messages), tools, tokenizer))
    chat.check_shown()
    return chat.text


def answer_header(messages: Sequence[Turn], tools: Any, tokenizer: Any) -> str:
    """What the template adds to ask for the first answer. Raises DataError if it cannot be told from the turn before."""
    return _Chat(list(messages), tools, tokenizer).prompt


@lru_cache(maxsize=8)
def _marks_answers(source: str) -> bool:
    return re.search(r"\{%-?\s*generation\b", source) is not None


@lru_cache(maxsize=8)
def _with_day(source: str, day: datetime = DAY) -> str:
    """The template with a fixed day in the place of today's. Raises ConfigError if that cannot be written in."""
    fixed = _NOW.sub(lambda found: json.dumps(day.strftime(found[1][1:-1])), source)
    rest = re.sub(r"\{#.*?#\}|\bstrftime_now\s+is\s+(not\s+)?defined\b", "", fixed, flags=re.DOTALL)
    if "strftime_now" in rest:
        raise ConfigError(
            "the tokenizer's chat template asks for today's date in a way that cannot be fixed, so its tokens would differ "
            "from day to day; write strftime_now('FORMAT') or a date into it, or set render.template to 'chatml'"
        )
    return fixed


def _is_shown_as_it_is(messages: Sequence[Turn], text: str) -> bool:
    """Whether all texts surely stand in the rendering, in their order; system texts anywhere."""
    end = 0
    for turn in messages:
        if "tool_calls" in turn or "is_call" in turn:
            return False
        for _, _, piece in pieces(turn):
            is_system = turn["role"] == "system"
            at = text.find(piece, 0 if is_system else end)
            # roles that templates pass over; a short text may stand in a header by chance
            if at < 0 or (turn["role"] in ("system", "tool") and len(piece) < _NO_CHANCE):
                return False
            end = end if is_system else at + len(piece)
    return True


def _with_shown_calls(chat: "_Chat") -> "_Chat":
    """The chat with its tool calls handed over in the way that the template shows them in."""
    callers = [turn for turn in chat.messages if "tool_calls" in turn or "is_call" in turn]
    if not callers:
        return chat
    # templates differ in whether arguments are objects or text; a call that came as text may stay it
    ways = ["objects", "texts", *(["content"] if all("is_call" in turn for turn in callers) else [])]
    refusal: DataError | None = None
    for way in ways:
        candidate = replace(chat, calls=way)
        try:
            if candidate.shows_calls():
                return candidate
        except DataError as error:
            refusal = refusal or error
    raise refusal or DataError(
        f"the tokenizer's chat template leaves out the tool_calls of an answer, or has no form of JSON for them; {_REPAIR}"
    )


def _handed_over(turn: Turn, calls: str) -> Turn:
    """A turn as templates know it."""
    shown = {key: turn[key] for key in _KEYS if key in turn}
    if "is_call" in turn and calls != "content":
        shown |= {"content": "", "tool_calls": parse_calls(turn["content"])}
    return shown


def _with_text_arguments(turn: Turn) -> Turn:
    if "tool_calls" not in turn:
        return turn
    calls = []
    for call in turn["tool_calls"]:
        text = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**turn, "tool_calls": calls}


@dataclass(frozen=True, eq=False)
class _Chat:
    """A conversation and its template; `calls`: whether arguments of calls are handed over as objects, texts or content."""

    messages: list[Turn]
    tools: Any
    tokenizer: Any
    calls: str = "objects"
    fixed: str | None = None

    @cached_property
    def source(self) -> str:
        """The template, with the fixed day written into it; the `fixed` one if it is given."""
        if self.fixed is not None:
            return self.fixed
        try:
            return _with_day(self.tokenizer.get_chat_template(tools=self.tools))
        except ValueError as error:
            raise ConfigError(f"the tokenizer's chat templates cannot be used: {error}") from None

    @cached_property
    def text(self) -> str:
        """The whole conversation."""
        return self._apply(self._turns, self.tools)

    def answers(self) -> list[int]:
        """The assistant turns."""
        return [index for index, turn in enumerate(self.messages) if turn["role"] == "assistant"]

    @cached_property
    def _turns(self) -> list[Turn]:
        turns = [_handed_over(turn, self.calls) for turn in self.messages]
        return [_with_text_arguments(turn) for turn in turns] if self.calls == "texts" else turns

    @cached_property
    def _marks(self) -> tuple[str, list[Turn], Any, list[tuple[int, str]]]:
        """(the word that marks begin with, marked turns, marked tools, what is marked)."""
        whole = json.dumps([self.messages, self.tools])
        # templates leave letters and digits as they are
        word = next(word for number in range(len(whole) + 1) if (word := f"zq{number}jx") not in whole)
        marker = Marker(word)
        turns = [marker.turn(index, _handed_over(turn, self.calls)) for index, turn in enumerate(self.messages)]
        turns = [_with_text_arguments(turn) for turn in turns] if self.calls == "texts" else turns
        return word, turns, marker.tools(self.tools), marker.names

    @cached_property
    def _marked(self) -> Marked:
        return self._rendered(len(self.messages))

    def _rendered(self, end: int, *, asks: bool = False) -> Marked:
        """The first `end` turns with marks; with what asks for an answer after them if it `asks`."""
        word, turns, tools, names = self._marks
        return Marked.of(self._apply(turns[:end], tools, add_generation_prompt=asks), word, names)

    def _apply(self, turns: Sequence[Turn], tools: Any, **options: Any) -> str:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        options = {"tokenize": False, "chat_template": self.source} | _FIXED | options
        try:
            return str(self.tokenizer.apply_chat_template(list(turns), tools=tools, **options))
        except TemplateSyntaxError as error:
            raise ConfigError(f"the tokenizer's chat template is broken at line {error.lineno}: {error}") from None
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(f"the tokenizer's chat template refuses the turns {roles}: {error}") from None

    def shows_calls(self) -> bool:
        """Whether all calls are in the text, and their arguments not as Python writes an object."""
        if any(name == "tool_calls" for _, name in self._marked.missing()):
            return False
        calls = [call for turn in self._turns for call in turn.get("tool_calls", ())]
        objects = [call["function"]["arguments"] for call in calls if call["function"]["arguments"]]
        return not any(isinstance(each, dict) and repr(each) in self.text for each in objects)

    def check_shown(self) -> bool:
        """Raise DataError if the template leaves out a part; returns whether it left out reasoning that it may."""
        if self.tools is None and _is_shown_as_it_is(self.messages, self.text):
            return False
        lost_reasoning = False
        for index, name in self._marked.missing():
            if index == TOOLS:
                raise DataError(f"the tokenizer's chat template leaves out the record's tools ({name}); {_REPAIR}")
            if name == "reasoning" and any(turn["role"] == "user" for turn in self.messages[index + 1 :]):
                lost_reasoning = True
                continue
            raise DataError(
                f"the tokenizer's chat template leaves out the {name} of turn {index + 1} of {len(self.messages)} "
                f"({self.messages[index]['role']}); {_REPAIR}"
            )
        return lost_reasoning

    def span(self, index: int) -> Span:
        """An assistant turn: from the end of its header to the end of the turn."""
        is_last = index == len(self.messages) - 1
        asked = self._apply(self._turns[:index], self.tools, add_generation_prompt=True)
        start = len(asked) if self.text.startswith(asked) else self._start(index)
        if is_last:
            return start, len(self.text)
        whole = self._apply(self._turns[: index + 1], self.tools)
        is_prefix = self.text.startswith(whole) and len(whole) > start
        return start, len(whole) if is_prefix else self._end(index)

    def _start(self, index: int) -> int:
        """Told from what stands between the last mark before the answer and its own first one."""
        self._check_marked(index)
        asked = self._rendered(index, asks=True)
        here, there = self._marked.last_before(index, asked)
        begins = self._marked.first(index)
        text, prompt = self.text[here:begins], asked.text[there:]
        if text.startswith(prompt):
            return here + len(prompt)
        if begins is not None and prompt.startswith(text):
            return begins
        shared = self._shared(text, prompt)
        if shared is None:
            raise self._unknown(index, f"{text[-60:]!r} stands before it, where an answer is asked for {prompt[-60:]!r}")
        return here + shared

    def _end(self, index: int) -> int:
        """Told from what stands after the answer's own last mark, with and without the turns that follow."""
        self._check_marked(index)
        alone = self._rendered(index + 1)
        places = self._marked.last(index, alone)
        if places is None:
            raise self._unknown(index, "it has no text to look for")
        text, ending = self.text[places[0] :], alone.text[places[1] :]
        if text.startswith(ending):
            return places[0] + len(ending)
        before_prompt = self._ending_before_prompt(index)
        if before_prompt and text.startswith(before_prompt):
            return places[0] + len(before_prompt)
        shared = self._shared(text, ending)
        if shared is None:
            raise self._unknown(index, f"as the last turn it ends in {ending[:60]!r}, here in {text[:60]!r}")
        return places[0] + shared

    def _ending_before_prompt(self, index: int) -> str | None:
        """What ends the answer where another is asked for after it: a last turn may end in something else."""
        try:
            asked = self._rendered(index + 1, asks=True)
            prompt = self.prompt
        except DataError:
            return None  # this template takes no two answers in a row
        places = asked.last(index, asked)
        ending = asked.text[places[0] :] if places is not None else ""
        return ending.removesuffix(prompt) if prompt and ending.endswith(prompt) else None

    @cached_property
    def prompt(self) -> str:
        """What the template adds to ask for the first answer."""
        end = self.answers()[0]
        before, after = (self._apply(self._turns[:end], self.tools, add_generation_prompt=asks) for asks in (False, True))
        shared = len(before) if after.startswith(before) else self._shared(after, before)
        if shared is None:
            raise DataError(
                "the tokenizer's chat template renders a turn differently before an answer, so where the answer's header "
                "starts is unknown; use template 'chatml'"
            )
        return after[shared:]

    def generated(self) -> list[Span]:
        """The spans inside {% generation %} marks."""
        # not through the tokenizer, whose tokens may reach over the ends of a span
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            [self._turns],
            self.tools,
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
            **_FIXED,
        )
        assert texts == [self.text]
        return [(start, end) for start, end in spans[0] if end > start]

    def _shared(self, one: str, other: str) -> int | None:
        return shared_start(one, other, list(self.tokenizer.get_added_vocab()))

    def _check_marked(self, index: int) -> None:
        if self._marked.text != self.text:
            raise self._unknown(index, "the template changes texts by what they hold")

    def _unknown(self, index: int, why: str) -> DataError:
        return DataError(
            f"the tokenizer's chat template renders turn {index + 1} of {len(self.messages)} differently once more turns "
            f"follow, so where its answer lies is unknown ({why}); use 'chatml' or a template with {{% generation %}}"
        )
