"""One raw record to one canonical conversation: what is trained on, and nothing else.

A conversation is one of `{"messages": [{"role", "content"}, ...]}` (roles system, user, assistant, tool; `turns` says what
else a turn may hold; with `tools` if the record has some), `{"prompt", "completion"}` or `{"text"}`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from dataflex_tools.core.errors import DataError, did_you_mean
from dataflex_tools.data.turns import is_empty, text_of, tools_of, turns_of

# our column names of each form, in the order in which a record is tested for them: required ones, optional ones
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("system", "tools")),
    "sharegpt": (("conversations",), ("system", "tools")),
    "alpaca": (("instruction", "output"), ("input", "history", "system", "tools")),
    "prompt_completion": (("prompt", "completion"), ("tools",)),
    "text": (("text",), ()),
}
FORMS = tuple(COLUMNS)
FUNCTIONS = "functions"  # tools, as OpenAI's data had them at first
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")

# columns that hold a part of the sample which cannot be shown
UNREADABLE = ("images", "videos", "audios", "chat_template_kwargs")


def renamed(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """`record` under our column names; `columns` maps our name to the name in the file."""
    if not columns:
        return dict(record)
    taken = set(columns.values())
    result = {key: value for key, value in record.items() if key not in taken}
    return result | {ours: record[theirs] for ours, theirs in columns.items() if theirs in record}


def detect_form(record: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> str:
    """The form whose required columns `record` has, e.g. "alpaca". Raises DataError if it has none's."""
    names = renamed(record, columns or {})
    for form, (required, _) in COLUMNS.items():
        if all(name in names for name in required):
            return form
    known = "; ".join(f"{form}: {', '.join(required)}" for form, (required, _) in COLUMNS.items())
    raise DataError(
        f"the columns {', '.join(map(str, record)) or '(none)'} fit no form ({known}); "
        "map them with columns: {our name: name in the file}"
    )


def to_conversation(
    record: Mapping[str, Any],
    form: str,
    *,
    columns: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The canonical conversation of a raw record. Raises DataError, which does not name the place, if it has none."""
    names = renamed(record, columns or {})
    for name in COLUMNS[form][0]:
        if names.get(name) is None:
            found = "holds null" if name in names else f"is missing; {did_you_mean(name, map(str, record))}"
            raise DataError(f"column {(columns or {}).get(name, name)!r} of form {form} {found}")
    for name in UNREADABLE:
        if form != "text" and not is_empty(names.get(name)):
            raise DataError(f"the record has {name!r}, which cannot be read; leave it out of the record")
    conversation = _BUILDERS[form](names, tags or {})
    try:
        as_json(conversation).encode("utf-8")
    except (UnicodeEncodeError, ValueError, TypeError) as error:
        raise DataError(f"text that cannot be stored: {error}") from None
    return conversation


def as_json(conversation: Mapping[str, Any]) -> str:
    """One text per conversation. Keys are sorted but those inside tools and calls: their order is part of what is shown."""
    ordered = {key: conversation[key] for key in sorted(conversation)}
    if "messages" in ordered:
        ordered["messages"] = [{key: turn[key] for key in sorted(turn)} for turn in ordered["messages"]]
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sample_id(conversation: Mapping[str, Any]) -> bytes:
    """The 16-byte content hash of a canonical conversation; equal samples share it, wherever they stand."""
    return hashlib.sha256(as_json(conversation).encode("utf-8")).digest()[:16]


def preview(conversation: Mapping[str, Any]) -> str:
    """A conversation as text for people: one paragraph per turn, its role in front."""
    if "messages" in conversation:
        return "\n".join(f"{turn['role']}: {_shown(turn)}" for turn in conversation["messages"])
    if "text" in conversation:
        return str(conversation["text"])
    return f"prompt: {conversation['prompt']}\ncompletion: {conversation['completion']}"


def _shown(turn: Mapping[str, Any]) -> str:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return "\n".join(part for part in (turn.get("reasoning_content"), turn["content"], *calls) if part)


def _chat(names: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The conversation of these turns, with the record's tools."""
    answers = [turn for turn in messages if turn["role"] == "assistant"]
    if not any(turn["content"].strip() or turn.keys() & {"tool_calls", "reasoning_content"} for turn in answers):
        raise DataError("the record has no answer: no assistant turn with text")
    if not any(turn.get("train", True) for turn in answers):
        raise DataError("the record has no answer to train on: all its assistant turns are marked not to be trained on")
    if next(turn["role"] for turn in messages if turn["role"] != "system") == "assistant":
        raise DataError("the record starts with an assistant turn: there is nothing it answers")
    tools, functions = names.get("tools"), names.get(FUNCTIONS)
    if is_empty(tools) and not is_empty(functions):
        tools = [{"type": "function", "function": tool} for tool in tools_of(functions)]
    found = [] if is_empty(tools) else tools_of(tools)
    return {"messages": messages} | ({"tools": found} if found else {})


def _optional(names: Mapping[str, Any], name: str) -> str:
    """The text of a column, "" if it is absent or null."""
    return "" if names.get(name) is None else text_of(names[name], name)


def _system(names: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = _optional(names, "system")
    return [{"role": "system", "content": text}] if text else []


def _alpaca(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    messages = _system(names)
    history = [] if is_empty(names.get("history")) else names["history"]
    for pair in history if isinstance(history, list | tuple) else [history]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"history holds {str(pair)[:60]!r}, wanted pairs of prompt and answer")
        messages.append({"role": "user", "content": text_of(pair[0], "history")})
        messages.append({"role": "assistant", "content": text_of(pair[1], "history")})
    asked = [text_of(names["instruction"], "instruction"), _optional(names, "input")]
    answer = text_of(names["output"], "output")
    if not answer.strip():
        raise DataError("the record has no answer: output is empty")
    messages.append({"role": "user", "content": "\n".join(part for part in asked if part)})
    return _chat(names, [*messages, {"role": "assistant", "content": answer}])


def _sharegpt(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    return _with_system(names, turns_of(names["conversations"], tags, ("from", "value")))


def _messages(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    return _with_system(names, turns_of(names["messages"], tags, ("role", "content")))


def _with_system(names: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    system = _system(names)
    if system and messages[0]["role"] == "system" and messages[0]["content"] != system[0]["content"]:
        raise DataError("the record has a system text and a system turn that differ; leave one of them out")
    return _chat(names, messages if messages[0]["role"] == "system" else system + messages)


def _prompt_completion(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    prompt, completion = names["prompt"], names["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        asked, answer = (turns_of(part, tags, ("role", "content")) for part in (prompt, completion))
        for turn in asked:
            if turn["role"] == "assistant":
                turn["train"] = False
        return _chat(names, asked + answer)
    answer_text = text_of(completion, "completion")
    if not answer_text.strip():
        raise DataError("the record has no answer: completion is empty")
    if not is_empty(names.get("tools")):
        raise DataError("the record has tools beside a prompt of plain text, which cannot show them; give turns")
    return {"prompt": text_of(prompt, "prompt"), "completion": answer_text}


def _plain(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    text = text_of(names["text"], "text")
    if not text.strip():
        raise DataError("the record has no answer: text is empty")
    return {"text": text}


_BUILDERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], dict[str, Any]]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "text": _plain,
}
