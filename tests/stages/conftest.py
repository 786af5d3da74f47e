"""One scored tiny project per session; a test gets its own copy, and counts of what its stages compute."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataflex_tools.stages.config import build
from dataflex_tools.stages.score import score
from tests import tiny


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tiny.make_all(tmp_path_factory.mktemp("scored") / "project")
    score(build("score", tiny.score_config(root)))
    return root


@pytest.fixture
def project(scored: Path, tmp_path: Path) -> Path:
    """A copy in another place: whatever is reused in it is reused by content."""
    return Path(shutil.copytree(scored, tmp_path / "project"))


class Work:
    """Model work done: rows measured by kind of signal, gradients also by side; trainings, models loaded."""

    def __init__(self) -> None:
        self.measured: dict[str, list[int]] = {}
        self.gradients: dict[str, list[int]] = {}
        self.num_trainings = 0
        self.num_loads = 0

    @property
    def is_none(self) -> bool:
        return not self.measured and not self.num_trainings and not self.num_loads


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return count_work(monkeypatch)


def count_work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """What is computed from now on, until the patch is undone."""
    from dataflex_tools.models import load
    from dataflex_tools.score import engine, reward_gradient
    from dataflex_tools.train import run, warmup

    found = Work()

    def counted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            setattr(found, name, getattr(found, name) + 1)
            return function(*args, **kwargs)

        return call

    def measure(signal: Any, *args: Any, **kwargs: Any) -> int:
        count = original(signal, *args, **kwargs)
        found.measured.setdefault(signal.kind, []).append(count)
        if signal.kind == "gradient":
            # LESS: Adam directions on the pool's side, plain gradients on the target's
            side = "target" if signal.settings["adam"] == "none" else "pool"
            found.gradients.setdefault(side, []).append(count)
        return count

    original = engine.measure
    monkeypatch.setattr(engine, "measure", measure)
    monkeypatch.setattr(reward_gradient, "measure", measure)
    monkeypatch.setattr(load, "load_model", counted(load.load_model, "num_loads"))
    monkeypatch.setattr(run, "resume", counted(run.resume, "num_trainings"))
    monkeypatch.setattr(warmup, "resume", counted(warmup.resume, "num_trainings"))
    return found


def train_config(root: Path, **changes: Any) -> Any:
    """Two epochs over 16 selected rows, in steps of 8."""
    config: dict[str, Any] = {
        "artifacts": [str(root / "artifacts" / "less")],
        "out": str(root / "runs" / "less"),
        "budget": {"num_samples": 16},
        "training": {"num_train_epochs": 2, "learning_rate": 1e-3, "global_batch_size": 8, "logging_steps": 1},
    }
    return build("train", {**config, **changes})


def tree(root: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every file and folder under `root` with its time of change and content."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(root.rglob("*"))
    }
