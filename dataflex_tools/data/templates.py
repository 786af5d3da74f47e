"""A conversation as the text a model is trained on, and the spans of it that carry labels."""

import re
from collections.abc import Sequence
from typing import Any

from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean

Span = tuple[int, int]

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

# some chat templates print the day; a fixed one keeps the text, and so its tokens, the same on every day
_FIXED = {"date_string": "26 Jul 2024"}


def render(conversation: dict[str, Any], tokenizer: Any, template: str) -> tuple[str, list[Span]]:
    """(text, spans of it that carry labels, in characters) of a canonical conversation.

    The text holds all special tokens: tokenise it with `add_special_tokens=False`. "auto" is the tokenizer's own chat
    template; prompt-completion and text records use no template, only the end-of-sequence token. Raises ConfigError if
    the tokenizer lacks what is needed, DataError if the template does not accept the conversation.
    """
    if "messages" not in conversation:
        start = _bos(tokenizer) + conversation.get("prompt", "")
        text = start + conversation.get("completion", conversation.get("text", "")) + _eos(tokenizer)
        return text, [(len(start) if "prompt" in conversation else 0, len(text))]
    if template != "auto":
        return _render_named(conversation, tokenizer, template)
    return _render_auto(conversation["messages"], tokenizer, conversation.get("tools"))


def answer_headers(
    conversation: dict[str, Any], tokenizer: Any, template: str, text: str, spans: Sequence[Span]
) -> list[Span]:
    """Where the assistant header of each of `spans` lies in `text`, both of `render`; empty spans if there is no header.

    What a template puts between header and answer belongs to the header. Raises DataError if an answer has none before it.
    """
    header, headers, last_end = _header(conversation, tokenizer, template), [], 0
    for number, (start, end) in enumerate(spans, start=1):
        if (place := text.rfind(header, last_end, start)) < 0:
            raise DataError(
                f"answer {number} of {len(spans)} does not stand behind the header {header!r}, so it cannot stand without "
                "its prompt; use template 'chatml'"
            )
        headers.append((place, start))
        last_end = end
    return headers


def _header(conversation: dict[str, Any], tokenizer: Any, template: str) -> str:
    """What stands before an answer and after the turn it answers."""
    if "messages" not in conversation:
        return ""
    if template != "auto":
        return _NAMED[template]["assistant"][0]
    messages, tools = conversation["messages"], conversation.get("tools")
    asked = messages[: next((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), len(messages))]
    before, after = (_apply(asked, tokenizer, tools, add_generation_prompt=prompts) for prompts in (False, True))
    if not after.startswith(before):
        raise DataError(
            "the tokenizer's chat template renders a turn differently before an answer, so where the answer's header starts "
            "is unknown; use template 'chatml'"
        )
    return str(after[len(before) :])


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


def _render_named(conversation: dict[str, Any], tokenizer: Any, template: str) -> tuple[str, list[Span]]:
    check_template(template)
    if "tools" in conversation:
        raise DataError(f"the record has tools, which template {template!r} cannot show; use template 'auto'")
    turns, text, spans = conversation["messages"], _bos(tokenizer), []
    if template == "alpaca" and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": _ALPACA_SYSTEM}, *turns]
    for turn in turns:
        before, after = _NAMED[template][turn["role"]]
        if "{eos}" in after:
            after = after.replace("{eos}", _eos(tokenizer))
        text += before
        if turn["role"] == "assistant":
            labelled = turn["content"] + (after if template == "chatml" else after.rstrip("\n"))
            spans.append((len(text), len(text) + len(labelled)))
        text += turn["content"] + after
    return (text[: spans[-1][1]] if turns[-1]["role"] == "assistant" else text), spans


def _render_auto(messages: list[dict[str, str]], tokenizer: Any, tools: Any) -> tuple[str, list[Span]]:
    if not tokenizer.chat_template:
        names = " or ".join(repr(name) for name in TEMPLATES if name != "auto")
        raise ConfigError(
            f"template is 'auto', and the tokenizer has no chat template of its own; set render.template to {names}"
        )
    text = _apply(messages, tokenizer, tools)
    if re.search(r"\{%-?\s*generation\b", tokenizer.get_chat_template(tools=tools)):
        return text, _marked_spans(messages, tokenizer, tools)
    spans = []
    for index, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        start = _apply(messages[:index], tokenizer, tools, add_generation_prompt=True)
        whole = text if index == len(messages) - 1 else _apply(messages[: index + 1], tokenizer, tools)
        if not (whole.startswith(start) and text.startswith(whole)):
            raise DataError(
                f"the tokenizer's chat template renders turn {index + 1} of {len(messages)} differently once more "
                "turns follow, so where its answer lies is unknown; use 'chatml' or a template with {% generation %}"
            )
        spans.append((len(start), len(whole)))
    return text, spans


def _marked_spans(messages: list[dict[str, str]], tokenizer: Any, tools: Any) -> list[Span]:
    """Spans inside {% generation %} marks, found from the token mask that transformers makes of them."""
    encoded = _apply(
        messages, tokenizer, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )  # fmt: skip
    spans: list[Span] = []
    is_open = False
    for (start, end), is_answer in zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True):
        if is_answer:
            spans[-1:] = [(spans[-1][0], end)] if is_open else [*spans[-1:], (start, end)]
        is_open = bool(is_answer)
    return spans


def _apply(messages: Sequence[dict[str, str]], tokenizer: Any, tools: Any, **options: Any) -> Any:
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tools=tools, **({"tokenize": False} | _FIXED | options)
        )  # fmt: skip
    except (TemplateError, TypeError, IndexError, KeyError) as error:
        roles = ", ".join(turn["role"] for turn in messages)
        raise DataError(f"the tokenizer's chat template refuses the turns {roles}: {error}") from None
