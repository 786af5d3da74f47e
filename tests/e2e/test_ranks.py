"""Two processes make the artifact that one makes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.artifact.manifest import verify_artifact
from dataflex_tools.artifact.plan import load_plan
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
