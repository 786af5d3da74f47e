"""One writer of a folder: others wait, are told for whom, and go on when it ends or dies."""

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dataflex_tools.core import lock
from dataflex_tools.core.lock import hold

HOLDS = """
import sys
from pathlib import Path
from dataflex_tools.core.lock import hold
with hold(Path(sys.argv[1]), "score less"):
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNTS = """
import sys
from pathlib import Path
from dataflex_tools.core import lock
lock._EVERY = 0.001
counter = Path(sys.argv[1]) / "counter"
for _ in range(100):
    with lock.hold(counter.parent, "counting"):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_EVERY", 0.01)
    lock._warn_unlocked.cache_clear()


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `folder` until it reads a line, or dies."""
    command = [sys.executable, "-c", HOLDS, str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def waiter(folder: Path) -> tuple[threading.Thread, threading.Event]:
    """A thread that waits for `folder`, and the event of its having had it."""
    had = threading.Event()

    def work() -> None:
        with hold(folder, "train"):
            had.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, had


def test_a_second_process_waits_and_is_told_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flextools")
    folder = tmp_path / "artifacts" / "less"
    with holder(folder) as process:
        thread, had = waiter(folder)
        assert not had.wait(0.3)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        thread.join(20)
    assert had.is_set()
    (line,) = caplog.messages
    start = f"waiting for process {process.pid} on host {os.uname().nodename}, which has been "
    assert line.startswith(f"{start}working on {folder} since ")
    assert line.endswith(" (score less)")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_holder_that_is_stopped_frees_those_who_wait(tmp_path: Path, name: str) -> None:
    with holder(tmp_path / "x") as process:
        thread, had = waiter(tmp_path / "x")
        assert not had.wait(0.1)
        process.send_signal(getattr(signal, name))
        thread.join(20)
    assert had.is_set()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.lock"]


def test_processes_that_take_turns_lose_no_step(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "counter").write_text("0")
    command = [sys.executable, "-c", COUNTS, str(folder)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (folder / "counter").read_text() == "300"


def test_the_lock_lies_beside_the_folder_and_nothing_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    with hold(folder, "train"):
        assert not folder.exists()
        inside = sorted(path.name for path in folder.parent.iterdir())
    assert inside == [".x.holder", ".x.lock"]
    assert [path.name for path in folder.parent.iterdir()] == [".x.lock"]


def test_a_folder_by_another_name_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "latest").symlink_to(tmp_path / "runs" / "x")
    with hold(tmp_path / "runs" / "x", "train"):
        thread, had = waiter(tmp_path / "latest")
        assert not had.wait(0.1)
    thread.join(20)
    assert had.is_set()


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), hold(tmp_path / "x", "train"):
            raise ValueError("inside")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_once_and_worked_on(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    done = []
    for name in ("x", "y"):
        with hold(tmp_path / name, "train"):
            done.append(name)
    assert done == ["x", "y"]
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(f"nothing in {tmp_path} can be locked, the file system has no locks")
    assert line.endswith("do not start two commands there at once")
    assert not list(tmp_path.glob("*.holder"))


@pytest.mark.parametrize(("is_writable", "num_warnings"), [(False, 0), (True, 1)])
def test_a_place_that_cannot_be_written_needs_no_lock(
    tmp_path: Path, is_writable: bool, num_warnings: int, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    monkeypatch.setattr(os, "access", lambda *_: is_writable)
    done = []
    with hold(tmp_path / "x", "train"):
        done.append("x")
    assert done == ["x"]
    assert len(caplog.records) == num_warnings


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_that_ends_does_not_give_the_lock_away(tmp_path: Path, method: str) -> None:
    """As the workers of a data loader end while the training goes on."""
    with hold(tmp_path / "x", "train"):
        child = multiprocessing.get_context(method).Process(target=len, args=("",))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        thread, had = waiter(tmp_path / "x")
        assert not had.wait(0.2)
    thread.join(20)
    assert had.is_set()
