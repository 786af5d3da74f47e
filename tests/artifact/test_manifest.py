import json
import os
from pathlib import Path

import pytest

from dataflex_tools.artifact.manifest import (
    FORMAT,
    file_entry,
    is_inside,
    read_manifest,
    verify_artifact,
    write_manifest,
)
from dataflex_tools.core.errors import ArtifactError
from tests.artifact.examples import measure, plan, random_ids


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    plan(tmp_path / "less")
    return tmp_path / "less"


def rewrite(folder: Path, **changed: object) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, **changed}))


def test_an_untouched_artifact_has_no_faults(artifact: Path, tmp_path: Path) -> None:
    assert verify_artifact(artifact) == []
    measure(tmp_path / "signal", random_ids(10))
    assert verify_artifact(tmp_path / "signal") == []


def test_every_flipped_byte_of_every_file_is_found(artifact: Path) -> None:
    for path in (artifact / "scores.parquet", artifact / "README.md"):
        original = path.read_bytes()
        for place in range(0, len(original), 97):
            changed = bytearray(original)
            changed[place] ^= 1
            path.write_bytes(changed)
            assert [fault for fault in verify_artifact(artifact) if path.name in fault], place
        path.write_bytes(original)
    assert verify_artifact(artifact) == []


def test_a_changed_manifest_field_is_found(artifact: Path) -> None:
    rewrite(artifact, settings={"dim": 8})
    assert "manifest.json was changed" in verify_artifact(artifact)[0]


def test_the_digest_ignores_date_and_producer_only(artifact: Path) -> None:
    rewrite(artifact, created="2000-01-01T00:00:00Z", producer={})
    assert verify_artifact(artifact) == []


def test_missing_extra_shortened_and_linked_files_are_found(artifact: Path) -> None:
    (artifact / "extra").mkdir()
    (artifact / "extra" / "notes.txt").write_text("x")
    assert verify_artifact(artifact) == ["extra/notes.txt is not in the manifest"]
    (artifact / "extra" / "notes.txt").unlink()

    card = artifact / "README.md"
    text = card.read_text()
    card.write_text(text[:-1])
    assert "README.md was changed" in verify_artifact(artifact)[0]

    card.unlink()
    assert verify_artifact(artifact) == ["README.md is missing"]

    (artifact.parent / "elsewhere.md").write_text(text)
    card.symlink_to(artifact.parent / "elsewhere.md")
    assert verify_artifact(artifact) == ["README.md is a symbolic link"]


def test_a_linked_folder_is_found(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.bin").write_bytes(b"x")
    (artifact / "sub").symlink_to(tmp_path / "outside")
    entry = file_entry(artifact, "sub/x.bin")
    files = [*read_manifest(artifact)["files"], entry]
    write_manifest(artifact, {**read_manifest(artifact), "files": files})
    assert "sub/x.bin is a symbolic link" in verify_artifact(artifact)


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "a/../../b", "", "c:/x", "..\\x"])
def test_a_path_outside_the_folder_is_never_followed(artifact: Path, path: str) -> None:
    assert not is_inside(path)
    rewrite(artifact, files=[{"path": path, "bytes": 1, "sha256": "0" * 64, "rows": None, "schema": None}])
    assert f"{path} leads outside the artifact" in verify_artifact(artifact)


@pytest.mark.parametrize("files", [None, [1], [{"path": 3}], [{"path": "x", "bytes": "1", "sha256": "0"}]])
def test_a_malformed_file_list_is_a_fault(artifact: Path, files: object) -> None:
    rewrite(artifact, files=files)
    assert any("file" in fault for fault in verify_artifact(artifact)[1:])


def test_an_unfinished_folder_says_which_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest\.json.*score stage has not finished.*flextools score"):
        read_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        verify_artifact(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds list"),
        ('{"format": 1, "x": NaN}', "NaN is not JSON"),
        ("{}", "format None.*not written by flextools"),
        ('{"format": true}', "format True"),
        (f'{{"format": {FORMAT + 1}}}', "update flextools"),
        ("\udcff", "cannot be read"),
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path)


def test_a_failed_write_leaves_the_old_manifest(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (artifact / "manifest.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_manifest(artifact, {"kind": "plan", "files": []})
    assert (artifact / "manifest.json").read_bytes() == before
    assert verify_artifact(artifact) == []


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    body = {"kind": "model", "files": [], "mean_lr": (1e-05, 2), "names": {"caf\u00e9": 1}}
    assert write_manifest(tmp_path, body) == read_manifest(tmp_path)
    assert verify_artifact(tmp_path) == []
    with pytest.raises(ArtifactError, match=r"manifest.json is not written: stats.loss\[1\] is nan"):
        write_manifest(tmp_path, {"kind": "model", "files": [], "stats": {"loss": [1.0, float("nan")]}})


def test_the_date_can_be_fixed_for_a_reproducible_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert write_manifest(tmp_path, {"kind": "model", "files": []})["created"] == "1970-01-01T00:00:00Z"
