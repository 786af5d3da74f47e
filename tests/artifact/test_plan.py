import os
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.artifact import plan as plan_module
from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.artifact.plan import check_corpus, check_model, check_tokenizer, load_plan
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.core.plan import Selection
from tests.artifact.examples import contents, measure, plan, plan_fields, random_ids


@pytest.mark.parametrize("rows_per_group", [2**17, 5])
def test_a_plan_comes_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int) -> None:
    monkeypatch.setattr(plan_module, "_ROWS_PER_GROUP", rows_per_group)
    fields, written = plan_fields(), plan(tmp_path / "less")
    loaded = load_plan(tmp_path / "less")
    assert loaded.manifest == written
    np.testing.assert_array_equal(loaded.score_N, fields["selection"].score_N)
    np.testing.assert_array_equal(loaded.table.column("score_maths"), fields["selection"].detail["score_maths"])
    np.testing.assert_array_equal(loaded.ids_N16, fields["ids_N16"])
    np.testing.assert_array_equal(loaded.num_tokens_N, fields["num_tokens_N"])
    names = np.array(fields["domain_names"])[fields["domain_N"]]
    np.testing.assert_array_equal(np.array(loaded.domain_names)[loaded.domain_N], names)
    np.testing.assert_array_equal(loaded.table.column("row"), np.arange(12))


def test_equal_plans_have_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    for name in ("a", "b"):
        plan(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_writing_the_same_plan_again_changes_nothing(tmp_path: Path) -> None:
    first = plan(tmp_path / "less")
    before = (tmp_path / "less" / "manifest.json").stat().st_mtime_ns
    assert plan(tmp_path / "less") == first
    assert (tmp_path / "less" / "manifest.json").stat().st_mtime_ns == before


def test_another_artifact_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "less"
    plan(folder)
    before = contents(folder)
    with pytest.raises(ArtifactError, match=r"holds another artifact.*plan less, created.*--out, or give --overwrite"):
        plan(folder, settings={"dim": 8})
    assert contents(folder) == before
    plan(folder, settings={"dim": 8}, overwrite=True)
    assert read_manifest(folder)["settings"] == {"dim": 8}
    assert verify_artifact(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["less"]


def test_files_that_no_artifact_lists_are_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds files that no artifact lists \(chapter\.tex\); choose another --out"):
        plan(folder, overwrite=True)
    plan(tmp_path / "less")
    (tmp_path / "less" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        plan(tmp_path / "less", settings={"dim": 8}, overwrite=True)
    assert (folder / "chapter.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["less", "thesis"]


def test_an_empty_folder_is_filled_and_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plan(tmp_path / "empty")
    assert verify_artifact(tmp_path / "empty") == []
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "link"):
        with pytest.raises(ArtifactError, match="is not a folder"):
            plan(tmp_path / name, overwrite=True)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        plan(tmp_path / "less")
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_fails_halfway_keeps_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(tmp_path / "less")
    before, rename, calls = contents(tmp_path / "less"), os.rename, []

    def fail_second(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(OSError, match="disk full"):
        plan(tmp_path / "less", settings={}, overwrite=True)
    assert contents(tmp_path / "less") == before
    assert [path.name for path in tmp_path.iterdir()] == ["less"]


def test_changed_scores_and_other_kinds_are_not_loaded(tmp_path: Path) -> None:
    plan(tmp_path / "less")
    path = tmp_path / "less" / "scores.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"scores\.parquet was changed"):
        load_plan(tmp_path / "less")
    measure(tmp_path / "signal", random_ids(4))
    with pytest.raises(ArtifactError, match="kind 'signal', wanted 'plan'"):
        load_plan(tmp_path / "signal")


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"12 scores, but \{'num_tokens': 3\}"):
        plan(tmp_path / "less", num_tokens_N=np.ones(3))
    with pytest.raises(ValueError, match="reserved"):
        plan(tmp_path / "less", selection=Selection(np.zeros(12), {"row": np.zeros(12)}))
    assert list(tmp_path.iterdir()) == []


def test_another_corpus_is_refused_with_what_differs(tmp_path: Path) -> None:
    plan(tmp_path / "less")
    loaded, ids_N16 = load_plan(tmp_path / "less"), random_ids(12)
    check_corpus(loaded, ids_digest(ids_N16), ids_N16)
    other_N16 = np.concatenate([ids_N16[2:], random_ids(3, seed=1)])
    message = r"12 rows.*has 13 rows.*2 of its samples are not in the data and 3 samples of the data.*flextools score"
    with pytest.raises(ArtifactError, match=message):
        check_corpus(loaded, ids_digest(other_N16), other_N16)
    with pytest.raises(ArtifactError, match="same samples in another order"):
        check_corpus(loaded, ids_digest(ids_N16[::-1]), ids_N16[::-1])


def test_another_model_or_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    manifest = plan(tmp_path / "less")
    check_model(manifest, "ab" * 32, "tiny")
    check_tokenizer(manifest, "cd" * 32, "chatml")
    with pytest.raises(ArtifactError, match=r"model tiny \(weights abababababababab\), found big.*--model tiny"):
        check_model(manifest, "00" * 32, "big")
    with pytest.raises(ArtifactError, match="made with template chatml, found plain"):
        check_tokenizer(manifest, "cd" * 32, "plain")


def test_a_plan_made_without_a_model_fits_any(tmp_path: Path) -> None:
    manifest = plan(tmp_path / "random", model=None, tokenizer=None)
    check_model(manifest, "00" * 32, "big")
    check_tokenizer(manifest, "00" * 32, "plain")
