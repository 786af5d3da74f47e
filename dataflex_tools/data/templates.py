"""A conversation as the text a model is trained on, and the spans of it that carry labels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean
from dataflex_tools.data.chat import Rendering, Span, answer_header, chat_text, render_chat

# role -> (before the content, after it); of an assistant turn the content and `{eos}` or the end mark carry labels
_ALPACA_SYSTEM = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_NAMED: dict[str, dict[str, tuple[str, str]]] = {
    "alpaca": {
        "system": ("", "\n\n"),
        "user": ("### Instruction:\n", "\n\n"),
        "tool": ("### Input:\n", "\n\n"),
        "assistant": ("### Response:\n", "{eos}\n\n"),
    },
    "chatml": {
        role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "tool", "assistant")
    },
    "plain": {
        "system": ("system: ", "\n"),
        "user": ("user: ", "\n"),
        "tool": ("tool: ", "\n"),
        "assistant": ("assistant: ", "{eos}\n"),
    },
}  # fmt: skip
TEMPLATES = ("auto", *_NAMED)


def render(
    conversation: dict[str, Any], tokenizer: Any, template: str, *, mask_history: bool = False
) -> tuple[str, list[Span]]:
    """(text, spans of it that carry labels, in characters) of a canonical conversation; see `rendering`."""
    found = rendering(conversation, tokenizer, template, mask_history=mask_history)
    return found.text, found.spans


def rendering(conversation: dict[str, Any], tokenizer: Any, template: str, *, mask_history: bool = False) -> Rendering:
    """The text of a canonical conversation and the spans that carry labels: its answers, but those marked `train: False`.

    With `mask_history` only the last answer carries labels. The text holds all special tokens: tokenise it with
    `add_special_tokens=False`. "auto" is the tokenizer's own chat template; prompt-completion and text records use no
    template, only the end-of-sequence token. Raises ConfigError if the tokenizer lacks what is needed, DataError if the
    template does not accept the conversation or leaves out a part of it.
    """
    if "messages" not in conversation:
        start = _bos(tokenizer) + conversation.get("prompt", "")
        text = start + conversation.get("completion", conversation.get("text", "")) + _eos(tokenizer)
        return Rendering(text, [(len(start) if "prompt" in conversation else 0, len(text))], None)
    messages, tools = conversation["messages"], conversation.get("tools")
    if template != "auto":
        found = _render_named(messages, tools, tokenizer, template)
    else:
        _check_has_template(tokenizer)
        found = render_chat(messages, tools, tokenizer)
    return _with_labels(found, trained_turns(messages, mask_history=mask_history), messages)


def document_text(conversation: dict[str, Any], tokenizer: Any) -> str:
    """A conversation as a document that is trained on whole. Raises DataError if it marks a turn as not to be trained on."""
    if "messages" not in conversation:
        return rendering(conversation, tokenizer, "auto").text
    if not all(turn.get("train", True) for turn in conversation["messages"]):
        raise DataError("a turn is marked not to be trained on, and packed text trains on every token; leave pack out")
    _check_has_template(tokenizer)
    return chat_text(conversation["messages"], conversation.get("tools"), tokenizer)


def trained_turns(messages: Sequence[dict[str, Any]], *, mask_history: bool) -> list[int]:
    """The assistant turns that are trained on."""
    answers = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    return [index for index in answers[-1 if mask_history else 0 :] if messages[index].get("train", True)]


def _with_labels(found: Rendering, trained: list[int], messages: Sequence[dict[str, Any]]) -> Rendering:
    """The rendering with the spans of these turns only."""
    if len(trained) == sum(turn["role"] == "assistant" for turn in messages):
        return found
    if found.turns is None:
        raise DataError(
            f"the tokenizer's chat template has {len(found.spans)} {{% generation %}} spans, not one for each answer, so "
            "which of them are not to be trained on is unknown; use template 'chatml'"
        )
    kept = [(span, turn) for span, turn in zip(found.spans, found.turns, strict=True) if turn in trained]
    return replace(found, spans=[span for span, _ in kept], turns=[turn for _, turn in kept])


def answer_headers(
    conversation: dict[str, Any], tokenizer: Any, template: str, text: str, spans: Sequence[Span]
) -> list[Span]:
    """Where the assistant header of each of `spans` lies in `text`, both of `render`; empty spans if there is no header.

    What a template puts between header and answer belongs to the header. Raises DataError if an answer has none before it.
    """
    header, headers, last_end = _header(conversation, tokenizer, template), [], 0
    for number, (start, end) in enumerate(spans, start=1):
        place = text.rfind(header, last_end, start)
        if place < 0:
            place = start - _num_shared(text[last_end:start], header)
        if place == start and header:
            raise DataError(
                f"answer {number} of {len(spans)} does not stand behind the header {header!r}, so it cannot stand without "
                "its prompt; use template 'chatml'"
            )
        headers.append((place, start))
        last_end = end
    return headers


def _num_shared(before: str, header: str) -> int:
    """Characters of the longest start of `header` that `before` ends in: a prompt may open what past answers have not."""
    return next((length for length in range(len(header), 0, -1) if before.endswith(header[:length])), 0)


def _header(conversation: dict[str, Any], tokenizer: Any, template: str) -> str:
    """What stands before an answer and after the turn it answers."""
    if "messages" not in conversation:
        return ""
    if template != "auto":
        return _NAMED[template]["assistant"][0]
    return answer_header(conversation["messages"], conversation.get("tools"), tokenizer)


def check_template(template: str) -> None:
    """Raise ConfigError unless `template` names one."""
    if template not in TEMPLATES:
        raise ConfigError(f"template is {template!r}; {did_you_mean(template, TEMPLATES)}")


def _bos(tokenizer: Any) -> str:
    """The begin-of-sequence token if this tokenizer puts one in front of plain text."""
    first = tokenizer("a")["input_ids"][:1]
    return str(tokenizer.bos_token) if tokenizer.bos_token is not None and first == [tokenizer.bos_token_id] else ""


def _eos(tokenizer: Any) -> str:
    if tokenizer.eos_token is None:
        raise ConfigError("the tokenizer has no eos_token, so no answer would end; set one in tokenizer_config.json")
    return str(tokenizer.eos_token)


def _check_has_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        names = " or ".join(repr(name) for name in TEMPLATES if name != "auto")
        raise ConfigError(
            f"template is 'auto', and the tokenizer has no chat template of its own; set render.template to {names}"
        )


def _render_named(messages: list[dict[str, Any]], tools: Any, tokenizer: Any, template: str) -> Rendering:
    check_template(template)
    held = {"tools"} if tools is not None else set()
    held |= {key for turn in messages for key in ("tool_calls", "reasoning_content") if key in turn}
    if held:
        raise DataError(
            f"the record has {' and '.join(sorted(held))}, which template {template!r} cannot show; use template 'auto'"
        )
    text = _bos(tokenizer)
    if template == "alpaca" and messages[0]["role"] != "system":
        text += _ALPACA_SYSTEM + _NAMED[template]["system"][1]
    spans: list[Span] = []
    answers: list[int] = []
    for index, turn in enumerate(messages):
        before, after = _NAMED[template][turn["role"]]
        if "{eos}" in after:
            after = after.replace("{eos}", _eos(tokenizer))
        text += before
        if turn["role"] == "assistant":
            labelled = turn["content"] + (after if template == "chatml" else after.rstrip("\n"))
            spans.append((len(text), len(text) + len(labelled)))
            answers.append(index)
        text += turn["content"] + after
    return Rendering(text[: spans[-1][1]] if messages[-1]["role"] == "assistant" else text, spans, answers)
