"""The documents of each text domain, as (name, text) in the order of their source: files, chapters, entries, mails."""

import ast
import email
import email.policy
import gzip
import importlib.metadata
import importlib.util
import json
import re
import struct
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import yaml
from packages import files

Documents = Iterator[tuple[str, str]]

# installed packages, tests, tables
_SKIPPED = set("dist-packages encodings idle_test lib2to3 pydoc_data site-packages test tests".split())
_SKIPPED |= {"entities.py", "stringprep.py"}
_CHAPTER = re.compile(r"(?=^(?:CHAPTER|Chapter) [IVXLC\d]+\b)", re.MULTILINE)
_SOURCE_NOTE = re.compile(r"\n +\[(?:1913 Webster|WordNet|PJC|Webster|Century|[^\]]*PJC)[^\]]*\]$", re.MULTILINE)
_GROUP = 3000  # characters: dictionary entries and short conversations are put together to documents of this size
DOCUMENTED = ("numpy", "scipy", "scikit-learn")  # installed wherever flextools is


def code() -> Documents:
    """Source files of the standard library of the running Python, without tests and tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _SKIPPED & set(name.parts) and not name.parts[0].startswith("config-"):
            yield name.as_posix(), path.read_bytes().decode("utf-8", "replace")


def legal(archive: Path) -> Documents:
    """Licences and terms of use, without the fields before the text."""
    for name, content in files(archive, "licensedcode/data/licenses/*.LICENSE"):
        yield Path(name).stem, content.decode("utf-8", "replace").split("\n---\n", 1)[-1]


def dictionary(archive: Path) -> Documents:
    """Neighbouring entries of the Collaborative International Dictionary of English."""
    ((_, packed),) = files(archive, "*/gcide.dict.dz")
    text = _SOURCE_NOTE.sub("", gzip.decompress(packed).decode("utf-8", "replace"))
    entries = re.split(r"\n+(?=\S)", text)
    first = next(i for i, entry in enumerate(entries) if entry.startswith("A \\A\\"))
    return _grouped((entry.split("\\", 1)[0].strip(), entry) for entry in entries[first:])


def mails(archive: Path) -> Documents:
    """Mails that are not spam: sender, subject and text; what is no plain text is left out."""
    for name, content in files(archive, "*/data/easy-ham-*/*.txt"):
        mail = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        try:
            body = mail.get_body(("plain",))
            text = body.get_content() if body else ""
            sender = str(mail["from"]).split("<")[0].strip(' "')
            yield Path(name).stem, f"From: {sender}\nSubject: {mail['subject']}\n\n{text}"
        except (LookupError, UnicodeError, AttributeError, IndexError, ValueError):  # a mail that is not as it should be
            continue


def novels(archive: Path) -> Documents:
    """Chapters of Jane Austen's six novels, from an R data base: for each novel the lines of the book."""
    ((_, rest),) = files(archive, "*/Rdata.rdb")
    while rest:
        unpacked = zlib.decompressobj()
        lines = _r_strings(unpacked.decompress(rest[4:]))  # the first four bytes: the unpacked size
        rest = unpacked.unused_data
        for i, chapter in enumerate(_CHAPTER.split("\n".join(lines))):
            yield f"{lines[0].title()} {i:02d}", chapter


def _r_strings(data: bytes) -> list[str]:
    """A character vector as R serialises it: big-endian, version 3, whose header ends with an encoding's name."""
    at = 18 + int.from_bytes(data[14:18], "big") + 4  # type word of the vector skipped
    found, (count,) = [], struct.unpack_from(">I", data, at)
    at += 4
    for _ in range(count):
        _, size = struct.unpack_from(">II", data, at)
        found.append(data[at + 8 : at + 8 + size].decode("utf-8"))
        at += 8 + size
    return found


def scripture(archive: Path) -> Documents:
    """Chapters of the World English Bible."""
    ((_, content),) = files(archive, "*/plain_text_readers_bible.py")
    call = next(node for node in ast.walk(ast.parse(content)) if isinstance(node, ast.Call))
    text, verses = ast.literal_eval(call.args[1]), ast.literal_eval(call.args[2])
    chapters = {number // 1000: offset for number, offset in reversed(verses.items())}  # the first verse's stays
    starts = sorted(chapters.items())
    for (number, start), (_, end) in zip(starts, [*starts[1:], (0, len(text))], strict=True):
        yield f"{number:06d}", " ".join(text[start:end].replace("`", "'").split())


def manual() -> Documents:
    """Reference pages of installed libraries: every documented class and function with its documentation."""
    for library in DOCUMENTED:
        root = Path(str(importlib.metadata.distribution(library).locate_file(library.replace("scikit-learn", "sklearn"))))
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root.parent).with_suffix("").as_posix().replace("/", ".")
            if not {"tests", "_vendor", "externals", "conftest"} & set(name.split(".")):
                yield from _pages(name, ast.parse(path.read_bytes()))


def _pages(owner: str, tree: ast.AST) -> Documents:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name, about = f"{owner}.{node.name}", ast.get_docstring(node)
            given = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else ""
            if about:
                yield name, f"{name}{given}\n\n{about}"
            if isinstance(node, ast.ClassDef):
                yield from _pages(name, node)


def conversations(calls: Path, talk: Path) -> Documents:
    """Requests with the functions that may be called, and small talk in many languages."""
    for name, content in files(calls, "bfcl_eval/data/BFCL_v4_*.json"):
        rows = (line for line in content.decode().splitlines() if line.startswith('{"id"'))
        yield from (_request(Path(name).stem, json.loads(row)) for row in rows)
    for name, content in files(talk, "*/data/*/*.yml"):
        talks = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["conversations"]
        said = ("\n".join(map(str, turns)) for turns in talks if isinstance(turns, list))
        spoken = Path(name).parent.name
        yield from _grouped((f"{spoken} {' '.join(text[:40].split())}", text) for text in said)


def _request(name: str, row: dict[str, Any]) -> tuple[str, str]:
    turns = [f"{turn['role']}: {turn['content']}" for turns in row["question"] for turn in turns]
    functions = [json.dumps(function, ensure_ascii=False) for function in row.get("function", ())]
    return f"{name} {row['id']}", "\n".join([*turns, *functions])


def _grouped(entries: Iterable[tuple[str, str]]) -> Documents:
    """Neighbours put together until they have `_GROUP` characters; the name is the first one's."""
    first, texts = "", []
    for name, text in entries:
        first, texts = (first if texts else name), [*texts, text]
        if sum(map(len, texts)) >= _GROUP:
            yield first, "\n\n".join(texts)
            texts = []
    if texts:
        yield first, "\n\n".join(texts)
