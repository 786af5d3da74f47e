import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex_tools.artifact import signal as signal_module
from dataflex_tools.artifact import stored_rows
from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.artifact.signal import SignalStore, signal_folder, vector_columns
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.signals import Rows
from tests.artifact.examples import DIM, SPEC, contents, measure, random_ids, store, vectors_of, write

# float16 has 11 significant bits: a unit vector read back is off by at most half a unit in the last place per element
FLOAT16 = 2**-11


def read(rows: Rows) -> dict[int, tuple[np.ndarray, float]]:
    found: dict[int, tuple[np.ndarray, float]] = {}
    for row_B, value_BD, norm_B in rows.blocks():
        assert (row_B.dtype, value_BD.dtype, norm_B.dtype) == (np.int64, np.float32, np.float32)
        for row, value_D, norm in zip(row_B, value_BD, norm_B, strict=True):
            assert int(row) not in found, "a row came twice"
            found[int(row)] = (value_D, float(norm))
    return found


def assert_holds(rows: Rows, ids_N16: np.ndarray, expected_rows: list[int]) -> None:
    found, raw_ND = read(rows), vectors_of(ids_N16)
    assert sorted(found) == expected_rows
    for row, (value_D, norm) in found.items():
        length = np.linalg.norm(raw_ND[row])
        np.testing.assert_allclose(norm, length, rtol=1e-6)
        np.testing.assert_allclose(value_D, raw_ND[row] / length, atol=FLOAT16)
        np.testing.assert_allclose(np.linalg.norm(value_D), 1, rtol=1e-6)


def test_the_address_depends_on_the_spec_alone(tmp_path: Path) -> None:
    turned = dict(reversed(list(SPEC.items())))
    assert signal_folder(tmp_path, SPEC) == signal_folder(tmp_path, turned)
    assert signal_folder(tmp_path, SPEC) != signal_folder(tmp_path, {**SPEC, "model": "ac" * 32})
    assert signal_folder(tmp_path, SPEC).name.startswith("gradient-")


def test_rows_come_back_as_they_were_measured(tmp_path: Path) -> None:
    ids_N16 = random_ids(11)
    rows = measure(tmp_path, ids_N16).rows(ids_N16)
    assert (len(rows), rows.dim) == (11, DIM)
    assert_holds(rows, ids_N16, list(range(11)))


def test_any_corpus_order_reads_its_own_vectors(tmp_path: Path) -> None:
    ids_N16 = random_ids(11)
    signal = measure(tmp_path, ids_N16)
    other_N16 = ids_N16[np.random.default_rng(1).permutation(11)[:7]]
    assert_holds(signal.rows(other_N16), other_N16, list(range(7)))


def test_duplicates_are_measured_once_and_read_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids_N16 = random_ids(5)[[0, 1, 0, 2, 3, 3, 4, 0]]
    signal = store(tmp_path)
    np.testing.assert_array_equal(signal.missing(ids_N16), [0, 1, 3, 4, 6])
    signal = measure(tmp_path, ids_N16)
    assert len(signal) == 5
    assert_holds(signal.rows(ids_N16), ids_N16, list(range(8)))
    monkeypatch.setattr(stored_rows, "_BLOCK_BYTES", 2 * 4 * DIM)
    many_N16 = ids_N16[np.zeros(9, dtype=np.int64)]
    assert max(len(row_B) for row_B, _, _ in signal.rows(many_N16).blocks()) == 2
    assert_holds(signal.rows(many_N16), many_N16, list(range(9)))


def test_appended_samples_are_the_only_ones_measured(tmp_path: Path) -> None:
    ids_N16 = random_ids(14)
    measure(tmp_path, ids_N16[:10])
    before, digest = contents(tmp_path), read_manifest(tmp_path)["digest"]
    signal = store(tmp_path)
    np.testing.assert_array_equal(signal.missing(ids_N16), [10, 11, 12, 13])
    signal = measure(tmp_path, ids_N16)
    after = contents(tmp_path)
    assert all(after[name] == content for name, content in before.items() if name.startswith("part-"))
    assert read_manifest(tmp_path)["digest"] != digest
    assert verify_artifact(tmp_path) == []
    assert_holds(signal.rows(ids_N16), ids_N16, list(range(14)))


def test_a_reused_signal_is_not_rewritten(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    measure(tmp_path, ids_N16)
    before = contents(tmp_path)
    measure(tmp_path, ids_N16[:6])
    assert contents(tmp_path) == before


def test_positions_within_the_signal_count_up_over_parts(tmp_path: Path) -> None:
    measure(tmp_path, random_ids(10))
    measure(tmp_path, random_ids(6, seed=1))
    rows = [pq.read_table(path).column("row").to_pylist() for path in sorted(tmp_path.glob("part-*.parquet"))]
    assert list(itertools.chain(*rows)) == list(range(16))


@pytest.mark.parametrize("done", [set(c) for n in range(5) for c in itertools.combinations(range(4), n)], ids=str)
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, done: set[int]) -> None:
    ids_N16 = random_ids(14)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    measure(whole, ids_N16)
    signal = store(killed)
    for number, chosen in signal.plan_parts(ids_N16, 4):
        if number in done:
            write(signal, number, ids_N16[chosen])
    killed.mkdir(exist_ok=True)
    (killed / ".part-00001.parquet.99.tmp").write_bytes(b"half")
    measure(killed, ids_N16)
    same = {name: content for name, content in contents(whole).items() if name != "manifest.json"}
    assert {name: content for name, content in contents(killed).items() if name != "manifest.json"} == same
    assert read_manifest(killed)["digest"] == read_manifest(whole)["digest"]


def test_a_run_killed_while_it_grew_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    old_N16, all_N16 = random_ids(6), random_ids(20)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        measure(folder, old_N16)
    measure(whole, all_N16)
    signal = store(killed)
    missing_M16 = all_N16[signal.missing(all_N16)]
    plan = signal.plan_parts(missing_M16, 4)
    assert [number for number, _ in plan] == [2, 3, 4, 5, 6][: len(plan)]
    write(signal, plan[1][0], missing_M16[plan[1][1]])
    measure(killed, all_N16)
    assert read_manifest(killed)["digest"] == read_manifest(whole)["digest"]


@pytest.mark.parametrize("part_rows", [1, 3, 4, 100])
def test_another_part_size_after_a_kill_still_measures_each_sample_once(tmp_path: Path, part_rows: int) -> None:
    ids_N16 = random_ids(14)
    signal = store(tmp_path)
    plan = signal.plan_parts(ids_N16, 4)
    write(signal, plan[2][0], ids_N16[plan[2][1]])
    signal = measure(tmp_path, ids_N16, part_rows=part_rows)
    assert_holds(signal.rows(ids_N16), ids_N16, list(range(14)))
    rows = [pq.read_table(path).column("row").to_pylist() for path in sorted(tmp_path.glob("part-*.parquet"))]
    assert sorted(itertools.chain(*rows)) == list(range(14))


def test_a_gap_filled_by_a_smaller_corpus_keeps_positions_apart(tmp_path: Path) -> None:
    ids_N16, few_N16 = random_ids(12), random_ids(2, seed=1)
    signal = store(tmp_path)
    plan = signal.plan_parts(ids_N16, 4)
    write(signal, plan[1][0], ids_N16[plan[1][1]])
    measure(tmp_path, few_N16)
    both_N16 = np.concatenate([ids_N16, few_N16])
    assert_holds(measure(tmp_path, both_N16).rows(both_N16), both_N16, list(range(14)))
    rows = [pq.read_table(path).column("row").to_pylist() for path in sorted(tmp_path.glob("part-*.parquet"))]
    assert len(set(itertools.chain(*rows))) == 14


def test_ranks_that_write_disjoint_parts_make_what_one_rank_makes(tmp_path: Path) -> None:
    ids_N16 = random_ids(14)
    measure(tmp_path / "one", ids_N16)
    ranks = [store(tmp_path / "two") for _ in range(2)]
    plans = [signal.plan_parts(ids_N16, 4) for signal in ranks]
    assert plans[0] == plans[1]
    for rank in (1, 0):
        for number, chosen in plans[rank][rank::2]:
            write(ranks[rank], number, ids_N16[chosen])
    ranks[0].finish({"model": {"name": "tiny", "sha256": "ab" * 32, "dtype": "float32"}})
    assert read_manifest(tmp_path / "two")["digest"] == read_manifest(tmp_path / "one")["digest"]
    assert_holds(ranks[1].rows(ids_N16), ids_N16, list(range(14)))


def test_two_open_stores_of_one_signal_see_each_others_parts(tmp_path: Path) -> None:
    pool_N16, target_N16 = random_ids(10), random_ids(6, seed=1)
    pool, target = store(tmp_path), store(tmp_path)
    for signal, ids_N16 in ((pool, pool_N16), (target, np.concatenate([target_N16, pool_N16[:2]]))):
        missing_M16 = ids_N16[signal.missing(ids_N16)]
        for number, chosen in signal.plan_parts(missing_M16, 4):
            write(signal, number, missing_M16[chosen])
        signal.finish({})
    assert read_manifest(tmp_path)["stats"]["rows"] == 16
    assert verify_artifact(tmp_path) == []
    both_N16 = np.concatenate([pool_N16, target_N16])
    assert_holds(pool.rows(both_N16), both_N16, list(range(16)))


def test_unmeasured_samples_are_counted_unless_they_may_be_absent(tmp_path: Path) -> None:
    ids_N16 = random_ids(10)
    signal = measure(tmp_path, ids_N16[:8])
    with pytest.raises(ArtifactError, match=r"lacks 2 of 10 samples \(first: row 8\).*flextools score"):
        signal.rows(ids_N16)
    absent_ok = np.arange(10) >= 8
    rows = signal.rows(ids_N16, absent_ok)
    assert len(rows) == 10
    assert_holds(rows, ids_N16, list(range(8)))
    absent_ok[8] = False
    with pytest.raises(ArtifactError, match="lacks 1 of 10"):
        signal.rows(ids_N16, absent_ok)


def test_a_zero_vector_stays_zero(tmp_path: Path) -> None:
    ids_N16 = random_ids(1)
    signal = store(tmp_path)
    signal.plan_parts(ids_N16, 4)
    zero = {"num_tokens": np.ones(1), "norm": np.zeros(1), "value": np.zeros((1, DIM))}
    signal.write_part(0, ids_N16, zero)
    value_D, norm = read(signal.rows(ids_N16))[0]
    assert norm == 0
    assert not value_D.any()


def test_every_finite_float16_is_widened_to_the_same_number() -> None:
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)].reshape(-1, 64)
    wide = stored_rows._widened(half)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.view(np.uint32), half.astype(np.float32).view(np.uint32))


def test_a_reader_that_stops_early_leaves_no_thread(tmp_path: Path) -> None:
    ids_N16 = random_ids(12)
    rows = measure(tmp_path, ids_N16).rows(ids_N16)
    before = threading.active_count()
    blocks = rows.blocks()
    next(blocks)
    blocks.close()
    assert threading.active_count() == before


def peak_while_reading(folder: Path, count: int, dim: int) -> int:
    """Most bytes that Arrow holds at any block while all rows are read."""
    ids_N16 = random_ids(count)
    signal = SignalStore(folder, SPEC, vector_columns(dim, "float16"))
    [(number, _)] = signal.plan_parts(ids_N16, count)
    signal.write_part(
        number, ids_N16, {"num_tokens": np.ones(count), "norm": np.ones(count), "value": np.ones((count, dim)) / 32}
    )
    before, peak = pa.total_allocated_bytes(), 0
    for _, value_BD, _ in signal.rows(ids_N16).blocks():
        assert value_BD.nbytes <= stored_rows._BLOCK_BYTES
        peak = max(peak, pa.total_allocated_bytes() - before)
    return peak


def test_memory_to_read_does_not_grow_with_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_module, "_GROUP_BYTES", 2**16)
    monkeypatch.setattr(stored_rows, "_BLOCK_BYTES", 2**16)
    few = peak_while_reading(tmp_path / "few", 128, dim=1024)
    many = peak_while_reading(tmp_path / "many", 2048, dim=1024)
    with pq.ParquetFile(tmp_path / "many" / "part-00000.parquet") as file:
        assert file.num_row_groups > 60
    values = 2048 * 1024 * 2  # bytes of all float16 values of the larger one
    assert max(few, many) < values / 10  # some blocks are read ahead; how many depends on the threads
    assert many < 8 * 2**16  # the group in use, the one being decoded, their pages and levels


def test_a_part_is_never_overwritten(tmp_path: Path) -> None:
    ids_N16 = random_ids(4)
    first, second = store(tmp_path), store(tmp_path)
    for signal in (first, second):
        signal.plan_parts(ids_N16, 4)
    write(first, 0, ids_N16)
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet exists already"):
        write(second, 0, ids_N16)


def test_an_interrupted_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids_N16 = random_ids(4)
    signal = store(tmp_path)
    signal.plan_parts(ids_N16, 4)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(signal, 0, ids_N16)
    assert list(tmp_path.iterdir()) == []
    assert len(store(tmp_path)) == 0


def test_parts_of_another_spec_are_refused(tmp_path: Path) -> None:
    measure(tmp_path, random_ids(4))
    with pytest.raises(ArtifactError, match="wanted format 1 and spec"):
        SignalStore(tmp_path, {**SPEC, "model": "00"}, vector_columns(DIM, "float16"))


def test_foreign_and_broken_parts_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet has no flextools metadata"):
        store(tmp_path)
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet cannot be read as Parquet.*delete this file"):
        store(tmp_path)


def test_a_flipped_byte_in_a_part_is_found_when_it_is_read(tmp_path: Path) -> None:
    ids_N16 = random_ids(4)
    measure(tmp_path, ids_N16)
    path = tmp_path / "part-00000.parquet"
    content, value = path.read_bytes(), vectors_of(ids_N16)[2]
    place = content.index((value / np.linalg.norm(value)).astype(np.float16).tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    signal = store(tmp_path)
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet was changed.*delete.*run `flextools score` again"):
        read(signal.rows(ids_N16))


def test_a_part_replaced_or_removed_while_in_use_is_found(tmp_path: Path) -> None:
    ids_N16, other_N16 = random_ids(4), random_ids(4, seed=1)
    rows = measure(tmp_path / "a", ids_N16).rows(ids_N16)
    measure(tmp_path / "b", other_N16)
    os.replace(tmp_path / "b" / "part-00000.parquet", tmp_path / "a" / "part-00000.parquet")
    with pytest.raises(ArtifactError, match="was changed"):
        read(rows)
    (tmp_path / "a" / "part-00000.parquet").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        read(rows)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("norm", np.ones(3), r"norm.*\(3,\).*\(4,\)"),
        ("value", np.ones((4, DIM + 1)), "value.*wanted"),
        ("value", np.full((4, DIM), np.nan), "NaN"),
        ("norm", np.full(4, np.inf), "infinity"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    ids_N16 = random_ids(4)
    signal = store(tmp_path)
    signal.plan_parts(ids_N16, 4)
    good = {"num_tokens": np.ones(4), "norm": np.ones(4), "value": np.ones((4, DIM))}
    with pytest.raises(ValueError, match=message):
        signal.write_part(0, ids_N16, {**good, name: array})
    with pytest.raises(ValueError, match="declared"):
        signal.write_part(0, ids_N16, {**good, "loss": np.ones(4)})
    with pytest.raises(ValueError, match="not planned"):
        signal.write_part(1, ids_N16, good)
