"""The turns of a raw conversation in one form: role, text, reasoning, tool calls, and whether a turn is trained on.

A turn is `{"role", "content"}` and, where the record has it, `reasoning_content`, `tool_calls` (arguments as an object),
`name`, `tool_call_id`, `"train": False` for an answer that is marked as not to be trained on, and `"is_call": True` for
an answer whose content is a tool call written as JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex_tools.core.errors import DataError, did_you_mean

_CALL = "call"  # an assistant turn whose content is a call as JSON
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": _CALL,
    "tool_call": _CALL,
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_TAG_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": _CALL,
    "system_tag": "system",
}
# of OpenAI, axolotl (two names), ms-swift (two names), LLaMA-Factory
_MARKS = ("weight", "train", "training", "loss", "loss_scale", "loss_weight")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_UNREADABLE = (
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    "refusal",
    "train_detail",
    "parts",
)


def text_of(value: Any, name: str) -> str:
    """A text, or a list of text parts as one. Raises DataError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(part, name) for part in value)
    raise DataError(f"{name} holds {type(value).__name__} {str(value)[:60]!r}, wanted text")


def _part(part: Any, name: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        return text_of(part.get("text"), name)
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise DataError(f"{name} holds a part {str(kind)[:60]!r}, wanted text")


def is_empty(value: Any) -> bool:
    """Whether nothing is given; 0 and false are something."""
    return value is None or value == "" or (isinstance(value, Sequence | Mapping) and not value)


def turns_of(value: Any, tags: Mapping[str, str], keys: tuple[str, str]) -> list[dict[str, Any]]:
    """The turns of a conversation; `keys` are those of role and content. Raises DataError."""
    turns = _as_list(value)
    roles = _ROLES | {tags[tag]: role for tag, role in _TAG_ROLES.items() if tag in tags}
    return [_turn(turn, roles, tags, keys) for turn in turns]


def _as_list(turns: Any) -> list[Any]:
    if isinstance(turns, Mapping) and all(isinstance(column, list) for column in turns.values()):
        # the `datasets` library stores a list of records as a record of lists
        lengths = {key: len(column) for key, column in turns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the conversation's columns are not equally long: {lengths}")
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"the conversation holds {str(turns)[:60]!r}, wanted a list of turns")
    return turns


def _turn(turn: Any, roles: Mapping[str, str], tags: Mapping[str, str], keys: tuple[str, str]) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        kind = type(turn).__name__
        raise DataError(f"a turn holds {kind} {str(turn)[:60]!r}, wanted an object with a role")
    if "role_tag" not in tags and keys[0] not in turn:
        keys = ("role", "content") if "role" in turn else keys
    role_key, content_key = tags.get("role_tag", keys[0]), tags.get("content_tag", keys[1])
    calls = _calls_of(turn)
    if role_key not in turn or (content_key not in turn and not calls):
        found = ", ".join(map(str, turn))
        raise DataError(f"a turn has the keys {found}, wanted {role_key!r} and {content_key!r}")
    role = _role(turn[role_key], roles)
    content = turn.get(content_key)
    text = "" if calls and content is None else text_of(content, f"a turn of {role}")
    result: dict[str, Any] = {"role": role, "content": text}
    if role == _CALL:
        result = {"role": "assistant", "content": text, "is_call": True}
        parse_calls(text)
    return result | _extras(turn, result["role"], calls)


def _role(value: Any, roles: Mapping[str, str]) -> str:
    role = roles.get(str(value)) or roles.get(str(value).lower())
    if role is None:
        raise DataError(f"a turn has the role {value!r}; {did_you_mean(str(value), roles)}")
    return role


def _extras(turn: Mapping[str, Any], role: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """What a turn holds beside role and content."""
    for key in _UNREADABLE:
        if not is_empty(turn.get(key)):
            raise DataError(f"a turn of {role} has {key!r}, which cannot be read; leave it out of the record")
    result: dict[str, Any] = {}
    for key in ("name", "tool_call_id"):
        if not is_empty(turn.get(key)):
            result[key] = text_of(turn[key], key)
    reasoning = _reasoning(turn)
    for key, found in (("tool_calls", calls), ("reasoning_content", reasoning)):
        if found and role != "assistant":
            raise DataError(f"a turn of {role} has {key}, which only an answer may have")
        if found:
            result[key] = found
    return result | _train_mark(turn, role)


def _reasoning(turn: Mapping[str, Any]) -> str:
    given = {key: text_of(turn[key], key) for key in _REASONING if not is_empty(turn.get(key))}
    if len(set(given.values())) > 1:
        raise DataError(f"a turn has {' and '.join(given)} with different texts; leave one of them out")
    return next(iter(given.values()), "")


def _train_mark(turn: Mapping[str, Any], role: str) -> dict[str, bool]:
    """`{"train": False}` for an answer that is marked so. Raises DataError for a mark that cannot be followed."""
    given = {key: turn[key] for key in _MARKS if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(f"a turn of {role} has {key} {value!r}; a turn is trained on or not: wanted 0 or 1")
    if len({bool(value) for value in given.values()}) > 1:
        raise DataError(f"a turn of {role} has marks that contradict each other: {given}")
    if not given:
        return {}
    is_trained = bool(next(iter(given.values())))
    if is_trained and role != "assistant":
        raise DataError(f"a turn of {role} is marked {given}; only answers are trained on, so leave the mark out")
    return {} if is_trained or role != "assistant" else {"train": False}


def _calls_of(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of a turn, those of the older `function_call` too."""
    calls, single = turn.get("tool_calls"), turn.get("function_call")
    if not is_empty(single):
        if not is_empty(calls):
            raise DataError("a turn has tool_calls and function_call; leave one of them out")
        return [_call(single, "function_call")]
    if is_empty(calls):
        return []
    return [_call(call, "tool_calls") for call in _parsed(calls, "tool_calls", list)]


def parse_calls(text: str) -> list[dict[str, Any]]:
    """The call, or calls, written as JSON in a turn of the role function_call. Raises DataError."""
    value = _parsed(text, "a turn of function_call", (list, Mapping))
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise DataError("a turn of function_call holds an empty list, wanted a call")
    return [_call(call, "a turn of function_call") for call in calls]


def _parsed(value: Any, name: str, kind: Any) -> Any:
    """`value`, or the JSON in it."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, kind):
        raise DataError(f"{name} holds {str(value)[:60]!r}, wanted JSON: objects with name and arguments")
    return found


def _call(value: Any, where: str) -> dict[str, Any]:
    """A tool call in OpenAI's form, arguments as an object."""
    call = _parsed(value, where, Mapping)
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where} holds {str(value)[:60]!r}, wanted a call: name and arguments")
    arguments = function.get("arguments", function.get("parameters"))
    parsed = {} if is_empty(arguments) else _parsed(arguments, f"arguments of the call {name!r}", Mapping)
    result = {"type": "function", "function": {"name": name, "arguments": dict(parsed)}}
    return result if is_empty(call.get("id")) else {"id": text_of(call["id"], "id"), **result}


def tools_of(value: Any) -> list[dict[str, Any]]:
    """Tool definitions, given as a list, as JSON, or as a list of JSON. Raises DataError."""
    tools = _definition(value)
    if not isinstance(tools, list):
        raise DataError(f"tools holds {str(value)[:60]!r}, wanted a list of tool definitions")
    return [_tool(tool) for tool in tools]


def _definition(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _tool(value: Any) -> dict[str, Any]:
    tool = _definition(value)
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise DataError(f"tools holds {str(value)[:60]!r}, wanted tool definitions: objects with a name")
    return dict(tool)
