"""DoReMi and ODM by the command line: two processes decide what one does, and a kill leaves no trace."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from dataflex_tools.artifact.manifest import verify_artifact
from dataflex_tools.artifact.mixture import load_mixture
from tests import tiny
from tests.e2e.conftest import SCRIPT, assert_equal_contents, call, contents, flextools

pytestmark = pytest.mark.e2e
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--no-python", str(SCRIPT))
# losses are summed in another order over ranks and micro-batches; 50 Adam steps carry it on
SHARED_OUT = {"rtol": 0, "atol": 2e-4}
METHODS = ("doremi", "odm")


def make_project(root: Path, *, steps: int = 50, **training: object) -> Path:
    """Text, a model and a config per method, with relative paths."""
    tiny.make_texts(root)
    proxy = {"training": tiny.mix_training(max_steps=steps, save_steps=4, **training)}
    for method in METHODS:
        config = tiny.mix_config(Path(), method=method, out=f"artifacts/{method}", proxy=proxy)
        config |= {"token_loss": {"part_rows": 64}} if method == "doremi" else {}
        (root / f"{method}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return root


def weights(root: Path, method: str) -> np.ndarray:
    return np.stack([state.weight_K for state in load_mixture(root / "artifacts" / method).mixture.trajectory])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("whole"))
    for method in METHODS:
        flextools(root, "score", "--config", f"{method}.yaml")
    return root


@pytest.mark.parametrize(("method", "size"), [("doremi", 8), ("odm", 8), ("doremi", 2)])  # 2: two micro-batches a rank
def test_two_ranks_go_through_the_weights_of_one(whole: Path, tmp_path: Path, method: str, size: int) -> None:
    root = make_project(tmp_path, per_device_train_batch_size=size)
    done = call(root, *TORCHRUN, "score", "--config", f"{method}.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(weights(root, method)) == 51
    np.testing.assert_allclose(weights(root, method), weights(whole, method), **SHARED_OUT)
    assert np.ptp(weights(whole, method), axis=0).max() > 0.01
    for manifest in (root / "artifacts").rglob("manifest.json"):
        assert verify_artifact(manifest.parent) == []
    rows = [
        [sorted(zip(*(pq.read_table(path)[n].to_pylist() for n in ("step", "row")), strict=True))
         for path in sorted((base / "artifacts" / "models").glob("proxy-*/ledger.parquet"))
         if method == "odm" or base is whole]
        for base in (whole, root)
    ]  # fmt: skip
    assert method != "odm" or rows[1][0] in rows[0]


@pytest.mark.parametrize("method", METHODS)
def test_four_micro_batches_go_through_the_weights_of_one(whole: Path, tmp_path: Path, method: str) -> None:
    root = make_project(tmp_path, per_device_train_batch_size=2)
    flextools(root, "score", "--config", f"{method}.yaml")
    np.testing.assert_allclose(weights(root, method), weights(whole, method), **SHARED_OUT)


@pytest.mark.parametrize("moment", [
    "*/models/reference-*/journal/ledger-00000.bin#3", "*/models/reference-*/manifest.json#1", "*/part-00001.parquet#1",
    "*/signals/*/manifest.json#1", "*/models/proxy-*/run.json#1", "*/proxy-*/journal/mixer.bin#6",
    "*/proxy-*/checkpoints/*/trainer_state.json#2", "*/proxy-*/states.json#1", "*/models/proxy-*/manifest.json#1",
    "artifacts/doremi#1",
])  # fmt: skip
def test_a_killed_doremi_ends_byte_identical(short: Path, tmp_path: Path, moment: str) -> None:
    root = make_project(tmp_path, steps=12)
    flextools(root, "score", "--config", "doremi.yaml", watch={"WATCH_KILL": moment})
    assert not (root / "artifacts" / "doremi" / "manifest.json").exists()
    flextools(root, "score", "--config", "doremi.yaml")
    assert_equal_contents(contents(root, "artifacts"), contents(short, "artifacts"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("short"), steps=12)
    flextools(root, "score", "--config", "doremi.yaml")
    return root
