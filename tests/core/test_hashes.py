import hashlib
import os
from pathlib import Path

import pytest

from dataflex_tools.core import hashes
from dataflex_tools.core.hashes import FileDigests, digests_in


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, and all are worth a line of the journal."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)
    monkeypatch.setattr(hashes, "_JOURNAL_BYTES", 0)


def counting(digests: FileDigests, path: Path, calls: list[Path]) -> str:
    def take(path: Path) -> str:
        calls.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return digests.of(path, "sha256", take)


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_once_for_each_of_its_time_stamps(tmp_path: Path) -> None:
    path, digests, calls = tmp_path / "a", FileDigests(), []
    path.write_bytes(b"one")
    first = counting(digests, path, calls)
    assert (counting(digests, path, calls), len(calls)) == (first, 1)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))  # the time of the content can be set to anything; that of the inode tells
    assert counting(digests, path, calls) == hashlib.sha256(b"two").hexdigest()
    assert len(calls) == 2


def test_a_file_that_was_just_changed_is_read_again(tmp_path: Path) -> None:
    path, digests, calls = tmp_path / "a", FileDigests(), []
    for content in (b"one", b"two", b"six"):  # perhaps within one tick of the clock
        path.write_bytes(content)
        assert counting(digests, path, calls) == hashlib.sha256(content).hexdigest()
    assert len(calls) == 3


@pytest.mark.usefixtures("settled")
def test_what_one_process_read_the_next_does_not_read_again(tmp_path: Path) -> None:
    path, calls = tmp_path / "a", []
    path.write_bytes(b"one")
    counting(FileDigests(tmp_path / "cache" / "j"), path, calls)
    with (tmp_path / "cache" / "j").open("ab") as journal:
        journal.write(b'\n["half')
    counting(FileDigests(tmp_path / "cache" / "j"), path, calls)
    assert len(calls) == 1
    other = tmp_path / "b"
    other.write_bytes(b"new")
    counting(FileDigests(tmp_path / "cache" / "j"), other, calls)
    counting(FileDigests(tmp_path / "cache" / "j"), other, calls)
    assert calls == [path, other]


@pytest.mark.usefixtures("settled")
def test_a_damaged_journal_never_makes_a_right_file_wrong(tmp_path: Path) -> None:
    path, journal = tmp_path / "a", tmp_path / "j"
    path.write_bytes(b"one")
    sha256 = FileDigests(journal).sha256(path)
    journal.write_text(journal.read_text().replace(sha256[:8], "00000000"))
    digests = FileDigests(journal)
    assert digests.sha256(path) != sha256
    assert digests.is_as_written(path, sha256)
    journal.write_bytes(os.urandom(4096))
    assert FileDigests(journal).sha256(path) == sha256


@pytest.mark.usefixtures("settled")
def test_a_journal_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    (tmp_path / "file").touch()
    digests = FileDigests(tmp_path / "file" / "j")
    assert digests.sha256(path) == digests.sha256(path) == hashlib.sha256(b"one").hexdigest()


def test_all_that_use_a_cache_folder_share_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert digests_in(Path("cache")) is digests_in(tmp_path / "cache")
    assert digests_in(Path("cache")) is not digests_in(tmp_path / "other")
