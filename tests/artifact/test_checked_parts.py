"""What is reused of a signal is what was written."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex_tools.artifact import signal as signal_module
from dataflex_tools.artifact.manifest import read_manifest, verify_artifact, write_manifest
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest
from tests.artifact.examples import contents, measure, random_ids, store, write

PART = "part-00001.parquet"


def rewritten(path: Path) -> None:
    """Other values with the metadata, ids and page checksums of a part that was written."""
    table = pq.read_table(path)
    place = table.column_names.index("norm")
    pq.write_table(table.set_column(place, table.schema.field(place), [np.asarray(table["norm"]) * 2]), path)


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def use(folder: Path, ids_N16: np.ndarray) -> None:
    list(store(folder).rows(ids_N16).blocks())


def test_every_flipped_byte_of_a_part_is_found_before_it_is_used(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    measure(tmp_path, ids_N16)
    path = tmp_path / PART
    content = path.read_bytes()
    for place in [*range(0, len(content), 41), len(content) - 1]:  # pages, checksums, footer, its length, the magic
        flipped(path, place)
        with pytest.raises(ArtifactError, match=rf"{PART}(:| was changed| cannot be read| has| does).*(delete|move)"):
            use(tmp_path, ids_N16)
        path.write_bytes(content)
    use(tmp_path, ids_N16)


def test_a_part_with_other_values_is_named_with_what_to_do(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    signal = measure(tmp_path, ids_N16)
    rewritten(tmp_path / PART)
    wanted = rf"{PART} was changed: SHA-256 .*, the manifest says .*delete this file .* measures its 4 samples anew"
    for attempt in (signal.check, store(tmp_path).check, lambda: use(tmp_path, ids_N16)):
        with pytest.raises(ArtifactError, match=wanted):
            attempt()


def test_a_growing_signal_never_states_a_new_digest_for_an_old_part(tmp_path: Path) -> None:
    ids_N16 = random_ids(14)
    measure(tmp_path, ids_N16[:10])
    before = (tmp_path / "manifest.json").read_bytes()
    rewritten(tmp_path / PART)
    with pytest.raises(ArtifactError, match=f"{PART} was changed"):
        measure(tmp_path, ids_N16)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert any(PART in fault for fault in verify_artifact(tmp_path))


def test_a_part_that_was_deleted_is_measured_anew(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    measure(tmp_path, ids_N16)
    whole = contents(tmp_path)
    rewritten(tmp_path / PART)
    (tmp_path / PART).unlink()
    measure(tmp_path, ids_N16)
    assert {name: content for name, content in contents(tmp_path).items() if name != "manifest.json"} == {
        name: content for name, content in whole.items() if name != "manifest.json"
    }
    assert verify_artifact(tmp_path) == []


def test_a_deleted_part_may_come_back_with_other_rows(tmp_path: Path) -> None:
    ids_N16, other_N16 = random_ids(10), random_ids(3, seed=1)
    measure(tmp_path, ids_N16)
    (tmp_path / PART).unlink()
    both_N16 = np.concatenate([ids_N16[:4], other_N16, ids_N16[8:]])
    measure(tmp_path, both_N16)
    assert verify_artifact(tmp_path) == []
    use(tmp_path, both_N16)


def test_a_part_that_a_killed_start_left_is_checked_by_its_own_digest(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    signal = store(tmp_path)
    for number, chosen in signal.plan_parts(ids_N16, 4)[:2]:
        write(signal, number, ids_N16[chosen])
    store(tmp_path).check()
    rewritten(tmp_path / PART)
    with pytest.raises(ArtifactError, match=f"{PART} was changed: its values are not those it states"):
        measure(tmp_path, ids_N16)
    assert not (tmp_path / "manifest.json").exists()


def test_a_part_of_an_earlier_version_is_used_if_a_manifest_lists_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids_N16 = random_ids(14)
    monkeypatch.setattr(signal_module, "values_digest", lambda tables, schema: None)  # earlier parts had none
    measure(tmp_path, ids_N16[:10])
    monkeypatch.undo()
    measure(tmp_path, ids_N16)
    assert verify_artifact(tmp_path) == []
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet is in no manifest.*delete this file"):
        measure(tmp_path, ids_N16)


def test_rows_groups_and_encodings_are_no_part_of_a_values_digest(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    signal = store(tmp_path)
    [(number, _)] = signal.plan_parts(ids_N16, 10)
    write(signal, number, ids_N16)
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=3, compression="gzip", use_dictionary=True)
    store(tmp_path).check()


def test_parts_of_another_rank_are_checked_before_they_are_listed(tmp_path: Path) -> None:
    ids_N16 = random_ids(8)
    ranks = [store(tmp_path) for _ in range(2)]
    for rank, signal in enumerate(ranks):
        number, chosen = signal.plan_parts(ids_N16, 4)[rank]
        write(signal, number, ids_N16[chosen])
    rewritten(tmp_path / PART)
    with pytest.raises(ArtifactError, match=f"{PART} was changed"):
        ranks[0].finish({})


def test_a_signal_grown_by_a_killed_start_is_not_taken_for_finished(tmp_path: Path) -> None:
    ids_N16 = random_ids(8)
    measure(tmp_path, ids_N16[:4])
    signal = store(tmp_path)
    number, chosen = signal.plan_parts(ids_N16[4:], 4)[0]
    write(signal, number, ids_N16[4:][chosen])
    assert not store(tmp_path).is_finished
    assert measure(tmp_path, ids_N16).is_finished
    assert [entry["path"] for entry in read_manifest(tmp_path)["files"]][:2] == ["part-00000.parquet", PART]


def test_a_manifest_of_another_signal_is_refused(tmp_path: Path) -> None:
    measure(tmp_path / "a", random_ids(4))
    content = json.loads((tmp_path / "a" / "manifest.json").read_text())

    spec = {**content["spec"], "model": "00"}
    write_manifest(tmp_path / "a", {**content, "spec": spec, "spec_digest": digest(spec)})
    with pytest.raises(ArtifactError, match="is not of this signal"):
        store(tmp_path / "a").check()
