"""Two processes make the artifact that one makes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.artifact.manifest import verify_artifact
from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.lock import hold
from tests.e2e.conftest import SCRIPT, call, flextools, make_project

pytestmark = pytest.mark.e2e
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--no-python", str(SCRIPT))
# gradients are summed in another order over two ranks; Adam and float16 storage carry it on
TWO_RANKS = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = (make_project(tmp_path_factory.mktemp(name)) for name in ("one", "two"))
    flextools(one, "score", "--config", "score.yaml")
    done = call(two, *TORCHRUN, "score", "--config", "score.yaml", watch={"WATCH_LOG": str(two / "writes.txt")})
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


def test_two_ranks_write_the_plan_of_one(both: tuple[Path, Path]) -> None:
    one, two = (load_plan(root / "artifacts" / "less") for root in both)
    np.testing.assert_array_equal(one.ids_N16, two.ids_N16)
    np.testing.assert_array_equal(one.num_tokens_N, two.num_tokens_N)
    np.testing.assert_allclose(one.score_N, two.score_N, **TWO_RANKS)
    np.testing.assert_array_equal(np.argsort(-one.score_N, kind="stable"), np.argsort(-two.score_N, kind="stable"))


def test_each_rank_writes_parts_and_the_folders_verify(both: tuple[Path, Path]) -> None:
    lines = [line.split(" ", 1) for line in (both[1] / "writes.txt").read_text().splitlines()]
    ranks = {rank for rank, path in lines if "/part-" in path and path.endswith(".parquet")}
    assert ranks == {"0", "1"}
    manifests = list((both[1] / "artifacts").rglob("manifest.json"))
    assert len(manifests) == 6
    assert [verify_artifact(path.parent) for path in manifests] == [[]] * 6


def test_two_ranks_train_and_evaluate_what_one_does(both: tuple[Path, Path]) -> None:
    import pyarrow.parquet as pq

    tables = []
    for root, launcher in zip(both, ((str(SCRIPT),), TORCHRUN), strict=True):
        for words in (("train", "--config", "train.yaml"), ("evaluate", "runs/less", "--data", "heldout.jsonl")):
            done = call(root, *launcher, *words)
            assert done.returncode == 0, done.stderr[-3000:]
        assert (root / "runs" / "less" / "evaluation.json").exists()
        tables.append([pq.read_table(root / "runs" / "less" / f"{name}.parquet") for name in ("log", "ledger")])
        assert verify_artifact(root / "runs" / "less") == []
    (log_1, ledger_1), (log_2, ledger_2) = tables
    assert sorted(zip(*(ledger_1[n].to_pylist() for n in ("step", "row")), strict=True)) == sorted(
        zip(*(ledger_2[n].to_pylist() for n in ("step", "row")), strict=True)
    )
    np.testing.assert_allclose(log_1["loss"].to_numpy(), log_2["loss"].to_numpy(), rtol=1e-5)


def test_a_control_under_two_ranks_finishes_at_once_and_again(both: tuple[Path, Path]) -> None:
    words = ("score", "--method", "random", "--model", "model", "--data", "pool.jsonl", "--out", "artifacts/random")
    for _ in range(2):
        done = call(both[1], *TORCHRUN, *words)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("artifacts/random") == 1  # one rank answers


def test_two_ranks_measure_and_score_by_the_representatives_that_one_chooses(tmp_path: Path) -> None:
    settings = ("settings.rows_per_cluster=10", "settings.num_representatives=2", "gradient.part_rows=4")
    words = ("score", "--config", "score.yaml", "--method", "cluster_less", "--out", "artifacts/cluster_less")
    words += tuple(word for setting in settings for word in ("--set", setting))
    plans = []
    for name, launcher in (("one", (str(SCRIPT),)), ("two", TORCHRUN)):
        root = make_project(tmp_path / name)
        done = call(root, *launcher, *words)
        assert done.returncode == 0, done.stderr[-3000:]
        plans.append(load_plan(root / "artifacts" / "cluster_less"))
        gradients = [path.parent for path in root.glob("artifacts/signals/gradient-*/manifest.json")]
        assert sorted(len(list(folder.glob("part-*.parquet"))) for folder in gradients) == [2, 2, 3, 3]  # 6 and 12 rows
        assert [verify_artifact(folder) for folder in gradients] == [[]] * 4
    one, two = plans
    np.testing.assert_array_equal(one.table["cluster"].to_numpy(), two.table["cluster"].to_numpy())
    np.testing.assert_allclose(one.score_N, two.score_N, **TWO_RANKS)


PATIENT = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as torch_dist
torch_dist.init_process_group("gloo", timeout=timedelta(seconds=3))
from dataflex_tools.core import dist
from dataflex_tools.core.lock import hold_for_all
dist.begin()
print("begun", flush=True)
if sys.argv[1] == "dies":
    if dist.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.perf_counter()
    try:
        dist.barrier()
    except RuntimeError:
        print("noticed" if time.perf_counter() - start < 60 else "late", flush=True)
    os._exit(0)
if dist.is_main():
    time.sleep(5)
dist.barrier()
if dist.is_main():
    time.sleep(5)
print("heard", dist.broadcast(dist.rank() + 7), flush=True)
with hold_for_all(Path(sys.argv[1]), "train"):
    print("had", flush=True)
dist.finish()
"""


def two_processes(word: str, port: int) -> list[subprocess.Popen[str]]:
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = ({**env, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    command = [sys.executable, "-c", PATIENT, word]
    return [subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True) for own in ranks]


def test_ranks_wait_longer_for_each_other_and_for_a_lock_than_the_group_would(tmp_path: Path) -> None:
    """The group's own time-out is 3 seconds; each of the three waits takes 5."""
    with hold(tmp_path / "x", "the first"):
        processes = two_processes(str(tmp_path / "x"), 29741)
        for process in processes:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == ["begun\n", "heard 7\n"]
        time.sleep(5)
        assert [process.poll() for process in processes] == [None, None]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["had\n", "had\n"]


def test_a_rank_that_dies_is_noticed_at_once_by_those_who_wait() -> None:
    processes = two_processes("dies", 29743)
    assert processes[0].communicate(timeout=120)[0] == "begun\nnoticed\n"
    processes[1].communicate()
