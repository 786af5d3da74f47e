"""Artifacts, caches and runs damaged at random, or changed by somebody who signs what he changes.

Whatever is done to them, a command ends with a result that is right or with one line of error: never a traceback, never
another result with exit code 0, never a control character on the terminal, never seconds and memory without bound.
FLEXTOOLS_FUZZ sets how many cases of each kind are tried.
"""

import json
import logging
import os
import random
import resource
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dataflex_tools import cli
from dataflex_tools.artifact.manifest import MANIFEST
from tests import tiny
from tests.artifact.hostile import change_table, sign, with_column

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

CASES = int(os.environ.get("FLEXTOOLS_FUZZ", "40"))
SECONDS, MEBIBYTES = 10.0, 500.0
PROXY = {"training": tiny.mix_training()}
# reads all that is stored, measures nothing
USES = {
    "less": ["score", "--config", "less.yaml", "--out", "artifacts/new", "--set", "settings.aggregate=cosine_of_mean"],
    "doremi": ["score", "--config", "doremi.yaml", "--out", "artifacts/new", "--set", "settings.tolerance=0.5"],
    "regmix": ["score", "--config", "regmix.yaml", "--out", "artifacts/new", "--set", "licence=mit"],
    "run": ["evaluate", "runs/x", "--data", "heldout.jsonl", "--name", "new"],
}


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str
    seconds: float
    mebibytes: float
    is_traceback: bool = False


@dataclass
class Tally:
    """What was seen over many cases; `faults` are what must not be. `usual`: seconds of the command left alone."""

    usual: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def take(self, what: str, answer: Answer) -> None:
        self.seen[f"exit {answer.code}"] += 1
        wrong = []
        if answer.is_traceback or "Traceback" in answer.err:
            wrong.append(f"traceback {answer.err.strip().splitlines()[-1][:300]}")
        if answer.seconds > self.usual + SECONDS:
            wrong.append(f"{answer.seconds:.1f} s")
        if answer.mebibytes > MEBIBYTES:
            wrong.append(f"{answer.mebibytes:.0f} MiB more")
        if any(not (c.isprintable() or c in "\n\r") for c in answer.out + answer.err):
            wrong.append("a control character on the terminal")
        if answer.code == 2 and len([line for line in answer.err.splitlines() if line.startswith("error: ")]) != 1:
            wrong.append("not one line of error")
        self.faults += [f"{what}: {fault}" for fault in wrong]


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> Answer:
    """A command in this process."""
    logger, before = logging.getLogger("flextools"), sys.argv
    state = (logger.handlers[:], logger.level, logger.propagate)
    sys.argv, code, is_traceback = ["flextools", *argv], 0, False
    capsys.readouterr()
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:  # noqa: BLE001 - that is what is counted here
        code, is_traceback = 1, True
        traceback.print_exc()
    finally:
        sys.argv = before
        logger.handlers[:], logger.propagate = state[0], state[2]
        logger.setLevel(state[1])
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    streams = capsys.readouterr()
    return Answer(code, streams.out, streams.err, seconds, grown, is_traceback)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every kind of artifact: signals, a warm-up, plans, a run, mixtures, a reference, a proxy, its losses, a swarm."""
    root, here = tmp_path_factory.mktemp("fuzz") / "project", Path.cwd()
    tiny.make_all(root)
    tiny.make_texts(root)
    settings = {
        "less": tiny.score_config(Path(), out="artifacts/less"),
        "doremi": tiny.mix_config(Path(), method="doremi", out="artifacts/doremi", proxy=PROXY),
        "regmix": tiny.mix_config(
            Path(), method="regmix", out="artifacts/regmix", settings={"num_runs": 10, "regressor": "linear"},
            proxy={"training": tiny.mix_training(max_steps=2), "held_out_rows": 2},
        ),
    }  # fmt: skip
    for name, config in settings.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    os.chdir(root)
    try:
        for name in settings:
            sys.argv = ["flextools", "score", "--config", f"{name}.yaml"]
            with pytest.raises(SystemExit, match="0"):
                cli.main()
        sys.argv = ["flextools", "train", "--artifacts", "artifacts/less", "--fraction", "0.5", "--out", "runs/x",
                    "--set", "training.global_batch_size=8", "--set", "training.max_steps=2"]  # fmt: skip
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        yield root
    finally:
        os.chdir(here)
        logging.getLogger("flextools").handlers.clear()
        logging.getLogger("flextools").propagate = True


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(shutil.copytree(finished, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


def restore(finished: Path, *folders: str) -> None:
    """The current folder as it was before the last case."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished / folder, folder)


def result_of(name: str) -> Any:
    """What a use wrote, without dates and addresses."""
    if name == "run":
        found = json.loads(Path("runs/x/new.json").read_text())
        return {key: found[key] for key in ("groups", "all", "data")}
    files = json.loads(Path("artifacts/new", MANIFEST).read_text())["files"]
    return {entry["path"]: entry["sha256"] for entry in files}


def damage(path: Path, rng: random.Random, others: list[Path]) -> str:
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "cut", "delete", "swap", "zero", "grow"])
    if kind == "delete" or not content:
        path.unlink()
        return "delete"
    place = rng.randrange(len(content))
    if kind == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "zero":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif kind == "grow":
        content[place:place] = rng.randbytes(16)
    else:
        content = bytearray(rng.choice([p for p in others if p.suffix == path.suffix]).read_bytes())
    path.write_bytes(content)
    return kind


@pytest.mark.parametrize("name", USES)
def test_random_damage_gives_the_same_result_or_one_line(
    name: str, finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, whole = random.Random(name), call(capsys, *USES[name])
    assert whole.code == 0, whole.err
    wanted, tally = result_of(name), Tally(whole.seconds)
    for case in range(CASES):
        restore(finished, "artifacts", "runs")
        own = "runs" if name == "run" else "artifacts"
        files = sorted(path for path in Path(own).rglob("*") if path.is_file() and _is_read(path, name))
        path = rng.choice(files)
        before = path.read_bytes()
        what = f"{name} {case}: {damage(path, rng, files)} {path}"
        is_changed = not path.exists() or path.read_bytes() != before
        answer = call(capsys, *USES[name])
        tally.take(what, answer)
        if answer.code == 0 and result_of(name) != wanted:
            tally.faults.append(f"{what}: another result, exit 0")
        if answer.code == 1:
            tally.faults.append(f"{what}: exit 1")
        restore(finished, "artifacts", "runs")
        if (folder := _artifact_of(path)) is not None and is_changed:
            path.write_bytes(before)
            damage(path, rng, files)
            is_changed = not path.exists() or path.read_bytes() != before
            found = call(capsys, "verify", str(folder))
            tally.take(f"verify {what}", found)
            if found.code == 0 and is_changed:
                tally.faults.append(f"{what}: verify is content")
    print(name, dict(tally.seen))
    assert tally.faults == []


def _is_read(path: Path, name: str) -> bool:
    """Files of a folder that its own commands read; what serves a resume or a person is no part of an artifact."""
    parts = path.parts
    if name == "run":
        return parts[2:] == (MANIFEST,) or "model" in parts
    other = {"less": ("doremi", "regmix"), "doremi": ("less", "regmix"), "regmix": ("less", "doremi")}[name]
    return not any(part in other for part in parts)


def _artifact_of(path: Path) -> Path | None:
    return next((folder for folder in path.parents if (folder / MANIFEST).exists()), None)


HOSTILE: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, -0.0, "", "\x1b[2J\x1b]0;x\x07\u202e", "[red]x[/x]",
    "../../../etc/passwd", "/dev/zero", "a\0b", "x" * 100_000, "nan", [], {}, [[]], {"a": {"b": None}}, [None], [-1],
    {"": -1}, ["x"],
]  # fmt: skip


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value has a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key)
        yield from places_in(item, (*at, key))


def put(value: Any, at: tuple[Any, ...], hostile: Any) -> None:
    for key in at[:-1]:
        value = value[key]
    if hostile is _GONE:
        del value[at[-1]]
    else:
        value[at[-1]] = hostile


_GONE = object()
LOOKS: dict[str, list[list[str]]] = {
    "artifacts/less": [["inspect", "artifacts/less"], ["compare", "artifacts/less", "artifacts/other"],
                       ["train", "--artifacts", "artifacts/less", "--fraction", "0.5", "--out", "runs/new", "--dry-run"],
                       ["score", "--config", "less.yaml"], ["score", "--config", "less.yaml", "--overwrite"]],
    "artifacts/doremi": [["inspect", "artifacts/doremi"], ["compare", "artifacts/doremi", "artifacts/regmix"],
                         ["export", "artifacts/doremi", "--to", "datasets", "-o", "out"],
                         ["inspect", "artifacts/doremi", "--picture", "w.svg"],
                         ["train", "--artifacts", "artifacts/doremi", "--out", "runs/new", "--dry-run",
                          "--set", "training.max_steps=2"], ["score", "--config", "doremi.yaml"]],
    "runs/x": [["inspect", "runs/x"], ["evaluate", "runs/x", "--data", "heldout.jsonl", "--dry-run"],
               ["train", "--artifacts", "artifacts/less", "--fraction", "0.5", "--out", "runs/x", "--set",
                "training.global_batch_size=8", "--set", "training.max_steps=2"]],
    "signals/gradient": [["inspect", "{}"], USES["less"]],
    "signals/token_loss": [["inspect", "{}"], USES["doremi"],
                           [*USES["doremi"], "--set", "proxy.reference_losses={}"]],
    "models/warmup": [["inspect", "{}"], USES["less"]],
    "models/reference": [["inspect", "{}"], USES["doremi"]],
    "models/proxy": [["inspect", "{}"], USES["doremi"]],
    "models/swarm": [["inspect", "{}"], USES["regmix"]],
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKS)
def test_hostile_values_under_a_valid_digest_are_one_line_or_harmless(
    name: str, finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("artifacts/less", "artifacts/other")
    folder = Path(name) if Path(name).exists() else sorted(Path("artifacts").glob(f"{name}-*"))[0]
    rng, tally = random.Random(name), Tally()
    whole = json.loads((folder / MANIFEST).read_text())
    places = [at for at in places_in(whole) if at[0] not in ("digest", "created", "producer")]
    for case in range(CASES):
        content, at = json.loads(json.dumps(whole)), rng.choice(places)
        hostile = rng.choice([_GONE, *HOSTILE])
        put(content, at, hostile)
        shown = ".".join(map(str, at))
        for argv in LOOKS[name]:
            words = [word.format(folder) for word in argv]
            restore(finished, str(folder))
            for made in ("artifacts/new", "out"):
                shutil.rmtree(made, ignore_errors=True)
            (folder / MANIFEST).write_text(_signed(content))
            # work that a refused address makes necessary is work; what takes long is only looked at
            answer = call(capsys, *words)
            tally.take(f"{words} {case}: {shown} = {str(hostile)[:40]!r}", answer)
    print(name, dict(tally.seen))
    assert tally.faults == []


def _signed(content: dict[str, Any]) -> str:
    from dataflex_tools.artifact.manifest import manifest_digest

    try:
        return json.dumps({**content, "digest": manifest_digest(content)})
    except ValueError:
        return json.dumps(content)


def many(count: int) -> pa.Table:
    """Rows that pack to almost nothing."""
    zeros = pa.array(np.zeros(count, np.int64))
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), ["web"])
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(bytes(16 * count))])
    return pa.table({"row": zeros, "sample_id": ids, "domain": names, "num_tokens": pa.array(np.zeros(count, np.int32)),
                     "score": pa.array(np.zeros(count))})  # fmt: skip


def write_many(path: Path, rows: int, groups: int) -> None:
    """A Parquet file of `rows` x `groups` rows in which all are alike."""
    table = many(rows)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table)


PARQUET: dict[str, tuple[str, str, Callable[[pa.Table], pa.Table]]] = {
    "permuted rows": ("artifacts/less", "scores.parquet", lambda t: t.take(np.random.default_rng(0).permutation(len(t)))),
    "half the rows": ("artifacts/less", "scores.parquet", lambda t: t.slice(0, len(t) // 2)),
    "no rows": ("artifacts/less", "scores.parquet", lambda t: t.slice(0, 0)),
    "rows twice": ("artifacts/less", "scores.parquet", lambda t: pa.concat_tables([t, t])),
    "foreign ids": ("artifacts/less", "scores.parquet", lambda t: with_column("sample_id", [b"x" * 16] * len(t))(t)),
    "NaN": ("artifacts/less", "scores.parquet", lambda t: with_column("score", [np.nan] * len(t))(t)),
    "infinity": ("artifacts/less", "scores.parquet", lambda t: with_column("score", [np.inf] * len(t))(t)),
    "nulls": ("artifacts/less", "scores.parquet", lambda t: with_column("score", [None] * len(t))(t)),
    "negative tokens": ("artifacts/less", "scores.parquet", lambda t: with_column("num_tokens", [-1] * len(t))(t)),
    "texts for scores": ("artifacts/less", "scores.parquet", lambda t: with_column("score", pa.array(["1"] * len(t)))(t)),
    "lists for scores": ("artifacts/less", "scores.parquet", lambda t: with_column("score", pa.array([[1.0]] * len(t)))(t)),
    "no column": ("artifacts/less", "scores.parquet", lambda t: t.select([])),
    "a name of 100 MB": ("artifacts/less", "scores.parquet", lambda t: with_column(
        "domain", pa.DictionaryArray.from_arrays([0] * len(t), ["x" * 10**8]))(t)),
    "a value of 100 MB": ("artifacts/less", "scores.parquet", lambda t: t.append_column("text", pa.array(
        ["x" * 10**8, *[""] * (len(t) - 1)]))),
    "negative weights": ("artifacts/doremi", "mixture.parquet", lambda t: with_column("weight", [-1.0, 1, 1])(t)),
    "weights of 3": ("artifacts/doremi", "mixture.parquet", lambda t: with_column("weight", [1.0, 1, 1])(t)),
    "NaN weights": ("artifacts/doremi", "mixture.parquet", lambda t: with_column("weight", [np.nan] * 3)(t)),
    "other weights": ("artifacts/doremi", "mixture.parquet", lambda t: with_column("weight", [0.5, 0.25, 0.25])(t)),
    "no weights": ("artifacts/doremi", "mixture.parquet", lambda t: t.slice(0, 0)),
    "one domain gone": ("artifacts/doremi", "mixture.parquet", lambda t: t.slice(0, 2)),
    "falling steps": ("artifacts/doremi", "trajectory.parquet", lambda t: t.take(np.arange(len(t))[::-1])),
    "texts for weights": ("artifacts/doremi", "mixture.parquet", lambda t: with_column("weight", pa.array(["a"] * 3))(t)),
    "NaN in a vector": ("signals/gradient", "part-00000.parquet", lambda t: with_column("value", pa.FixedSizeListArray
        .from_arrays(pa.array(np.full(len(t) * 64, np.nan, np.float16)), 64))(t)),
    "infinite norms": ("signals/gradient", "part-00000.parquet", lambda t: with_column("norm", [np.inf] * len(t))(t)),
    "other ids": ("signals/gradient", "part-00000.parquet", lambda t: with_column("sample_id", [b"y" * 16] * len(t))(t)),
    "longer vectors": ("signals/gradient", "part-00000.parquet", lambda t: with_column("value", pa.FixedSizeListArray
        .from_arrays(pa.array(np.zeros(len(t) * 128, np.float16)), 128))(t)),
    "half a part": ("signals/gradient", "part-00000.parquet", lambda t: t.slice(0, len(t) // 2)),
    "NaN losses": ("signals/token_loss", "part-00000.parquet", lambda t: with_column(
        "token_loss", [[np.nan] * len(x) for x in t["token_loss"].to_pylist()])(t)),
    "shorter losses": ("signals/token_loss", "part-00000.parquet", lambda t: with_column(
        "token_loss", [x[:1] for x in t["token_loss"].to_pylist()])(t)),
}  # fmt: skip


def test_hostile_tables_under_a_valid_digest_are_refused(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally()
    shutil.copytree("artifacts/less", "artifacts/other")
    for title, (name, file, change) in PARQUET.items():
        folders = [Path(name)] if Path(name).exists() else sorted(Path("artifacts").glob(f"{name}-*"))
        for folder in folders:
            restore(finished, str(folder))
            change_table(folder, file, change)
            if name == "signals/token_loss":  # read while a proxy is trained, by way of the cache
                shutil.rmtree("artifacts/cache/token_loss", ignore_errors=True)
                for proxy in Path("artifacts/models").glob("proxy-*"):
                    shutil.rmtree(proxy)
            uses = LOOKS[name][:3] if name.startswith("artifacts") else LOOKS[name][1:2]
            for argv in uses:
                shutil.rmtree("artifacts/new", ignore_errors=True)
                answer = call(capsys, *argv)
                tally.take(f"{title}, {argv[0]} {folder}", answer)
                if answer.code == 0:
                    tally.faults.append(f"{title}, {argv}: exit 0")
            restore(finished, str(folder))
    print(dict(tally.seen))
    assert tally.faults == []


def test_three_hundred_million_rows_in_a_few_megabytes_are_refused_in_a_second(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("artifacts/less/scores.parquet")
    write_many(path, 1_000_000, 300)
    sign(Path("artifacts/less"))
    tally = Tally()
    for argv in LOOKS["artifacts/less"][:1]:
        answer = call(capsys, *argv)
        tally.take(f"{argv[0]} of {path.stat().st_size:,} bytes", answer)
        assert answer.code == 2
        assert answer.seconds < 2.0
        assert answer.mebibytes < 200
    assert tally.faults == []
