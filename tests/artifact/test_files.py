"""Files that are whole or absent, under names that no two writers share."""

import json
from pathlib import Path

import pytest

from dataflex_tools.artifact.files import list_visible, remove_leftovers, write_json
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.temporary import temporary_for


def test_no_two_temporaries_of_one_file_have_the_same_name(tmp_path: Path) -> None:
    found = {temporary_for(tmp_path / "scores.parquet") for _ in range(100)}
    assert len(found) == 100
    assert {path.parent for path in found} == {tmp_path}


def test_leftovers_are_known_by_the_file_they_were_for(tmp_path: Path) -> None:
    for name in ("less", "less.v2"):
        temporary_for(tmp_path / name).write_bytes(b"half")
    (tmp_path / ".less.99.tmp").write_bytes(b"of a version that named them by process")
    (tmp_path / ".less.lock").write_bytes(b"")
    remove_leftovers(tmp_path, "less")
    assert [path.name.split(".")[1:3] for path in tmp_path.glob("*.tmp")] == [["less", "v2"]]
    remove_leftovers(tmp_path)
    assert list_visible(tmp_path) == [".less.lock"]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"groups": {"code": {"loss": float("nan")}}}, "groups.code.loss is nan"),
        ([1.0, [2.0, float("inf")]], r"\[1\]\[1\] is inf"),
        ({"a": (0, {"b": float("-inf")})}, r"a\[1\].b is -inf"),
    ],
)
def test_json_with_a_number_that_is_not_finite_is_not_written(tmp_path: Path, value: object, place: str) -> None:
    write_json(tmp_path / "x.json", {"loss": 1.5}, indent=1, end="\n")
    with pytest.raises(ArtifactError, match=f"x.json is not written: {place}"):
        write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": 1.5}
    assert list_visible(tmp_path) == ["x.json"]
