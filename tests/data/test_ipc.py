from pathlib import Path

import pyarrow as pa
import pytest

from dataflex_tools.core.hashes import FileDigests
from dataflex_tools.data.ipc import is_whole, not_whole, read_ipc, write_ipc

SCHEMA = pa.schema([("x", pa.int64())])


def written(path: Path, *numbers: int) -> Path:
    write_ipc(path, SCHEMA, [pa.RecordBatch.from_pydict({"x": list(numbers)}, schema=SCHEMA)])
    return path


def test_what_is_written_is_whole_and_read_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "a.arrow", 1, 2)
    assert is_whole(path, FileDigests())
    assert read_ipc(path)["x"].to_pylist() == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.arrow", "a.arrow.sha256"]


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "a.arrow", *range(20))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not is_whole(path, FileDigests())
        path.write_bytes(content[:place])
        assert not is_whole(path, FileDigests())


def test_files_that_changed_places_are_found(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.arrow", 1), written(tmp_path / "b.arrow", 2)
    for one, other in ((a, b), (Path(f"{a}.sha256"), Path(f"{b}.sha256"))):
        one.rename(tmp_path / "x")
        other.rename(one)
        (tmp_path / "x").rename(other)
    assert not_whole([a, b], FileDigests()) == [0, 1]


@pytest.mark.parametrize("gone", ["a.arrow", "a.arrow.sha256"])
def test_a_file_without_its_digest_is_not_used(tmp_path: Path, gone: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.arrow", 1)
    (tmp_path / gone).unlink()
    assert not_whole([path], FileDigests()) == [0]
    assert ("made anew" in caplog.text) == (gone != "a.arrow")  # what was never there is nothing to speak of


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.arrow", 1)

    def broken():
        yield pa.RecordBatch.from_pydict({"x": [1]}, schema=SCHEMA)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_ipc(path, SCHEMA, broken())
    assert is_whole(path, FileDigests())
    assert len(list(tmp_path.iterdir())) == 2
