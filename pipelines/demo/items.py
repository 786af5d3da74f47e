"""The items of the demo, kind by kind: real text from the running Python itself and from two small wheels."""

import ast
import dataclasses
import doctest
import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

# Characters of all turns together: by kind 50 to 170 tokens of the demo tokenizer on average, 289 at most (measured).
MAX_CHARS = 520
_SKIPPED = {"__pycache__", "config", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
_LANGUAGES = ("dutch", "french", "german", "italian", "portuguese", "spanish", "swedish")
_CALL_FILES = {
    "simple": ("simple_python", "live_simple", "simple_java", "simple_javascript"),
    "multiple": ("multiple", "live_multiple"),
    "parallel": ("parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple"),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One training example: turns alternate user, assistant; `subtask` and `origin` say where it comes from."""

    turns: tuple[str, ...]
    subtask: str
    origin: str

    def record(self, form: str) -> dict[str, Any]:
        """The item as one JSON line, in the `alpaca` or the `messages` form."""
        if form == "alpaca":
            instruction, _, more = self.turns[0].partition("\n")
            return {"instruction": instruction, "input": more, "output": self.turns[1], "subtask": self.subtask}
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(self.turns)]
        return {"messages": messages, "subtask": self.subtask}

    def key(self) -> str:
        """What makes two items the same question: the prompt without case, spaces and punctuation."""
        return re.sub(r"\W+", " ", self.turns[0].lower()).strip()

    def fits(self) -> bool:
        """Whether the item is short enough for the demo and no turn is empty."""
        return all(self.turns) and sum(map(len, self.turns)) <= MAX_CHARS


def library_files() -> list[tuple[str, Path]]:
    """(module file relative to the standard library, path), sorted; without tests, fixers and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    named = [(path.relative_to(root), path) for path in root.rglob("*.py")]
    kept = [(rel.as_posix(), path) for rel, path in named if not any(p.split("-")[0] in _SKIPPED for p in rel.parts)]
    return sorted((name, path) for name, path in kept if "site-packages" not in name)


def is_held_out(origin: str) -> bool:
    """One module in six is held out: its items are never pooled and its source is never pretrained on."""
    return hashlib.sha256(origin.encode()).digest()[0] % 6 == 0


def _library() -> Iterator[tuple[str, str, ast.Module]]:
    for name, path in library_files():
        text = path.read_bytes().decode("utf-8", "replace")
        try:
            yield name, text, ast.parse(text)
        except SyntaxError:  # a few library files are deliberately not valid source
            continue


def _definitions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Every documented function with the class it belongs to ("" for none)."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            yield node, ""
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and ast.get_docstring(inner):
                    yield inner, node.name


def _summary(node: ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def code() -> Iterator[Item]:
    """Docstring to function body: half of the documented functions of the standard library."""
    for name, text, tree in _library():
        for node, owner in _definitions(tree):
            if _is_code(name, owner, node) and len(node.body) > 1:
                lines = text.splitlines()[node.body[1].lineno - 1 : node.end_lineno]
                indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
                body = "\n".join("    " + line[indent:] if line.strip() else "" for line in lines)
                header = f"def {node.name}({ast.unparse(node.args)}):"
                prompt = f"Write the Python {'method' if owner else 'function'}.\n{_summary(node)}"
                yield Item((prompt, f"{header}\n{body}"), "method" if owner else "function", name)


def docs() -> Iterator[Item]:
    """Signature to documentation: the other half of the documented functions."""
    for name, _, tree in _library():
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node, owner in _definitions(tree):
            if not _is_code(name, owner, node):
                full = ".".join(filter(None, (module, owner, node.name)))
                prompt = f"What does {full} do?\n{node.name}({ast.unparse(node.args)})"
                yield Item((prompt, (ast.get_docstring(node) or "").strip()), "method" if owner else "function", name)


def _is_code(name: str, owner: str, node: ast.FunctionDef) -> bool:
    return hashlib.sha256(f"{name}:{owner}:{node.name}".encode()).digest()[0] % 2 == 0


def doctests() -> Iterator[Item]:
    """Interactive session to the value it prints, from the examples in library docstrings."""
    parser = doctest.DocTestParser()
    for name, _, tree in _library():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                try:
                    examples = parser.get_examples(ast.get_docstring(node) or "")
                except ValueError:  # an example that only looks like one
                    continue
                for i, example in enumerate(examples):
                    before = "".join(">>> " + e.source + e.want for e in examples[max(0, i - 2) : i])
                    session = f"What does Python print?\n{before}>>> {example.source}".strip()
                    yield Item((session, example.want.strip()), name.removesuffix(".py"), name)


def language() -> Iterator[Item]:
    """A sentence of the Python language reference to the sentence after it."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            sentences = re.split(r"(?<=[.:]) (?=[A-Z])", " ".join(paragraph.split()))
            for first, second in zip(sentences[::2], sentences[1::2], strict=False):
                if first[:1].isupper() and second.endswith(".") and min(len(first), len(second)) > 30:
                    prompt = f"Continue this passage of the Python language reference.\n{first}"
                    yield Item((prompt, second), topic, f"topic {topic}")


def _talk(wheel: Path, languages: tuple[str, ...]) -> Iterator[Item]:
    for spoken in languages:
        for path in sorted((wheel / "chatterbot_corpus/data" / spoken).glob("*.yml")):
            for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
                spoken_turns = tuple(turn.strip() for turn in turns if isinstance(turn, str))[:4]
                if len(spoken_turns) == len(turns[:4]) > 1:
                    subtask = path.stem if spoken == "english" else spoken
                    yield Item(spoken_turns[: len(spoken_turns) // 2 * 2], subtask, f"{spoken}/{path.stem}")


def chat(wheel: Path) -> Iterator[Item]:
    """English small talk and questions with answers."""
    return _talk(wheel, ("english",))


def foreign_chat(wheel: Path) -> Iterator[Item]:
    """Small talk in seven other languages."""
    return _talk(wheel, _LANGUAGES)


def _gold(options: Any) -> Any:
    """The first accepted value; objects inside it hold lists of accepted values again, mostly."""
    value = options[0] if isinstance(options, list) and options else options
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [_arguments(v) for v in value]
    return _arguments(value) if isinstance(value, dict) else value


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments a call must name: one that may be left out ("" among the accepted values) is left out."""
    return {name: _gold(v) for name, v in given.items() if not (isinstance(v, list) and "" in v)}


def _signature(function: dict[str, Any]) -> str:
    parameters = function["parameters"]
    needed = set(parameters.get("required", ()))
    texts = [f"{n}: {p['type']}" if n in needed else f"{n}?: {p['type']}" for n, p in parameters["properties"].items()]
    return f"{function['name']}({', '.join(texts)})"


def tool_calls(wheel: Path) -> Iterator[Item]:
    """Request and function signatures to the calls that answer it, as JSON; optional arguments are left out."""
    data = wheel / "bfcl_eval/data"
    for subtask, stems in _CALL_FILES.items():
        for stem in stems:
            answers = {row["id"]: row["ground_truth"] for row in _lines(data / f"possible_answer/BFCL_v4_{stem}.json")}
            for row in _lines(data / f"BFCL_v4_{stem}.json"):
                turns = row["question"][0]
                if row["id"] in answers and len(turns) == 1 and len(row["question"]) == 1:
                    calls = [
                        {"name": name, "arguments": _arguments(given)}
                        for call in answers[row["id"]]
                        for name, given in call.items()
                    ]
                    tools = "\n".join(_signature(function) for function in row["function"])
                    prompt = f"{turns[0]['content'].strip()}\nFunctions:\n{tools}"
                    yield Item((prompt, json.dumps(calls, ensure_ascii=False)), subtask, f"{stem} {row['id']}")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as handle:
        yield from (json.loads(line) for line in handle if line.strip())


LIBRARY_KINDS: dict[str, Callable[[], Iterator[Item]]] = {
    "code": code,
    "docs": docs,
    "doctests": doctests,
    "language": language,
}
WHEEL_KINDS: dict[str, tuple[str, Callable[[Path], Iterator[Item]]]] = {
    "chat": ("chatterbot-corpus", chat),
    "foreign_chat": ("chatterbot-corpus", foreign_chat),
    "tool_calls": ("bfcl-eval", tool_calls),
}
