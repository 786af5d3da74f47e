"""Pieces of a stream hold each wanted row once, whatever the blocks."""

import numpy as np
import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.ops import stream
from dataflex_tools.ops.stream import measured, pieces, queries, take
from tests.ops.plain_rows import PlainRows

ORDER = [5, 0, 9, 3, 1, 8, 7, 2, 4, 6]
VALUE_ND = np.random.default_rng(0).normal(size=(10, 4))


@pytest.mark.parametrize("piece_rows", [1, 3, 99])
@pytest.mark.parametrize("block", [1, 2, 4, 10])
def test_pieces_hold_the_allowed_rows_once_and_no_more_than_fit(monkeypatch, piece_rows, block):
    monkeypatch.setattr(stream, "PIECE_BYTES", piece_rows * 32)
    allowed_N = np.arange(10) % 3 > 0
    found = list(pieces(PlainRows(VALUE_ND, block, ORDER, absent=[4]), allowed_N))
    rows = np.concatenate([row_B for row_B, _ in found])
    assert rows.tolist() == [i for i in ORDER if i % 3 and i != 4]
    np.testing.assert_array_equal(np.concatenate([value_BD for _, value_BD in found]), VALUE_ND[rows])
    assert max(len(row_B) for row_B, _ in found) <= max(piece_rows, block)


def test_taken_rows_come_in_the_order_asked_for():
    rows = PlainRows(VALUE_ND, 3, ORDER, absent=[4])
    np.testing.assert_array_equal(take(rows, np.array([7, 0, 9])), VALUE_ND[[7, 0, 9]])
    with pytest.raises(DataError, match="1 of 2 wanted rows were not measured"):
        take(rows, np.array([4, 1]))


def test_measured_rows_are_those_in_the_stream():
    found_N = measured(PlainRows(VALUE_ND, 3, ORDER, absent=[4]), np.arange(10) > 1)
    assert np.flatnonzero(found_N).tolist() == [2, 3, 5, 6, 7, 8, 9]


def test_queries_are_in_corpus_order_and_there_is_one():
    np.testing.assert_array_equal(queries(PlainRows(VALUE_ND, 3, ORDER, absent=[4])), np.delete(VALUE_ND, 4, axis=0))
    with pytest.raises(DataError, match="none of the 10 target samples was measured"):
        queries(PlainRows(VALUE_ND, absent=range(10)))
