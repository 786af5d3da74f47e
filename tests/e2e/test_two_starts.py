"""The same commands started twice, at any distance and with one of them killed, leave what one start leaves."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from dataflex_tools.artifact.manifest import verify_artifact
from tests import tiny
from tests.e2e.conftest import assert_equal_contents, contents, make_project

pytestmark = pytest.mark.e2e
NUM_STARTS = int(os.environ.get("FLEXTOOLS_DOUBLE_STARTS", "4"))
NUM_KILLS = int(os.environ.get("FLEXTOOLS_DOUBLE_KILLS", "4"))


def less() -> None:
    _score("score.yaml")


def less_and_less() -> None:
    """Two plans of one warm-up and the same signals."""
    _score("score.yaml", out="artifacts/again", seed=3)


def doremi() -> None:
    _score("doremi.yaml")


def train() -> None:
    from dataflex_tools.core.config import load_yaml
    from dataflex_tools.stages.config import build
    from dataflex_tools.stages.train import train

    train(build("train", load_yaml(Path("train.yaml"))))


def _score(name: str, **changes: object) -> None:
    from dataflex_tools.core.config import load_yaml
    from dataflex_tools.stages.config import build
    from dataflex_tools.stages.score import score

    score(build("score", {**load_yaml(Path(name)), **changes}))


# what the first and the second start do, and whether they need the plan of `less`
PAIRS: dict[str, tuple[Callable[[], None], Callable[[], None], bool]] = {
    "less": (less, less, False),
    "shared": (less, less_and_less, False),
    "doremi": (doremi, doremi, False),
    "train": (train, train, True),
}


def start(root: Path, work: Callable[[], None]) -> int:
    """The process id of a fork that does `work` in `root`."""
    import torch  # noqa: F401 - imported once, in the parent

    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(root)
            with Path(f"log-{os.getpid()}.txt").open("w") as log:
                os.dup2(log.fileno(), 2)
                work()
                code = 0
        finally:
            os._exit(code)
    return child


def end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lasting(root: Path) -> dict[str, object]:
    found = contents(root, *(name for name in ("artifacts", "runs") if (root / name).exists()))
    return {name: content for name, content in found.items() if "/checkpoints" not in name}


class Inputs:
    """Folders to start in, and what an undisturbed start of each pair leaves."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.plain = make_project(root / "plain")
        tiny.make_texts(self.plain)
        training = tiny.mix_training(max_steps=12, save_steps=4)
        config = tiny.mix_config(Path(), method="doremi", out="artifacts/doremi", proxy={"training": training})
        config["token_loss"] = {"part_rows": 64}
        (self.plain / "doremi.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        self._scored = Path(shutil.copytree(self.plain, root / "scored"))
        assert end(start(self._scored, less)) == 0
        self.expected: dict[str, dict[str, object]] = {}
        self.seconds: dict[str, float] = {}  # that a first start takes alone
        for name in PAIRS:
            self._undisturbed(name)

    def fresh(self, folder: Path, *, is_scored: bool) -> Path:
        return Path(shutil.copytree(self._scored if is_scored else self.plain, folder))

    def _undisturbed(self, name: str) -> None:
        first, second, is_scored = PAIRS[name]
        root = self.fresh(self._root / name, is_scored=is_scored)
        begun = time.perf_counter()
        assert end(start(root, first)) == 0
        self.seconds[name] = time.perf_counter() - begun
        assert end(start(root, second)) == 0
        self.expected[name] = lasting(root)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


def check(root: Path, expected: dict[str, object]) -> None:
    assert_equal_contents(lasting(root), expected)
    folders = [path.parent for path in root.rglob("manifest.json")]
    assert {str(folder): faults for folder in folders if (faults := verify_artifact(folder))} == {}
    for path in root.glob("runs/*/ledger.parquet"):
        assert pq.read_table(path).num_rows == 48


@pytest.mark.timeout(3600)
def test_two_starts_leave_what_one_leaves(inputs: Inputs, tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(NUM_STARTS):
        name = list(PAIRS)[number % len(PAIRS)]
        first, second, is_scored = PAIRS[name]
        root = inputs.fresh(tmp_path / f"{number}", is_scored=is_scored)
        offset = rng.choice([0.0, rng.uniform(0, inputs.seconds[name])])
        children = [start(root, first)]
        time.sleep(offset)
        children.append(start(root, second))
        assert [end(child) for child in children] == [0, 0], (name, offset)
        check(root, inputs.expected[name])
        shutil.rmtree(root)


@pytest.mark.timeout(3600)
def test_the_second_goes_on_where_a_killed_first_stopped(inputs: Inputs, tmp_path: Path) -> None:
    rng = random.Random(1)
    num_killed = 0
    for number in range(NUM_KILLS):
        name = list(PAIRS)[number % len(PAIRS)]
        first, second, is_scored = PAIRS[name]
        root = inputs.fresh(tmp_path / f"{number}", is_scored=is_scored)
        children = [start(root, first), start(root, second)]
        time.sleep(rng.uniform(0.1, inputs.seconds[name]))
        os.kill(children[0], rng.choice([signal.SIGKILL, signal.SIGINT]))
        num_killed += end(children[0]) != 0
        assert end(children[1]) == 0, name
        if name == "shared":
            assert end(start(root, first)) == 0
        check(root, inputs.expected[name])
        shutil.rmtree(root)
    assert num_killed > NUM_KILLS // 3
