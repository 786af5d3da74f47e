"""One raw record to one canonical conversation: what is trained on, and nothing else.

A conversation is one of `{"messages": [{"role", "content"}, ...]}` (roles system, user, assistant, tool; with `tools`
if the record has some), `{"prompt", "completion"}` or `{"text"}`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from dataflex_tools.core.errors import DataError, did_you_mean
from dataflex_tools.core.fingerprint import canonical_json

# our column names of each form, in the order in which a record is tested for them: required ones, optional ones
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("system", "tools")),
    "sharegpt": (("conversations",), ("system", "tools")),
    "alpaca": (("instruction", "output"), ("input", "history", "system")),
    "prompt_completion": (("prompt", "completion"), ()),
    "text": (("text",), ()),
}
FORMS = tuple(COLUMNS)
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")

_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "function_call": "assistant", "tool": "tool",
    "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
_TAG_ROLES = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "assistant",
    "system_tag": "system",
}  # fmt: skip


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
    conversation = _BUILDERS[form](names, tags or {})
    try:
        canonical_json(conversation).encode("utf-8")
    except (UnicodeEncodeError, ValueError, TypeError) as error:
        raise DataError(f"text that cannot be stored: {error}") from None
    return conversation


def sample_id(conversation: Mapping[str, Any]) -> bytes:
    """The 16-byte content hash of a canonical conversation; equal samples share it, wherever they stand."""
    return hashlib.sha256(canonical_json(conversation).encode("utf-8")).digest()[:16]


def preview(conversation: Mapping[str, Any]) -> str:
    """A conversation as text for people: one paragraph per turn, its role in front."""
    if "messages" in conversation:
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in conversation["messages"])
    if "text" in conversation:
        return str(conversation["text"])
    return f"prompt: {conversation['prompt']}\ncompletion: {conversation['completion']}"


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        return "".join(_text(part.get("text"), name) for part in value)
    raise DataError(f"{name} holds {type(value).__name__} {str(value)[:60]!r}, wanted text")


def _answered(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    spoken = [turn["role"] for turn in messages if turn["role"] != "system"]
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in messages):
        raise DataError("the record has no answer: no assistant turn with text")
    if spoken[0] == "assistant":
        raise DataError("the record starts with an assistant turn: there is nothing it answers")
    return messages


def _alpaca(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    messages = _system(names)
    for pair in names.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"history holds {str(pair)[:60]!r}, wanted pairs of prompt and answer")
        messages.append({"role": "user", "content": _text(pair[0], "history")})
        messages.append({"role": "assistant", "content": _text(pair[1], "history")})
    asked = [_text(names["instruction"], "instruction"), _text(names.get("input") or "", "input")]
    answer = _text(names["output"], "output")
    if not answer.strip():
        raise DataError("the record has no answer: output is empty")
    messages.append({"role": "user", "content": "\n".join(part for part in asked if part)})
    return {"messages": [*messages, {"role": "assistant", "content": answer}]}


def _system(names: Mapping[str, Any]) -> list[dict[str, str]]:
    text = _text(names.get("system") or "", "system")
    return [{"role": "system", "content": text}] if text else []


def _sharegpt(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    return _chat(names, names["conversations"], tags, ("from", "value"))


def _messages(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    return _chat(names, names["messages"], tags, ("role", "content"))


def _chat(names: Mapping[str, Any], turns: Any, tags: Mapping[str, str], keys: tuple[str, str]) -> dict[str, Any]:
    messages = _turns(turns, tags, keys)
    if messages and messages[0]["role"] != "system":
        messages = _system(names) + messages
    conversation: dict[str, Any] = {"messages": _answered(messages)}
    if tools := names.get("tools"):
        conversation["tools"] = _tools(tools)
    return conversation


def _tools(tools: Any) -> list[Any]:
    try:
        value = json.loads(tools) if isinstance(tools, str) else tools
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise DataError(f"tools holds {str(tools)[:60]!r}, wanted a list of tool definitions")
    return value


def _turns(turns: Any, tags: Mapping[str, str], keys: tuple[str, str]) -> list[dict[str, str]]:
    if isinstance(turns, Mapping) and all(isinstance(column, list) for column in turns.values()):
        # the `datasets` library stores a list of records as a record of lists
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"the conversation holds {str(turns)[:60]!r}, wanted a list of turns")
    roles = _ROLES | {tags[tag]: role for tag, role in _TAG_ROLES.items() if tag in tags}
    return [_turn(turn, roles, tags, keys) for turn in turns]


def _turn(turn: Any, roles: Mapping[str, str], tags: Mapping[str, str], keys: tuple[str, str]) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError(f"a turn holds {type(turn).__name__} {str(turn)[:60]!r}, wanted an object with a role")
    if "role_tag" not in tags and keys[0] not in turn:
        keys = ("role", "content") if "role" in turn else keys
    role_key, content_key = tags.get("role_tag", keys[0]), tags.get("content_tag", keys[1])
    for key in (role_key, content_key):
        if key not in turn:
            raise DataError(f"a turn has the keys {', '.join(map(str, turn))}, wanted {role_key!r} and {content_key!r}")
    role = roles.get(str(turn[role_key]))
    if role is None:
        raise DataError(f"a turn has the role {turn[role_key]!r}; {did_you_mean(str(turn[role_key]), roles)}")
    if turn.get("tool_calls") and not turn[content_key]:
        raise DataError("a turn has tool_calls and no content; write the call into its content")
    return {"role": role, "content": _text(turn[content_key], f"a turn of {role}")}


def _prompt_completion(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    prompt, completion = names["prompt"], names["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        asked, answer = _turns(prompt, tags, ("role", "content")), _turns(completion, tags, ("role", "content"))
        if any(turn["role"] == "assistant" for turn in asked):
            raise DataError("the prompt has assistant turns, which would be trained on; give the record as text")
        return {"messages": _answered(asked + answer)}
    answer_text = _text(completion, "completion")
    if not answer_text.strip():
        raise DataError("the record has no answer: completion is empty")
    return {"prompt": _text(prompt, "prompt"), "completion": answer_text}


def _plain(names: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    text = _text(names["text"], "text")
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
