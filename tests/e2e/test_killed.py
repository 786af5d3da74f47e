"""A command killed at any moment and given again leaves what it would have left undisturbed, byte for byte."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataflex_tools.artifact.manifest import verify_artifact
from tests.e2e.conftest import INSTRUMENT, SCRIPT, assert_equal_contents, contents, flextools, make_project

pytestmark = pytest.mark.e2e
SCORE = ("score", "--config", "score.yaml")
# of the chain's 120 writes; FLEXTOOLS_KILL_STRIDE=1 kills at each of them, in about ten minutes
STRIDE = int(os.environ.get("FLEXTOOLS_KILL_STRIDE", "11"))
TRAIN = ("train", "--config", "train.yaml")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("undisturbed"))
    flextools(root, *SCORE)
    flextools(root, *TRAIN)
    return root


@pytest.mark.parametrize("moment", [
    "*/warmup-*/run/run.json#1", "*/run/journal/ledger-00000.bin#3", "*/run/checkpoints/*/trainer_state.json#2",
    "*/models/warmup-*/checkpoint-2#1", "*/warmup.json#1", "*/part-00002.parquet#1", "*/signals/*/manifest.json#3",
    "artifacts/less#1",
])  # fmt: skip
def test_a_killed_score_ends_byte_identical(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    root = make_project(tmp_path)
    flextools(root, *SCORE, watch={"WATCH_KILL": moment})
    assert not (root / "artifacts" / "less" / "manifest.json").exists()
    flextools(root, *SCORE)
    assert_equal_contents(contents(root, "artifacts"), contents(undisturbed, "artifacts"))


@pytest.mark.parametrize("moment", [
    "*/run.json#1", "*/journal/ledger-00000.bin#5", "*/checkpoint-4/trainer_state.json#1", "runs/less/model#2",
    "*/ledger.parquet#1", "runs/less/manifest.json#1",
])  # fmt: skip
def test_a_killed_training_ends_byte_identical(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    root = make_project(tmp_path)
    shutil.copytree(undisturbed / "artifacts", root / "artifacts")
    flextools(root, *TRAIN, watch={"WATCH_KILL": moment})
    assert not (root / "runs" / "less" / "manifest.json").exists()
    flextools(root, *TRAIN)
    names = ("runs/less/model", "runs/less/manifest.json", "runs/less/ledger.parquet", "runs/less/log.parquet")
    left, wanted = contents(root, "runs"), contents(undisturbed, "runs")
    assert {n: v for n, v in left.items() if n.startswith(names)} == {n: v for n, v in wanted.items() if n.startswith(names)}
    assert sorted(left) == sorted(wanted)
    loss = pq.read_table(root / "runs" / "less" / "log.parquet")["loss"].to_pylist()
    assert len(loss) == 6


def test_a_score_killed_by_a_timer_ends_byte_identical(undisturbed: Path, tmp_path: Path) -> None:
    """Not at a write: wherever the process happens to be once the first part has appeared."""
    root = make_project(tmp_path)
    with subprocess.Popen([SCRIPT, *SCORE], cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not list(root.glob("artifacts/signals/*/part-*.parquet")) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    flextools(root, *SCORE)
    assert_equal_contents(contents(root, "artifacts"), contents(undisturbed, "artifacts"))


@pytest.mark.timeout(1800)
def test_killed_at_any_write_the_chain_ends_byte_identical(tmp_path: Path) -> None:
    """Score, then train, in forked children: each killed some writes later than the one before, until one survives."""
    inputs = make_project(tmp_path / "inputs")
    wanted = shutil.copytree(inputs, tmp_path / "wanted")
    assert _in_child(wanted, _chain) == 0
    expected, kill_at = _lasting(contents(wanted, "artifacts", "runs")), 1
    while True:
        root = Path(shutil.copytree(inputs, tmp_path / "killed"))
        if (status := _in_child(root, _chain, kill_at=kill_at)) == 0:
            break
        assert status == -signal.SIGKILL
        assert _in_child(root, _chain) == 0, f"after a kill at write {kill_at}"
        assert_equal_contents(_lasting(contents(root, "artifacts", "runs")), expected)
        folders = [path.parent for path in root.rglob("manifest.json")]
        assert {str(folder): faults for folder in folders if (faults := verify_artifact(folder))} == {}
        shutil.rmtree(root)
        kill_at += STRIDE
    assert kill_at > 100


def _lasting(found: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in found.items() if "/checkpoints/" not in name}


def _chain() -> None:
    from dataflex_tools.core.config import load_yaml
    from dataflex_tools.stages.config import build
    from dataflex_tools.stages.score import score
    from dataflex_tools.stages.train import train

    score(build("score", load_yaml(Path("score.yaml"))))
    train(build("train", load_yaml(Path("train.yaml"))))


def _in_child(root: Path, work: Callable[[], None], *, kill_at: int | None = None) -> int:
    """Exit status of a fork that does `work` in `root`; negative for a signal."""
    import torch  # noqa: F401 - imported once, in the parent

    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(root)
            if kill_at is not None:
                os.environ["WATCH_KILL"] = f"[ar]*#{kill_at}"  # relative paths: artifacts and runs, no system files
                sys.path.insert(0, str(INSTRUMENT))
                import sitecustomize  # noqa: F401 - installs the watch
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
