"""What is committed stays, in the order of the plan; what is not, leaves no trace."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex_tools.train import ledger as module
from dataflex_tools.train.journal import Journal
from dataflex_tools.train.ledger import Ledger

IDS_N16 = np.arange(16 * 64, dtype=np.uint32).astype(np.uint8).reshape(64, 16)
GROUP_N = np.arange(64) % 2


def rows_by_step(ledger: Ledger) -> list[tuple[int, int]]:
    return [(int(line["step"]), int(line["row"])) for block in ledger.lines() for line in block]


def test_merged_order_is_step_then_micro_batch_then_rank(tmp_path: Path) -> None:
    ledgers = [Ledger(tmp_path, rank=rank) for rank in range(2)]
    row = 0
    for step in (1, 2, 3):
        for _ in range(2):
            for ledger in ledgers:
                ledger.record(np.array([row, row + 1]))
                row += 2
        for ledger in ledgers:
            ledger.commit(step)
    assert rows_by_step(ledgers[0]) == [(1 + r // 8, r) for r in range(24)]


@pytest.mark.parametrize("at_once", [1, 3, 5, 2**16])
def test_block_size_does_not_change_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    ledger = Ledger(tmp_path)
    for step in range(1, 11):
        ledger.record(np.array([step, step + 20]), np.array([0.5, 1.5]))
        ledger.commit(step)
    monkeypatch.setattr(module, "_LINES_AT_ONCE", at_once)
    ledger.write(tmp_path / "ledger.parquet", ids_N16=IDS_N16, group_N=GROUP_N, group_names=("a", "b"))
    table = pq.read_table(tmp_path / "ledger.parquet")
    assert table.column("row").to_pylist() == [r for step in range(1, 11) for r in (step, step + 20)]
    assert table.column("weight").to_pylist() == [0.5, 1.5] * 10
    assert table.column("domain").to_pylist()[:2] == ["b", "b"]
    assert table.column("sample_id").to_pylist()[1] == IDS_N16[21].tobytes()


@pytest.mark.parametrize("last", [0, 1, 4, 5, 6])
def test_cut_forgets_later_steps_on_all_ranks(tmp_path: Path, last: int) -> None:
    ledgers = [Ledger(tmp_path, rank=rank) for rank in range(3)]
    for step in range(1, 6):
        for rank, ledger in enumerate(ledgers):
            ledger.record(np.array([rank]))
            ledger.commit(step)
    Ledger(tmp_path).cut(last)  # one rank cuts for all, also when fewer ranks go on
    assert rows_by_step(ledgers[0]) == [(step, rank) for step in range(1, min(last, 5) + 1) for rank in range(3)]


def test_an_uncommitted_step_leaves_no_trace(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(np.array([1]))
    ledger.discard()
    ledger.record(np.array([2]))
    ledger.commit(1)
    assert rows_by_step(ledger) == [(1, 2)]


def test_an_empty_ledger_is_an_empty_table(tmp_path: Path) -> None:
    Ledger(tmp_path).write(tmp_path / "ledger.parquet", ids_N16=IDS_N16, group_N=GROUP_N, group_names=("a", "b"))
    assert pq.read_table(tmp_path / "ledger.parquet").num_rows == 0


def test_a_half_written_record_is_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.bin", np.dtype([("step", "<i8"), ("rate", "<f8")]))
    journal.append(np.array([(1, 0.1), (2, 0.2)], dtype=journal.dtype))
    with journal.path.open("ab") as handle:
        handle.write(b"torn")
    journal.cut(5)
    journal.append(np.array([(3, 0.3)], dtype=journal.dtype))
    assert journal.read()["rate"].tolist() == [0.1, 0.2, 0.3]
