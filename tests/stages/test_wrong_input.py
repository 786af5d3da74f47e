"""What a user is told: one line, exit code 2, before a model is loaded, and nothing half-written.

Every case goes through the command line's `main`, in this process, in a copy of one small finished setup.
"""

import errno
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors import SafetensorError

from dataflex_tools import cli
from tests.tiny import make_all, make_model, score_config, write_jsonl

SCORE = ["score", "--config", "less.yaml", "--out", "artifacts/new"]
AGAIN = [*SCORE, "--set", "settings.aggregate=cosine_of_mean"]  # reads every signal, measures nothing
SHORT = ["--set", "training.global_batch_size=8", "--set", "training.max_steps=2"]
TRAIN = ["train", "--artifacts", "artifacts/less", "--out", "runs/new", *SHORT]
HALF = [*TRAIN, "--fraction", "0.5"]
GOOD = '{"instruction": "red 1", "input": "", "output": "1 2"}\n'
CHAT = '{"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]}\n'


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, both streams, and the files outside the cache that are new or gone."""

    code: int
    out: str
    err: str
    changed: list[str]

    @property
    def error(self) -> str:
        """The one error line; it must be the last of the output."""
        lines = self.err.rstrip("\n").split("\n")
        assert "Traceback" not in self.err
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.err
        return lines[-1]


def files() -> set[str]:
    kept = (p for p in Path().rglob("*") if not p.is_dir() and "cache" not in p.parts)
    return {p.as_posix() for p in kept if p.suffix != ".lock"}  # which stay: they hold nothing


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a pool, a target, the LESS plan and a run, with paths relative to the folder."""
    root = make_all(tmp_path_factory.mktemp("finished"))
    config = score_config(Path())
    config["out"] = "artifacts/less"
    (root / "less.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))), encoding="utf-8")
    here = Path.cwd()
    os.chdir(root)
    try:
        assert main("score", "--config", "less.yaml") == 0
        assert main("train", "--artifacts", "artifacts/less", "--fraction", "0.5", "--out", "runs/x", *SHORT) == 0
    finally:
        os.chdir(here)
    return root


@pytest.fixture(autouse=True)
def workdir(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished setup, as the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("dataflex_tools.models.load.load_model", load)


def main(*argv: str) -> int:
    """The exit code of a command; the logger is left as it was found."""
    logger, before = logging.getLogger("flextools"), sys.argv
    state = (logger.handlers[:], logger.level, logger.propagate)
    sys.argv = ["flextools", *map(str, argv)]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
        logger.handlers[:], logger.propagate = state[0], state[2]
        logger.setLevel(state[1])
    return 0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command and say what it left."""

    def call(*argv: str) -> Result:
        before = files()
        capsys.readouterr()
        code = main(*argv)
        streams = capsys.readouterr()
        return Result(code, streams.out, streams.err, sorted(before ^ files()))

    return call


@pytest.fixture
def refuse(run: Callable[..., Result], no_model: None) -> Callable[..., str]:
    """Run a command that must be refused with a line that matches; returns the line."""

    def call(match: str, *argv: str) -> str:
        result = run(*argv)
        assert re.search(match, result.error), result.error
        assert (result.code, result.changed) == (2, [])
        return result.error

    return call


# --- data


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("e.jsonl", "", r"e\.jsonl is empty \(0 bytes\); give"),
        ("e.parquet", "", r"e\.parquet is empty \(0 bytes\)"),
        ("e.jsonl", "\n\n", r"e\.jsonl holds no record that can be used; give"),
        ("e.json", "[]", r"e\.json holds no record that can be used"),
        ("e.csv", "instruction,output\n", r"e\.csv holds no record"),
        ("p.parquet", GOOD, r"cannot be read as Parquet.*looks like JSON, one object per line: rename it to end in \.jsonl"),
        ("p.arrow", GOOD, r"cannot be read as Arrow IPC.*rename it to end in \.jsonl"),
        ("p.json", "instruction,output\na,b\n", r"neither a JSON array.*begins with 'instruction,output"),
        ("p.jsonl", "instruction,output\na,b\n", r"row 1 is not JSON.*'instruction,output'; repair it, or.*--skip-bad"),
        ("p.jsonl", f"[{GOOD}]", r"looks like a JSON array: rename it to end in \.json"),
        ("p.csv", GOOD, r"looks like JSON, one object per line"),
        ("p.parquet", "version https://git-lfs.github.com/spec/v1\n", r"Git LFS pointer: run `git lfs pull`"),
        ("p.txt", GOOD, r"JSON, one object per line: rename it to end in \.jsonl"),
        ("p.docx", GOOD, r"ends in '\.docx'; files that can be read end in \.jsonl"),
        ("p.jsonl", GOOD * 3 + '{"instruction": "red\n', r"p\.jsonl row 4 is not JSON.*\"red'; repair it, or.*--skip-bad"),
        ("p.jsonl", "5\n", r"row 1 holds int, wanted a JSON object: '5'"),
        ("p.csv", "instruction,output\na,b\na,b,c,d\n", r"row 2 has 4 fields, the header has 2"),
        ("p.jsonl", GOOD * 2 + CHAT, r"mixes record forms: row 1 is alpaca, row 3 is messages"),
        ("p.jsonl", GOOD + '{"instruction": "red", "output": ""}', r"row 2: the record has no answer: output is empty"),
        ("p.jsonl", GOOD + '{"instruction": "red"}', r"row 2: the columns instruction fit no form"),
        ("p.jsonl", '{"a": 1, "b": 2}', r"row 1: the columns a, b fit no form.*map them with columns"),
    ],
)
@pytest.mark.parametrize("side", ["--data", "--target"])
def test_a_file_that_cannot_be_used_is_named(refuse: Any, side: str, name: str, content: str, match: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    refuse(match, *SCORE, side, name)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_parquet_file_under_another_ending_is_recognised(refuse: Any, name: str) -> None:
    pq.write_table(pa.table({"instruction": ["a"], "output": ["b"]}), name)
    refuse(r"looks like Parquet: rename it to end in \.parquet", *SCORE, "--data", name)


def test_the_same_bytes_under_another_ending_are_read_anew(refuse: Any) -> None:
    shutil.copy("pool.jsonl", "pool.csv")  # the cache knows these bytes as JSON lines
    refuse(r"pool\.csv cannot be read as CSV", *SCORE, "--data", "pool.csv")


@pytest.mark.parametrize("side", ["--data", "--target"])
def test_a_missing_file_is_answered_with_the_nearest(refuse: Any, side: str) -> None:
    refuse(r"source pol\.jsonl does not exist; did you mean 'pool\.jsonl'\?", *SCORE, side, "pol.jsonl")
    refuse(r"source zzz\.jsonl does not exist; wanted a file, a folder, or a Hub id", *SCORE, side, "zzz.jsonl")
    refuse(r"source org/name is no file here and cannot be loaded", *SCORE, side, "org/name")
    Path("d").mkdir()
    refuse(r"source d is an empty folder; give one with \.jsonl", *SCORE, side, "d")


def test_a_missing_target_is_found_before_the_pool_is_read(run: Any, no_model: None) -> None:
    result = run(*SCORE, "--target", "nope.jsonl")
    assert (result.code, "read " in result.err) == (2, False)


def test_skipped_rows_are_counted_and_the_first_is_shown(run: Any, no_model: None) -> None:
    pool = Path("pool.jsonl").read_text(encoding="utf-8")
    Path("p.jsonl").write_text('{"a": \n' + pool + '{"instruction": "red", "output": " "}\n', encoding="utf-8")
    result = run(*SCORE, "--data", "p.jsonl", "--skip-bad", "--dry-run")
    assert result.code == 0
    assert "p.jsonl: 2 bad rows left out, first: row 1: is not JSON" in result.err
    assert "60 alpaca records as domain 'p', 2 bad rows skipped" in result.err


def test_target_rows_in_the_pool_are_counted_or_left_out(run: Any, refuse: Any) -> None:
    lines = Path("pool.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("t.jsonl").write_text("".join(lines[2:5]), encoding="utf-8")
    warned = run(*SCORE, "--target", "t.jsonl", "--dry-run")
    assert "3 of 60 pool rows are target rows too (first: row 2)" in warned.err
    assert "--drop-overlap" in warned.err
    dropped = run(*SCORE, "--target", "t.jsonl", "--drop-overlap", "--dry-run")
    assert "left out 3 pool rows that are target rows too" in dropped.err
    assert "57 rows" in dropped.out
    refuse("all 60 pool rows are target rows too", *SCORE, "--target", "pool.jsonl", "--drop-overlap")


# --- labels

# answers that hold this word carry no label
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% if m['role'] == 'assistant' and 'cat' not in m['content'] %}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture
def marked() -> Iterator[Callable[[str], dict[str, str]]]:
    """The model's template labels no answer that holds "cat"; gives a record with an answer."""
    Path("model/chat_template.jinja").write_text(MARKED, encoding="utf-8")
    return lambda answer: {"instruction": "red 1", "input": "", "output": answer}


def test_a_target_row_without_labels_is_an_error(refuse: Any, marked: Any) -> None:
    write_jsonl(Path("t.jsonl"), [marked("dog"), marked("cat")])
    refuse(r"1 of 2 target rows have no answer token within render\.cutoff_len=64 \(first: row 1\)", *SCORE,
           "--data", "heldout.jsonl", "--target", "t.jsonl")  # fmt: skip


def test_a_pool_without_labels_is_an_error(refuse: Any, marked: Any) -> None:
    write_jsonl(Path("p.jsonl"), [marked("cat 1"), marked("cat 2")])
    write_jsonl(Path("t.jsonl"), [marked("dog")])
    refuse(r"none of the 2 rows has a label with template 'auto' and cutoff_len 64", *SCORE,
           "--data", "p.jsonl", "--target", "t.jsonl")  # fmt: skip


def test_pool_rows_without_labels_are_counted_and_never_picked(run: Any, refuse: Any, marked: Any) -> None:
    write_jsonl(Path("p.jsonl"), [*(marked(f"dog {i}") for i in range(10)), marked("cat")])
    config = {**yaml.safe_load(Path("less.yaml").read_text(encoding="utf-8")), "method": "random", "data": "p.jsonl"}
    del config["target"]
    Path("random.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = run("score", "--config", "random.yaml", "--out", "artifacts/random")
    assert result.code == 0
    assert "1 without labels (never selected)" in result.err
    scores = pq.read_table("artifacts/random/scores.parquet")["score"].to_pylist()
    assert scores[10] == float("-inf")
    refuse("budget asks for 11 samples, 10 of 11 rows can be selected; ask for at most 10",
           "train", "--artifacts", "artifacts/random", "--num-samples", "11", "--out", "runs/new", *SHORT)  # fmt: skip


@pytest.mark.parametrize(("cutoff", "match"), [(1, "cutoff_len is 1, wanted at least 2"), ("x", "valid integer.*'x'")])
def test_a_cutoff_that_is_no_length_is_an_error(refuse: Any, cutoff: object, match: str) -> None:
    refuse(match, *SCORE, "--set", f"render.cutoff_len={cutoff}")


# --- model and tokenizer


def edit_json(path: str, **changes: Any) -> None:
    content = {**json.loads(Path(path).read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    Path(path).write_text(json.dumps(kept), encoding="utf-8")


def cut(path: str, size: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda: os.remove("model/chat_template.jinja"), "no chat template of its own; set render.template to 'alpaca'"),
        (lambda: edit_json("model/tokenizer_config.json", pad_token=None, eos_token=None),
         "neither a pad nor an end-of-text token; set pad_token or eos_token"),
        (lambda: os.remove("model/tokenizer.json"), "the tokenizer of model cannot be loaded|has no tokenizer"),
        (lambda: Path("model/tokenizer.json").write_text("{", encoding="utf-8"), "tokenizer of model cannot be loaded"),
        (lambda: os.remove("model/config.json"), "model has no config.json: it is not a model's folder"),
        (lambda: Path("model/config.json").write_text("{", encoding="utf-8"), r"model/config\.json cannot be used"),
        (lambda: edit_json("model/config.json", model_type="foo"), r"model/config\.json cannot be used.*`foo`"),
        (lambda: os.remove("model/model.safetensors"), "model has no model.safetensors; save the model with safetensors"),
        (lambda: cut("model/model.safetensors", 5000), "model.safetensors is no whole safetensors file.*fetch it again"),
        (lambda: Path("model/model.safetensors").write_text("version https://git-lfs\n", encoding="utf-8"),
         "is no whole safetensors file"),
        (lambda: Path("model/model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}',
         encoding="utf-8"), r"model lacks 1 of 1 weight files, e\.g\. b\.safetensors"),
    ],
)  # fmt: skip
def test_a_model_folder_that_cannot_be_used_is_refused(refuse: Any, damage: Callable[[], None], match: str) -> None:
    damage()
    refuse(match, *SCORE)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("./mdoel", r"model\.path \./mdoel is not a folder; did you mean 'model'\?"),
        ("/nowhere/at/all", r"model\.path /nowhere/at/all is not a folder; give a model's folder or a hub name"),
        ("mdoel", r"no folder, not in the Hub cache, and the Hub cannot be reached; did you mean 'model'\?"),
        ("org/some-model", r"model\.path org/some-model is no folder, not in the Hub cache"),
        ("model/config.json", r"model\.path model/config\.json is not a folder; give a model's folder"),
    ],
)
@pytest.mark.parametrize("command", [SCORE, HALF])
def test_a_model_that_does_not_exist_is_named(refuse: Any, command: list[str], path: str, match: str) -> None:
    refuse(match, *command, "--model", path)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("model.lora.target_modules=[q_porj]", "no layer is called 'q_porj'; did you mean 'q_proj'"),
        ("model.lora.target_modules=q_porj", "'q_porj' matches no layer; did you mean 'q_proj'"),
        ("model.lora.target_modules='(q'", r"'\(q' is no regular expression"),
        ("model.lora.target_modules=[c_attn]", "no layer is called 'c_attn'; Set .* all-linear, or to some of .*down_proj"),
        ("model.attn_implementation=flush", "with model.attn_implementation 'flush'"),
        ("model.dtype=float8", "model.dtype is 'float8', wanted one of auto"),
        ("warmup.fraction=0", r"warmup.fraction is 0.0, wanted a value in \(0, 1\]"),
        (
            "warmup.fraction=0.02",
            "1 selected samples do not fill one global batch of 8; raise warmup.fraction, or set warmup.",
        ),
        ("warmup.training.extra.dataloader_num_worker=1", "warmup.training.extra has no setting.*'dataloader_num_workers'"),
        ("warmup.training.lr_scheduler_type=liner", "warmup.training.lr_scheduler_type is 'liner'; did you mean 'linear'"),
        ("warmup.training.deepspeed=no.json", "warmup.training.deepspeed: no.json does not exist"),
        ("gradient.projection=sketsh", "gradient.projection: .*'sketch'.*found 'sketsh'"),
        ("gradient.adam=dataflex", "gradient.adam 'dataflex' has no effect: method 'less' sets it; use settings.adam"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_the_warm_up(refuse: Any, setting: str, match: str) -> None:
    refuse(match, *SCORE, "--set", setting)


def test_a_tokenizer_of_another_model_is_refused(refuse: Any) -> None:
    edit_json("model/config.json", vocab_size=10)
    refuse(
        r"the data has token 46 \('19'\), model has embeddings for 10 tokens", *SCORE, "--set", "model.random_weights=true"
    )


def test_weights_that_are_missing_or_do_not_fit_are_never_random(run: Any) -> None:
    edit_json("model/config.json", intermediate_size=64)
    result = run(*SCORE)
    assert re.search(r"model: 6 weights.* have another shape in its files, e\.g\. .*mlp", result.error)
    edit_json("model/config.json", intermediate_size=48, num_hidden_layers=3)
    result = run(*SCORE)
    assert re.search(r"model: 9 weights.* are not in its files, e\.g\. model\.layers\.2", result.error)
    assert (result.code, result.changed) == (2, [])


# --- methods and configuration


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["score"], "score: method is missing; give --method NAME"),
        (["score", "--method", "less"], "score: model is missing; give --model"),
        (["score", "--method", "less", "--model", "model"], "score: data is missing; give --data"),
        (["score", "--method", "less", "--model", "model", "--data", "pool.jsonl"], "'less' needs a target: give --target"),
        ([*SCORE, "--method", "random"], "method 'random' uses no target; leave --target out"),
        ([*SCORE, "--method", "lesss"], "unknown method 'lesss'; did you mean 'less'"),
        ([*SCORE, "--reference", "artifacts/less"], "method 'less' uses no reference"),
        ([*SCORE, "--set", "settings.agregate=x"], "'less' has no setting 'agregate'; did you mean 'aggregate'"),
        ([*SCORE, "--set", "settings.aggregate=x"], "aggregate is 'x', wanted one of mean_of_cosines, cosine_of_mean"),
        ([*SCORE, "--set", "rendr.cutoff_len=3"], "score has no setting 'rendr'; did you mean 'render'"),
        ([*SCORE, "--set", "render.cutof_len=3"], "score: render has no setting 'cutof_len'; did you mean 'cutoff_len'"),
        ([*SCORE, "--set", "render=5"], "score: render: .*found 5"),
        ([*SCORE, "--set", "data=5"], "score: data holds 5, wanted a path"),
        ([*SCORE, "--set", "render.cutoff_len"], "--set 'render.cutoff_len' is not of the form key.subkey=value"),
        ([*SCORE, "--set", "render.cutoff_len=[1"], "the value is not YAML: line 1, column 3: expected ',' or ']'"),
        ([*SCORE, "--modle", "x"], "No such option: --modle.*see `flextools score --help`"),
        (["scor"], "No such command 'scor'.*'score'"),
        ([*TRAIN, "--fraction", "abc"], "Invalid value for '--fraction'"),
        (["train", "--fraction", "0.5"], "train: artifacts is missing; give --artifacts"),
        ([*HALF, "--set", "trainin.seed=1"], "train has no setting 'trainin'; did you mean 'training'"),
        (["evaluate", "runs/x"], "evaluate: data is empty, and the run held no text out.*give --data"),
    ],
)
def test_a_wrong_setting_is_answered_with_the_nearest_or_the_wanted(refuse: Any, argv: list[str], match: str) -> None:
    refuse(match, *argv)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1,\nb: {", r"config file c\.yaml is not YAML: line 2, column 5"),
        ("- a", "holds list, wanted a mapping"),
        ("", "is empty, wanted a mapping"),
        ("\x00", "is not YAML"),
        ("stage: train\nout: x", r"not a config of the score stage; use `flextools run c\.yaml`"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_refused(refuse: Any, text: str, match: str) -> None:
    Path("c.yaml").write_text(text, encoding="utf-8")
    refuse(match, "score", "--config", "c.yaml")


def test_a_config_file_that_is_none_is_refused(refuse: Any) -> None:
    refuse("config file nope.yaml does not exist", "score", "--config", "nope.yaml")
    refuse("config file model is a folder", "score", "--config", "model")
    refuse("is not text in UTF-8", "score", "--config", "model/model.safetensors")


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        (None, "imitates another artifact: give --reference"),
        ("artifacts/les", r"artifact artifacts/les does not exist; did you mean 'artifacts/less'\?"),
        ("runs/x", "runs/x is an artifact of kind 'run', wanted 'plan'"),
        ("artifacts/less", r"made for a corpus of 60 rows \(\w+\), the data has 8 rows \(\w+\): 60 of its samples are not"),
    ],
)
def test_a_reference_must_be_a_plan_of_the_same_corpus(refuse: Any, reference: str | None, match: str) -> None:
    given = ["--reference", reference] if reference else []
    refuse(match, "score", "--method", "random_length_matched", "--model", "model", "--data", "heldout.jsonl",
           "--out", "artifacts/new", *given)  # fmt: skip


# --- budgets


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        (["--fraction", "0"], r"budget.fraction is 0.0, wanted a value in \(0, 1\]"),
        (["--fraction", "1.5"], r"budget.fraction is 1.5, wanted a value in \(0, 1\]"),
        (["--fraction", "nan"], r"budget.fraction is nan"),
        (["--num-samples", "0"], "budget.num_samples is 0, wanted a positive number"),
        (["--num-samples", "61"], "asks for 61 samples, 60 of 60 rows can be selected; ask for at most 60"),
        (["--num-tokens", "99999"], r"asks for 99,999 tokens, the pool has 1,\d\d\d; ask for at most 1,\d\d\d"),
        (["--num-tokens", "1"], "1 tokens is less than the .* of the best sample"),
        (["--num-samples", "3"], "3 selected samples do not fill one global batch of 8; select more, or set training."),
        (["--fraction", "0.5", "--num-samples", "9"], "found fraction and num_samples; give exactly one of --fraction"),
        ([], "3 selected samples do not fill one global batch of 8"),
        (["--num-samples", "9", "--unit", "tokens"], "budget.unit has no effect without budget.fraction"),
    ],
)
def test_a_budget_that_cannot_be_bought_is_refused(refuse: Any, budget: list[str], match: str) -> None:
    refuse(match, *TRAIN, *budget)


# --- output folders


@pytest.mark.parametrize("command", [SCORE, HALF])
def test_an_output_folder_that_holds_something_else_is_found_before_data_is_read(
    run: Any, no_model: None, command: list[str]
) -> None:
    out = Path("runs/new" if command is HALF else "artifacts/new")
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    result = run(*command)
    assert re.search(rf"{out} holds something that is no (artifact|run) \(notes\.txt\); choose another --out", result.error)
    assert (result.code, result.changed, "read " in result.err) == (2, [], False)


@pytest.mark.parametrize("command", [SCORE, HALF])
def test_an_output_that_is_no_folder_is_refused(refuse: Any, command: list[str]) -> None:
    refuse("less.yaml is not a folder; choose another --out", *command, "--out", "less.yaml")
    refuse(r"less.yaml/new cannot be made: .*less.yaml is a file", *command, "--out", "less.yaml/new")


def test_an_artifact_of_another_kind_is_never_replaced(refuse: Any) -> None:
    signal = next(Path("artifacts/signals").glob("[!.]*"))
    for out in ("runs/x", str(signal)):
        refuse("holds an artifact of kind '(run|signal)', which no plan replaces", *SCORE, "--out", out, "--overwrite")
    refuse("holds an artifact of kind 'plan', which no run replaces", *HALF, "--out", "artifacts/less")
    Path("artifacts/less/notes.txt").write_text("mine", encoding="utf-8")
    changed = ["--set", "gradient.dim=32"]
    refuse(r"holds files that no artifact lists \(notes.txt\)", *SCORE, "--out", "artifacts/less", "--overwrite", *changed)


def test_another_plan_is_named_by_what_differs_and_replaced_on_request(run: Any, refuse: Any) -> None:
    there = ["score", "--config", "less.yaml", "--set", "settings.aggregate=cosine_of_mean"]
    refuse(
        r"holds another plan \(less; differing: settings.aggregate: mean_of_cosines, now cosine_of_mean\); choose", *there
    )
    refuse(r"differing: warmup.fraction: 0.25, now 1.0, the pool's content\)", "score", "--config", "less.yaml",
           "--data", "heldout.jsonl", "--set", "warmup.fraction=1")  # fmt: skip
    assert run(*there, "--overwrite").code == 0
    assert run(*there).code == 0


def test_another_run_is_named_by_what_differs(refuse: Any) -> None:
    refuse(r"runs/x holds a run with other settings \(differing: config.training.seed: 0, now 3\)", *HALF, "--out", "runs/x",
           "--set", "training.seed=3")  # fmt: skip
    os.remove("runs/x/manifest.json")
    refuse(
        r"started with something else \(.*training.seed: 0, now 3\)", *HALF, "--out", "runs/x", "--set", "training.seed=3"
    )
    Path("runs/x/run.json").write_text("{", encoding="utf-8")
    refuse(r"runs/x/run.json was changed", *HALF, "--out", "runs/x")


# --- an artifact and what it is used with


def test_another_corpus_tokenizer_or_model_is_refused(refuse: Any, run: Any) -> None:
    refuse("made for a corpus of 60 rows.*the data has 8 rows.*use the same --data", *HALF, "--data", "heldout.jsonl")
    shutil.copytree("model", "other")
    Path("other/chat_template.jinja").write_text(MARKED, encoding="utf-8")
    refuse(r"made with tokenizer \w{16}, found \w{16}; use the same", *HALF, "--model", "other")
    refuse("made with template auto, found chatml", *HALF, "--set", "render.template=chatml")
    make_model(Path("model"), seed=5)
    refuse(r"made with model model \(weights \w{16}\), found model \(weights \w{16}\)", *HALF)
    refuse(r"runs/x was trained from model with weights \w{16}, the weights there are \w{16} now",
           "evaluate", "runs/x", "--data", "heldout.jsonl")  # fmt: skip


def test_another_model_may_follow_a_plan_on_purpose(run: Any) -> None:
    make_model(Path("larger"), seed=5)
    result = run(*HALF, "--model", "larger")
    assert result.code == 0
    assert "training larger on what was picked with model" in result.err


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("artifacts/les", r"artifact artifacts/les does not exist; did you mean 'artifacts/less'\?"),
        ("runs/x", "runs/x is an artifact of kind 'run', wanted a plan"),
        ("signal", "is an artifact of kind 'signal', wanted a plan"),
        ("pool.jsonl", "pool.jsonl is a file, wanted a folder"),
        ("model", "model has no manifest.json: it is no artifact"),
    ],
)
def test_what_is_no_plan_cannot_be_followed(refuse: Any, path: str, match: str) -> None:
    path = str(next(Path("artifacts/signals").glob("[!.]*"))) if path == "signal" else path
    refuse(match, "train", "--artifacts", path, "--fraction", "0.5", "--out", "runs/new", *SHORT)


def test_two_plans_for_one_facet_are_refused(refuse: Any) -> None:
    refuse("artifacts/less and artifacts/less both fill the facet 'select'", *HALF, "artifacts/less")


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_changed_or_unfinished_plan_is_refused_and_can_be_made_again(run: Any, refuse: Any) -> None:
    again = ["score", "--config", "less.yaml"]
    flip(Path("artifacts/less/scores.parquet"))
    assert run("verify", "artifacts/less").code == 1
    for argv in (HALF, ["inspect", "artifacts/less"], again):
        refuse("scores.parquet was changed: SHA-256 .*run `flextools score` again with --overwrite", *argv)
    assert run(*again, "--overwrite").code == 0
    edit_json("artifacts/less/manifest.json", method="other")
    result = run("verify", "artifacts/less")
    assert (result.code, "manifest.json was changed: it states digest" in result.out) == (1, True)
    for argv in (HALF, ["inspect", "artifacts/less"], again):
        refuse("manifest.json was changed: it states digest .*restore it, or run `flextools score` again", *argv)
    assert run(*again, "--overwrite").code == 0
    os.remove("artifacts/less/manifest.json")
    for argv in (HALF, ["inspect", "artifacts/less"], ["verify", "artifacts/less"]):
        refuse("has no manifest.json: the score stage has not finished; run `flextools score` again", *argv)


@pytest.mark.parametrize("where", ["first page", "footer"])
def test_a_changed_part_of_a_signal_is_found(run: Any, refuse: Any, no_model: None, where: str) -> None:
    for part in sorted(Path("artifacts/signals").glob("*/part-00000.parquet")):
        content = bytearray(part.read_bytes())
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        # the producer's name ends the footer: whoever reads the values never looks at it
        content[64 if where == "first page" else content.rindex(b"parquet-cpp")] ^= 1
        assert (where == "footer") == (content != part.read_bytes() and content[:footer] == part.read_bytes()[:footer])
        whole = part.read_bytes()
        part.write_bytes(content)
        result = run("verify", str(part.parent))
        assert (result.code, "part-00000.parquet was changed" in result.out) == (1, True)
        refuse(rf"{part} (was changed|cannot be read as Parquet).*delete this file and run `flextools score` again", *AGAIN)
        part.write_bytes(whole)
    cut(str(part), 100)
    refuse(rf"{part} cannot be read as Parquet.*delete this file", *AGAIN)


def test_a_changed_part_that_was_deleted_is_measured_anew(run: Any) -> None:
    part = sorted(Path("artifacts/signals").glob("*/part-00000.parquet"))[0]
    whole = part.read_bytes()
    part.unlink()
    assert run(*AGAIN).code == 0
    assert part.read_bytes() == whole
    assert run("verify", str(part.parent)).code == 0


def test_a_finished_run_that_was_changed_is_not_reused(refuse: Any) -> None:
    flip(Path("runs/x/model/adapter_model.safetensors"))
    again = ["train", "--artifacts", "artifacts/less", "--fraction", "0.5", "--out", "runs/x", *SHORT]
    refuse("adapter_model.safetensors was changed.*train again into another --out", *again)


def test_a_changed_warm_up_is_found(refuse: Any) -> None:
    folder = next(Path("artifacts/models").glob("[!.]*"))
    flip(folder / "checkpoint-1/moments.safetensors")
    refuse("checkpoint-1/moments.safetensors was changed.*delete .*warmup-.* and run `flextools score` again", *AGAIN)
    os.remove(folder / "checkpoint-1/moments.safetensors")
    refuse("checkpoint-1/moments.safetensors is missing; delete", *AGAIN)


@pytest.mark.parametrize("folder", ["corpus", "tokens"])
def test_a_damaged_cache_is_made_anew_and_said(run: Any, folder: str) -> None:
    assert run(*AGAIN).code == 0
    scores = Path("artifacts/new/scores.parquet").read_bytes()
    shutil.rmtree("artifacts/new")
    paths = [path for path in Path("artifacts/cache", folder).rglob("*") if path.is_file() and path.suffix != ".lock"]
    for path in paths:
        flip(path)
    result = run(*AGAIN)
    assert result.code == 0, result.err
    assert re.search(rf"cache files are not as they were written.* made anew \(first: artifacts/cache/{folder}/", result.err)
    assert Path("artifacts/new/scores.parquet").read_bytes() == scores


# --- training


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("training.extra.dataloader_num_worker=2", "training.extra has no setting .*'dataloader_num_workers'"),
        ("training.extra.dataloader_num_workers=x", "training.extra.dataloader_num_workers is 'x', wanted int"),
        ("training.extra.output_dir=x", "training.extra cannot set 'output_dir': the run's folder decides it"),
        ("training.lr_scheduler_type=liner", "training.lr_scheduler_type is 'liner'; did you mean 'linear'"),
        ("training.optim=adamw", "training.optim is 'adamw'; did you mean 'adamw_"),
        ("training.report_to=[wandbb]", "training.report_to: 'wandbb' is unknown or not installed"),
        ("training.deepspeed=no.json", "training.deepspeed: no.json does not exist"),
        ("training.fsdp=true", "training.fsdp shards a model over several processes"),
        ("training.max_steps=0", "training.max_steps is 0, wanted -1 or more than 0"),
        ("training.learning_rate=1e-3x", "training.learning_rate: .*found '1e-3x'"),
        ("model.lora.r=0", "lora.r is 0, wanted a positive number"),
    ],
)
def test_training_settings_that_cannot_work_are_found_before_data_is_read(
    run: Any, no_model: None, setting: str, match: str
) -> None:
    result = run(*HALF, "--set", setting)
    assert re.search(match, result.error), result.error
    assert (result.code, result.changed, "read " in result.err) == (2, [], False)


# --- recipes

BASE = "common: {model: model, data: pool.jsonl, render: {cutoff_len: 64}}\n"
RANDOM = "a: {stage: score, method: random, out: artifacts/r}"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("stages: {a: {stage: scor}}", "a: unknown stage 'scor'; did you mean 'score'"),
        ("stages: {a: {}}", "a does not say which stage it is; add `stage: score|train|evaluate`"),
        ("stages: [score]", "r.yaml has no stages; wanted stages: {name"),
        ("stage: {}", "has no key 'stage'; did you mean 'stages'"),
        ("method: less\nmodel: m", "r.yaml holds the settings of one stage; use `flextools score --config r.yaml`"),
        ("stage: train\nout: x", "r.yaml holds the settings of one stage; use `flextools train --config r.yaml`"),
        ("common: {modle: x}\nstages: {a: {stage: score}}", "common has no key 'modle'; did you mean 'model'"),
        ("common: [1]\nstages: {a: {stage: score}}", "common holds list, wanted a mapping"),
        ("stages: {a: {stage: score, rendr: 3}}", "score has no setting 'rendr'; did you mean 'render'"),
        (f"{BASE}stages: {{{RANDOM}, b: {{stage: train, artifacts: artifacts/rr, out: o, budget: {{fraction: 1}}}}}}",
         "b: artifacts/rr does not exist and no stage before makes it; did you mean 'artifacts/r'"),
        (f"{BASE}stages: {{{RANDOM}, b: {{stage: train, artifacts: artifacts/r, out: o, budget: {{fraction: 1}}, "
         "training: {extra: {dataloader_num_worker: 1}}}}", "did you mean 'dataloader_num_workers'"),
        (f"{BASE}stages: {{{RANDOM}, e: {{stage: evaluate, run: runs/x, data: heldut.jsonl}}}}",
         r"source heldut\.jsonl does not exist; did you mean 'heldout\.jsonl'"),
        ("a: [", "not YAML: line 1"),
    ],
)  # fmt: skip
def test_a_fault_of_any_stage_is_found_before_the_first_runs(refuse: Any, text: str, match: str) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8")
    refuse(match, "run", "r.yaml")


def test_only_results_can_be_made_again(refuse: Any, run: Any) -> None:
    signal = next(Path("artifacts/signals").glob("*/manifest.json"))
    refuse("is the manifest of a signal, which is made on the way to a plan", "run", str(signal))
    refuse("config file nope.yaml does not exist", "run", "nope.yaml")
    assert run("run", "artifacts/less").code == 0


# --- evaluate, inspect, verify


@pytest.mark.parametrize(
    ("damage", "argv", "match"),
    [
        (None, ["runs/y"], "artifact runs/y does not exist; give a folder that flextools wrote"),
        (None, ["artifacts/less"], "artifacts/less is an artifact of kind 'plan', wanted a run"),
        (lambda: os.remove("runs/x/manifest.json"), ["runs/x"], "it is no finished run; finish it with `flextools train`"),
        (None, ["runs/x", "--data", "heldut.jsonl"], r"did you mean 'heldout\.jsonl'"),
        (None, ["runs/x", "--name", "../x"], "name '../x' is no file name"),
        (None, ["runs/x", "--name", "manifest"], "name 'manifest' is a file of the run"),
        (None, ["runs/x", "--set", "token_budget=0"], "token_budget is 0, wanted a positive number"),
        (lambda: Path("runs/x/evaluation.json").write_text("{", encoding="utf-8"), ["runs/x"], "that is no evaluation"),
        (lambda: Path("runs/x/evaluation.json").write_text("{}", encoding="utf-8"), ["runs/x"], "evaluation of other data"),
        (lambda: flip(Path("runs/x/model/adapter_model.safetensors")), ["runs/x"],
         "adapter_model.safetensors was changed.*train again"),
        (lambda: os.remove("runs/x/model/adapter_model.safetensors"), ["runs/x"], "adapter_model.safetensors is missing"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_evaluated_is_refused(refuse: Any, damage: Any, argv: list[str], match: str) -> None:
    if damage:
        damage()
    refuse(match, "evaluate", "--data", "heldout.jsonl", *argv) if "--data" not in argv else refuse(match, "evaluate", *argv)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_folder_that_is_no_artifact_is_refused(refuse: Any, command: str) -> None:
    refuse("model has no manifest.json: it is no artifact; give", command, "model")
    refuse(r"artifact artifacts/les does not exist; did you mean 'artifacts/less'", command, "artifacts/les")
    refuse("artifact pool.jsonl is a file, wanted a folder", command, "pool.jsonl")


def test_one_folder_that_is_no_artifact_does_not_hide_the_others(run: Any) -> None:
    result = run("verify", "artifacts/less", "nope", "runs/x")
    assert (result.code, result.out) == (2, "artifacts/less: ok\nruns/x: ok\n")
    assert "artifact nope does not exist" in result.error


def test_inspect_shows_rows_without_text_when_the_pool_is_gone(run: Any, refuse: Any) -> None:
    os.remove("pool.jsonl")
    result = run("inspect", "artifacts/less", "-k", "1", "--with-text")
    assert (result.code, "best rows" in result.out) == (0, True)
    assert "rows are shown without text: source pool.jsonl does not exist" in result.err
    refuse("Invalid value for '-k'", "inspect", "artifacts/less", "-k", "-1")


# --- the machine

FULL = OSError(errno.ENOSPC, "No space left on device", "artifacts/x")
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 31679 vs 31632")


@pytest.mark.parametrize(
    "error",
    [FULL, OSError(errno.EDQUOT, "Disk quota exceeded"), SafetensorError("I/O error: No space left on device (os error 28)"),
     TORCH, Exception("No space left on device (os error 28)"),
     OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")],
)  # fmt: skip
@pytest.mark.parametrize(
    "where", ["pyarrow.parquet.write_table", "dataflex_tools.artifact.manifest.write_bytes", "os.replace", "os.fsync"]
)
def test_a_full_disk_is_one_line_and_the_command_can_go_on(
    run: Any, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    argv = ["score", "--method", "random", "--model", "model", "--data", "heldout.jsonl", "--out", "artifacts/r"]

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        result = run(*argv)
        assert "no space left on the disk; free some and run the same command again" in result.error
        assert (result.code, result.changed) == (2, [])
        assert not list(Path("artifacts").rglob("*.tmp"))
    assert run(*argv).code == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EFBIG, "File too large"), "a file would be larger than the system allows"),
        (MemoryError(), "not enough memory; take a smaller model"),
        (pa.ArrowMemoryError("malloc of size 8 failed"), "not enough memory (malloc of size 8 failed)"),
    ],
)
def test_what_the_machine_cannot_hold_while_reading_is_one_line_and_leaves_nothing(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    argv = ["score", "--method", "random", "--model", "model", "--data", "heldout.jsonl", "--out", "artifacts/r"]

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("dataflex_tools.data.ingest._Reading._batch", fail)
        result = run(*argv)
        assert message in result.error
        assert (result.code, result.changed) == (2, [])
    assert run(*argv).code == 0


def test_bytes_that_are_no_text_are_refused_in_any_setting(refuse: Any) -> None:
    odd = os.fsdecode(b"x\xff")
    base = ["score", "--method", "random", "--model", "model", "--data", "heldout.jsonl"]
    refuse("score: out holds .* not text in UTF-8", *base, "--out", f"artifacts/{odd}")
    refuse("is not text in UTF-8", *base[:5], "--data", f"{odd}=heldout.jsonl", "--out", "artifacts/r")


TORCH_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ...")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EFBIG, "File too large", "artifacts/x"), "a file would be larger than the system allows"),
        (Exception("IoError: File too large (os error 27)"), "a file would be larger than the system allows"),
        (MemoryError(), "not enough memory; take a smaller model"),
        (MemoryError("Unable to allocate 7.45 TiB for an array"), "not enough memory (Unable to allocate 7.45 TiB"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (TORCH_MEMORY, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory (CUDA out of memory"),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"), r"text with '\ud800' cannot be written"),
    ],
)
@pytest.mark.parametrize(
    "argv", [("inspect", "artifacts/less"), ("methods",), ("compare", "artifacts/less", "artifacts/less")]
)
def test_what_the_machine_refuses_is_one_line_in_any_command(
    run: Any, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("inspect.describe", "tables.methods_table", "compare.compare"):
        monkeypatch.setattr(f"dataflex_tools.report.{name}", fail)
    result = run(*argv)
    assert said in result.error
    assert (result.code, result.changed) == (2, [])


def test_half_a_character_in_a_manifest_is_one_line(run: Any) -> None:
    path = Path("artifacts/less/manifest.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "licence": "\ud800"}))
    for argv in (("inspect", "artifacts/less"), ("verify", "artifacts/less"), HALF):
        result = run(*argv)
        assert result.code in (1, 2)
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*HALF, "--set", "training.lr=1e-4"], "did you mean 'learning_rate'?"),
        ([*HALF, "--set", "training.epochs=1"], "did you mean 'num_train_epochs'?"),
        ([*HALF, "--set", "training.batch_size=1"], "did you mean 'global_batch_size'?"),
        ([*HALF, "--set", "lr=1e-4"], "did you mean 'training.learning_rate'?"),
        ([*SCORE, "--set", "training.learning_rate=1e-4"],
         "did you mean 'warmup.training.learning_rate' or 'proxy.training.learning_rate'?"),
        ([*SCORE, "--set", "lr=1e-4"], "did you mean 'warmup.training.learning_rate' or 'proxy.training.learning_rate'?"),
        ([*SCORE, "--set", "lora.r=4"], "did you mean 'model.lora.r'"),
        ([*SCORE, "--set", "gradient.quux=4"], "gradient has no setting 'quux'; known: adam, dim"),
        ([*SCORE, "--set", "gradient.sed=4"], "did you mean 'seed'?"),
    ],
)  # fmt: skip
def test_a_hint_names_what_is_meant_or_nothing(run: Any, argv: list[str], said: str) -> None:
    assert said in run(*argv).error


def test_a_full_disk_in_the_warm_up_leaves_no_half_written_checkpoint(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*SCORE, "--set", "warmup.training.seed=1", "--set", "warmup.training.num_train_epochs=1"]

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("dataflex_tools.train.moments.save_file", fail)
        result = run(*argv)
        assert "no space left on the disk" in result.error
        assert not list(Path("artifacts/models").rglob("*.tmp"))
    assert run(*argv).code == 0
    assert Path("artifacts/new/manifest.json").exists()


def test_signals_that_will_not_fit_on_the_disk_are_refused_before_the_warm_up(
    refuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    refuse(r"the signals need \d\.\d MiB, .* has 0\.0 MiB free; free some", *SCORE, "--set", "warmup.training.seed=1",
           "--set", "gradient.dim=4096")  # fmt: skip


def test_a_folder_that_cannot_be_written_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "artifacts/r")

    monkeypatch.setattr("os.replace", fail)
    result = run("score", "--method", "random", "--model", "model", "--data", "heldout.jsonl", "--out", "artifacts/r")
    assert (result.code, result.changed) == (2, [])
    assert "artifacts/r: Permission denied; check the path and its permissions" in result.error


def test_ctrl_c_is_a_clean_stop(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dataflex_tools.stages.score.prepare", stop)
    result = run(*SCORE)
    assert (result.code, result.err, result.changed) == (
        130, "stopped; the same command goes on where this one stopped\n", [],
    )  # fmt: skip


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("dataflex_tools.stages.score.prepare", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(*SCORE)
