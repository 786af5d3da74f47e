"""A second start waits for the first, looks again, and takes what is there."""

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.core import lock
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.stages.config import build
from dataflex_tools.stages.evaluate import evaluate
from dataflex_tools.stages.score import score
from dataflex_tools.stages.train import train
from tests import tiny
from tests.stages.conftest import Work, train_config, tree


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(lock, "_EVERY", 0.01)
    caplog.set_level(logging.INFO, logger="flextools")


class Second:
    """A start in a thread of its own; what came of it."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._start = start
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        try:
            self.result = self._start()
        except ArtifactError as error:
            self.error = error


@contextmanager
def second(start: Callable[[], Any], folder: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Second]:
    """A start that has come to wait for `folder`; the body is what the first one does meanwhile."""
    found = Second(start)
    with lock.hold(folder, "the first"):
        found._thread.start()
        for _ in range(6000):
            if any(line.startswith("waiting for ") for line in caplog.messages):
                break
            found._thread.join(0.01)
        (line,) = (line for line in caplog.messages if line.startswith("waiting for "))
        assert f"working on {folder} since" in line
        assert line.endswith("(the first)")
        yield found
    found._thread.join(60)
    assert not found._thread.is_alive()


def put(finished: Path, root: Path, *names: str) -> None:
    """What the first start has made meanwhile."""
    for name in names:
        shutil.copytree(finished / name, root / name, dirs_exist_ok=True)


def inputs_of(project: Path, root: Path) -> Path:
    return Path(shutil.copytree(project, root, ignore=shutil.ignore_patterns("artifacts", "runs")))


def contents(folder: Path) -> dict[str, bytes | None]:
    return {name: content for name, (_, content) in tree(folder).items()}


def assert_same_scores(*folders: Path) -> None:
    first, second = ((folder / "scores.parquet").read_bytes() for folder in folders)
    assert first == second


def test_a_second_score_takes_the_plan_of_the_first(
    project: Path, tmp_path: Path, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    root = inputs_of(project, tmp_path / "empty")
    config = build("score", tiny.score_config(root))
    with second(lambda: score(config), root / "artifacts" / "less", caplog) as other:
        put(project / "artifacts", root / "artifacts", "less", "models", "signals")
    assert other.result == read_manifest(project / "artifacts" / "less")
    assert work.is_none


def test_another_score_into_the_same_out_is_refused_after_the_first(
    project: Path, tmp_path: Path, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    root = inputs_of(project, tmp_path / "empty")
    config = build("score", tiny.score_config(root, seed=5))
    with second(lambda: score(config), root / "artifacts" / "less", caplog) as other:
        put(project / "artifacts", root / "artifacts", "less")
    assert "holds another plan (less; differing: seed" in str(other.error)
    assert contents(root / "artifacts" / "less") == contents(project / "artifacts" / "less")
    assert work.is_none


@pytest.mark.parametrize("kind", ["warmup", "gradient"])
def test_another_plan_takes_what_the_first_makes_on_the_way(
    project: Path, tmp_path: Path, work: Work, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    root = inputs_of(project, tmp_path / "empty")
    place = "models" if kind == "warmup" else "signals"
    folder = next((project / "artifacts" / place).glob(f"{kind}-*"))
    if kind == "gradient":
        put(project / "artifacts", root / "artifacts", "models", "signals")
        shutil.rmtree(root / "artifacts" / "signals" / folder.name)
    config = build("score", tiny.score_config(root, out=str(root / "artifacts" / "other")))
    with second(lambda: score(config), root / "artifacts" / place / folder.name, caplog) as other:
        put(project / "artifacts", root / "artifacts", "models", "signals")
    assert other.error is None
    assert_same_scores(project / "artifacts" / "less", root / "artifacts" / "other")
    assert work.is_none


def test_a_signal_whose_first_writer_was_killed_is_finished(
    project: Path, tmp_path: Path, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    """Parts that no manifest lists are neither lost nor taken for finished."""
    config = build("score", tiny.score_config(project, out=str(project / "artifacts" / "other")))
    folder = max((project / "artifacts" / "signals").glob("gradient-*"), key=lambda f: len(list(f.iterdir())))
    before = contents(folder)
    with second(lambda: score(config), folder, caplog) as other:
        (folder / "manifest.json").unlink()
        (folder / "part-00001.parquet").unlink()
    assert other.error is None
    assert_same_scores(project / "artifacts" / "less", project / "artifacts" / "other")
    assert sum(work.measured["gradient"]) == 16
    after = contents(folder)
    # the card and the manifest name the model's place, which is another one in this copy
    assert {name for name in before if after[name] != before[name]} <= {"README.md", "manifest.json"}
    assert sorted(after) == sorted(before)
    assert verify_artifact(folder) == []


def test_parts_that_the_manifest_does_not_list_are_listed_before_a_plan_names_it(project: Path) -> None:
    """As a start leaves them that was killed after its last part."""
    with (project / "pool.jsonl").open("a") as handle:
        handle.write((project / "heldout.jsonl").read_text())
    folders = list((project / "artifacts" / "signals").glob("gradient-*"))
    kept = {folder: (folder / "manifest.json").read_bytes() for folder in folders}
    longer = tiny.score_config(project, out=str(project / "artifacts" / "longer"))
    longer["warmup"] = {**tiny.score_config(project)["warmup"], "max_growth": 0.2}  # type: ignore[dict-item]
    score(build("score", longer))
    wanted = [read_manifest(folder)["digest"] for folder in folders]
    for folder, content in kept.items():
        (folder / "manifest.json").write_bytes(content)
    shutil.rmtree(project / "artifacts" / "longer")
    manifest = score(build("score", longer))
    assert [verify_artifact(folder) for folder in folders] == [[]] * len(folders)
    assert [read_manifest(folder)["digest"] for folder in folders] == wanted
    for parent in manifest["parents"]:
        assert read_manifest(project / "artifacts" / parent["path"])["digest"] == parent["digest"]


def test_a_second_training_and_evaluation_take_those_of_the_first(
    project: Path, tmp_path: Path, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_config(project)
    evaluation = build("evaluate", {"run": config.out, "data": [str(project / "heldout.jsonl")]})
    first = train(config)
    losses = evaluate(evaluation)
    run = Path(config.out)
    finished = Path(shutil.move(run, tmp_path / "finished" / "less"))
    count = work.num_trainings
    with second(lambda: train(config), run, caplog) as other:
        put(finished.parent, run.parent, "less")
    assert other.result == first
    assert work.num_trainings == count
    caplog.clear()
    with second(lambda: evaluate(evaluation), run, caplog) as other:
        (run / "evaluation.json").write_bytes((finished / "evaluation.json").read_bytes())
    assert other.result == losses
