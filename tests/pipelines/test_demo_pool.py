"""The demo's pool from made-up wheels: real library text, no network."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dataflex_tools.core.errors import ConfigError, DataError

DEMO = Path(__file__).parents[2] / "pipelines" / "demo"
WORDS = ("one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture(scope="module")
def demo() -> dict[str, ModuleType]:
    sys.path.insert(0, str(DEMO))
    try:
        return {name: importlib.import_module(name) for name in ("fetch", "items", "pool")}
    finally:
        sys.path.remove(str(DEMO))


def _call(stem: str, i: int, calls: int) -> tuple[dict[str, object], dict[str, object]]:
    function = {
        "name": f"{stem}_{i}",
        "description": "Adds.",
        "parameters": {
            "type": "dict",
            "properties": {"a": {"type": "integer"}, "unit": {"type": "string"}},
            "required": ["a"],
        },
    }
    question = {"id": f"{stem}_{i}", "question": [[{"role": "user", "content": f"Ask {stem} for {i}."}]]}
    truth = [{f"{stem}_{i}": {"a": [i + n], "unit": ["m", ""]}} for n in range(calls)]
    return {**question, "function": [function]}, {"id": f"{stem}_{i}", "ground_truth": truth}


@pytest.fixture(scope="module")
def cache(demo: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of the real layout with a few made-up items each."""
    root = tmp_path_factory.mktemp("wheels")
    versions = demo["fetch"].WHEELS
    data = root / f"bfcl-eval-{versions['bfcl-eval']}" / "bfcl_eval" / "data"
    (data / "possible_answer").mkdir(parents=True)
    for stems in demo["items"]._CALL_FILES.values():
        for stem in stems:
            pairs = [_call(stem, i, 2 if "parallel" in stem else 1) for i in range(30)]
            for path, column in ((data, 0), (data / "possible_answer", 1)):
                text = "".join(json.dumps(pair[column]) + "\n" for pair in pairs)
                (path / f"BFCL_v4_{stem}.json").write_text(text)
    talk = root / f"chatterbot-corpus-{versions['chatterbot-corpus']}" / "chatterbot_corpus" / "data"
    for spoken in ("english", *demo["items"]._LANGUAGES):
        (talk / spoken).mkdir(parents=True)
        lines = [f"- - say {spoken} {a} {b}\n  - {b} {a}\n" for a in WORDS for b in WORDS for _ in range(2)]
        (talk / spoken / "talk.yml").write_text("categories:\n- x\nconversations:\n" + "".join(lines))
    return root


def _prompts(folder: Path) -> list[str]:
    rows = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    return [row["messages"][0]["content"] if "messages" in row else row["instruction"] + row["input"] for row in rows]


@pytest.fixture(scope="module")
def built(demo: dict[str, ModuleType], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    demo["pool"].build(out, cache, size=demo["pool"].SIZES["real"], target_kind="tool_calls")
    return out


def test_pool_target_and_held_out_items_share_no_prompt(built: Path) -> None:
    parts = [_prompts(built / name) for name in ("pool", "target", "heldout")]
    prompts = [prompt for part in parts for prompt in part]
    assert [len(part) > 0 for part in parts] == [True, True, True]
    assert len(set(prompts)) == len(prompts)


def test_target_kind_is_the_stated_share_of_the_pool(demo: dict[str, ModuleType], built: Path) -> None:
    share = len((built / "pool/tool_calls.jsonl").read_text().splitlines()) / len(_prompts(built / "pool"))
    assert share == pytest.approx(demo["pool"].TARGET_SHARE, abs=0.005)


def test_target_holds_equally_many_items_of_each_subtask(built: Path) -> None:
    rows = [json.loads(line) for line in (built / "target/tool_calls.jsonl").open()]
    subtasks = [row["subtask"] for row in rows]
    assert {name: subtasks.count(name) for name in subtasks} == {"simple": 8, "multiple": 8, "parallel": 8}


def test_same_arguments_give_the_same_bytes(demo: dict[str, ModuleType], built: Path, cache: Path, tmp_path: Path) -> None:
    demo["pool"].build(tmp_path, cache, size=demo["pool"].SIZES["real"], target_kind="tool_calls")
    for path in built.rglob("*.jsonl"):
        assert (tmp_path / path.relative_to(built)).read_bytes() == path.read_bytes()


def test_no_library_item_of_the_pool_comes_from_a_held_out_module(demo: dict[str, ModuleType], built: Path) -> None:
    held_out = {i.turns[1] for i in demo["items"].code() if demo["items"].is_held_out(i.origin)}
    kept = {i.turns[1] for i in demo["items"].code() if not demo["items"].is_held_out(i.origin)}
    outputs = [json.loads(line)["output"] for line in (built / "pool/code.jsonl").open(encoding="utf-8")]
    assert held_out
    assert not set(outputs) & (held_out - kept)


def test_gold_call_leaves_out_what_may_be_left_out_and_takes_first_accepted_values(demo: dict[str, ModuleType]) -> None:
    given = {"size": [{"w": [2, "two"], "h": [3, ""]}], "unit": ["m", ""], "names": [["a", "b"]], "none": [[]]}
    assert demo["items"]._arguments(given) == {"size": {"w": 2}, "names": ["a", "b"], "none": []}


def test_alpaca_record_keeps_the_whole_prompt_in_instruction_and_input(demo: dict[str, ModuleType]) -> None:
    record = demo["items"].Item(("Do it.\nwith this\nand that", "done"), "s", "o").record("alpaca")
    assert record == {"instruction": "Do it.", "input": "with this\nand that", "output": "done", "subtask": "s"}


def test_kinds_with_too_few_items_are_named(demo: dict[str, ModuleType]) -> None:
    with pytest.raises(DataError, match="pool of 100 with 12 items of a"):
        demo["pool"].shares({"a": 5, "b": 200}, "a", 100)


def test_rest_of_the_pool_is_as_equal_as_the_kinds_allow(demo: dict[str, ModuleType]) -> None:
    assert demo["pool"].shares({"a": 50, "b": 10, "c": 90, "d": 90}, "a", 100) == {"a": 12, "b": 10, "c": 39, "d": 39}


def test_missing_pip_is_said_before_anything_is_fetched(
    demo: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo["fetch"].importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="has no pip, which fetches bfcl-eval"):
        demo["fetch"].fetch("bfcl-eval", tmp_path)
