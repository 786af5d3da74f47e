"""Signals of numbers and of lists: what was measured comes back, joined to any corpus, streamed."""

import itertools
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex_tools.artifact import signal as signal_module
from dataflex_tools.artifact import stored_columns
from dataflex_tools.artifact.manifest import verify_artifact
from dataflex_tools.artifact.signal import SignalStore, list_column
from dataflex_tools.artifact.stored_columns import StoredLists
from dataflex_tools.core.errors import ArtifactError
from tests.artifact.examples import random_ids

SPEC = {"kind": "token_loss", "model": "ab" * 32}


def store(folder: Path, storage: str = "float16") -> SignalStore:
    lists = list_column("token_loss", storage)  # type: ignore[arg-type]
    return SignalStore(folder, SPEC, pa.schema([("num_tokens", pa.int32()), ("loss", pa.float64()), lists]))


def lists_of(ids_N16: np.ndarray) -> list[np.ndarray]:
    """A list that is a function of the id alone; every sixth is empty, numbers are exact in float16."""
    return [id_16[: id_16[0] % 6].astype(np.float32) for id_16 in ids_N16]


def loss_of(ids_N16: np.ndarray) -> np.ndarray:
    return ids_N16[:, 1] / 7


def write(signal: SignalStore, number: int, ids_B16: np.ndarray) -> None:
    lists_B = np.empty(len(ids_B16), object)
    for index, item in enumerate(lists_of(ids_B16)):
        lists_B[index] = item
    columns = {"num_tokens": ids_B16[:, 0].astype(np.int32), "loss": loss_of(ids_B16), "token_loss": lists_B}
    signal.write_part(number, ids_B16, columns)


def measure(folder: Path, ids_N16: np.ndarray, *, part_rows: int = 4, storage: str = "float16") -> SignalStore:
    signal = store(folder, storage)
    missing_M16 = ids_N16[signal.missing(ids_N16)]
    for number, chosen in signal.plan_parts(missing_M16, part_rows):
        write(signal, number, missing_M16[chosen])
    signal.finish({})
    return signal


def read(lists: StoredLists) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for row_B, start_B1, value_S in lists.blocks():
        assert (row_B.dtype, start_B1.dtype, value_S.dtype) == (np.int64, np.int64, np.float32)
        assert (start_B1[0], start_B1[-1], len(start_B1)) == (0, len(value_S), len(row_B) + 1)
        for row, start, end in zip(row_B, start_B1[:-1], start_B1[1:], strict=True):
            assert int(row) not in found, "a row came twice"
            found[int(row)] = value_S[start:end].tolist()
    return found


@pytest.mark.parametrize("block_bytes", [4, 40, 2**23])
@pytest.mark.parametrize("group_bytes", [1, 2**26])
def test_numbers_and_lists_come_back_in_any_order_with_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, group_bytes: int
) -> None:
    monkeypatch.setattr(stored_columns, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(signal_module, "_GROUP_BYTES", group_bytes)
    ids_N16 = random_ids(30)
    signal = measure(tmp_path, ids_N16, part_rows=8)
    other_N16 = ids_N16[np.random.default_rng(1).integers(0, 30, 50)]
    np.testing.assert_array_equal(signal.column(other_N16, "loss"), loss_of(other_N16))
    np.testing.assert_array_equal(signal.column(other_N16, "num_tokens"), other_N16[:, 0])
    lists = signal.lists(other_N16, "token_loss")
    assert len(lists) == 50
    assert read(lists) == {row: item.tolist() for row, item in enumerate(lists_of(other_N16))}


def test_unmeasured_samples_are_nan_and_left_out_where_they_may_be_absent(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    signal = measure(tmp_path, ids_N16[:8])
    absent_ok = np.arange(10) >= 8
    loss_N = signal.column(ids_N16, "loss", absent_ok)
    np.testing.assert_array_equal(np.isnan(loss_N), absent_ok)
    np.testing.assert_array_equal(loss_N[:8], loss_of(ids_N16[:8]))
    assert sorted(read(signal.lists(ids_N16, "token_loss", absent_ok))) == list(range(8))
    with pytest.raises(ArtifactError, match=r"lacks 2 of 10 samples \(first: row 8\)"):
        signal.column(ids_N16, "loss")
    with pytest.raises(ArtifactError, match="lacks 2 of 10"):
        signal.lists(ids_N16, "token_loss")


def test_an_empty_signal_gives_nan_and_no_block(tmp_path: Path) -> None:
    ids_N16, absent_ok = random_ids(3), np.ones(3, bool)
    assert np.isnan(store(tmp_path).column(ids_N16, "loss", absent_ok)).all()
    assert read(store(tmp_path).lists(ids_N16, "token_loss", absent_ok)) == {}


@pytest.mark.parametrize("done", [set(c) for n in range(4) for c in itertools.combinations(range(3), n)], ids=str)
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, done: set[int]) -> None:
    ids_N16 = random_ids(10)
    measure(tmp_path / "whole", ids_N16)
    signal = store(tmp_path / "killed")
    for number, chosen in signal.plan_parts(ids_N16, 4):
        if number in done:
            write(signal, number, ids_N16[chosen])
    measure(tmp_path / "killed", ids_N16)
    for path in (tmp_path / "whole").glob("part-*"):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_the_folder_reads_as_a_dataset_and_verifies(tmp_path: Path, storage: str) -> None:
    ids_N16 = random_ids(6)
    folder = tmp_path / "signal"
    measure(folder, ids_N16, storage=storage)
    assert verify_artifact(folder) == []
    rows = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["token_loss"][:] == [item.tolist() for item in lists_of(ids_N16)]
    assert rows.features["token_loss"].feature.dtype == storage
    assert not pq.read_schema(folder / "part-00000.parquet").field("token_loss").type.value_field.nullable
    assert "| token_loss | " in (folder / "README.md").read_text()


def test_a_part_replaced_while_in_use_is_found(tmp_path: Path) -> None:
    ids_N16 = random_ids(4)
    lists = measure(tmp_path / "a", ids_N16).lists(ids_N16, "token_loss")
    measure(tmp_path / "b", random_ids(4, seed=1))
    os.replace(tmp_path / "b" / "part-00000.parquet", tmp_path / "a" / "part-00000.parquet")
    with pytest.raises(ArtifactError, match="was changed"):
        read(lists)


def test_columns_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    ids_N16 = random_ids(4)
    signal = measure(tmp_path, ids_N16)
    for call, name in ((signal.column, "token_loss"), (signal.lists, "loss"), (signal.column, "lss")):
        with pytest.raises(ValueError, match=f"token_loss has no column {name!r} of .*it has .*loss: double"):
            call(ids_N16, name)
    with pytest.raises(ValueError, match="'value' of vectors"):
        signal.rows(ids_N16)


def test_lists_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    ids_N16, lists_B = random_ids(1), np.empty(1, object)
    lists_B[0] = np.array([1, np.inf])
    signal = store(tmp_path)
    signal.plan_parts(ids_N16, 4)
    with pytest.raises(ValueError, match="'token_loss' holds NaN or infinity"):
        signal.write_part(0, ids_N16, {"num_tokens": np.ones(1), "loss": np.ones(1), "token_loss": lists_B})


def test_memory_to_read_lists_does_not_grow_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_module, "_GROUP_BYTES", 2**16)
    monkeypatch.setattr(stored_columns, "_BLOCK_BYTES", 2**16)
    ids_N16, lists_N = random_ids(2048), np.empty(2048, object)
    lists_N[:] = list(np.ones((2048, 512), np.float32))
    signal = store(tmp_path)
    [(number, _)] = signal.plan_parts(ids_N16, 2048)
    signal.write_part(number, ids_N16, {"num_tokens": np.ones(2048), "loss": np.ones(2048), "token_loss": lists_N})
    before, peak = pa.total_allocated_bytes(), 0
    for _, _, value_S in signal.lists(ids_N16, "token_loss").blocks():
        assert value_S.nbytes <= 2**16
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 8 * 2**16  # of 2 MiB in all
