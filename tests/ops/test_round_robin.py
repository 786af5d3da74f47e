"""Turns of queries against loops over sorted lists."""

import numpy as np
import pytest

from dataflex_tools.ops import stream
from dataflex_tools.ops.round_robin import by_columns, by_turns
from tests.helpers import vector
from tests.ops.plain_rows import PlainRows


def naive_columns(lists):
    order = []
    for column in zip(*lists, strict=True):
        for row in column:
            if row not in order:
                order.append(row)
    return order


def naive_turns(value_ND, query_MD, allowed):
    free, order, turn = set(allowed), [], 0
    while free:
        query = query_MD[turn % len(query_MD)]
        best = min(free, key=lambda i: (-np.float32(sum(a * b for a, b in zip(value_ND[i], query, strict=True))), i))
        order.append(best)
        free.remove(best)
        turn += 1
    return order


def unit(rng, *shape):
    raw = rng.normal(size=shape)
    return raw / np.linalg.norm(raw, axis=-1, keepdims=True)


def test_the_walk_over_columns_is_the_published_one():
    data = vector("near_round_robin")
    order = by_columns(np.array(data["inputs"]["top_indices"])).tolist()
    for count in data["inputs"]["num_samples"]:
        assert order[:count] == data["expected"]["selected"][str(count)]
    assert len(order) == data["expected"]["max_available"]


@pytest.mark.parametrize("seed", range(5))
def test_the_walk_over_columns_equals_the_loop(seed):
    lists = np.array([np.random.default_rng((seed, m)).permutation(30)[:12] for m in range(5)])
    assert by_columns(lists).tolist() == naive_columns(lists.tolist())


@pytest.mark.parametrize("list_bytes", [1, 32 * 4 * 7, 32 * 4 * 30, 2**30])
@pytest.mark.parametrize("block", [1, 9, 60])
def test_turns_equal_the_loop_for_any_list_length_and_block(monkeypatch, list_bytes, block):
    monkeypatch.setattr(stream, "PIECE_BYTES", 500)
    rng = np.random.default_rng(0)
    value_ND, query_MD = unit(rng, 60, 4), unit(rng, 4, 4)
    allowed_N = np.arange(60) % 7 > 0
    rows = PlainRows(value_ND, block, order=rng.permutation(60))
    order = by_turns(rows, query_MD, allowed_N=allowed_N, list_bytes=list_bytes)
    assert order.tolist() == naive_turns(value_ND, query_MD, np.flatnonzero(allowed_N).tolist())


@pytest.mark.parametrize("list_bytes", [1, 2**30])
def test_equal_rows_are_taken_by_row(list_bytes):
    rng = np.random.default_rng(0)
    value_ND = np.repeat(unit(rng, 5, 3), 4, axis=0).astype(np.float32)
    query_MD = unit(rng, 3, 3)
    order = by_turns(PlainRows(value_ND, 3), query_MD, allowed_N=np.ones(20, bool), list_bytes=list_bytes)
    assert order.tolist() == naive_turns(value_ND.astype(float), query_MD, range(20))


def test_a_query_never_loses_its_turn():
    # both queries like rows 0, 1, 2 in that order: the second takes 1 although the first took its best
    value_ND = np.array([[1, 0], [0.8, 0.6], [0, 1]])
    assert by_turns(PlainRows(value_ND), np.array([[1.0, 0], [1.0, 0]]), allowed_N=np.ones(3, bool)).tolist() == [0, 1, 2]


def test_negative_and_zero_cosines_are_ranked_too():
    value_ND = np.array([[-1.0, 0], [0, 1], [0, -1], [1, 0], [0, 0]])
    order = by_turns(PlainRows(value_ND), np.array([[1.0, -0.0]]), allowed_N=np.ones(5, bool))
    assert order.tolist() == [3, 1, 2, 4, 0]


def test_rows_that_were_not_measured_are_left_out():
    value_ND = np.eye(4)
    order = by_turns(PlainRows(value_ND, absent=[2]), np.eye(4)[:1], allowed_N=np.ones(4, bool), list_bytes=1)
    assert order.tolist() == [0, 1, 3]


def test_long_lists_cost_one_pass():
    rng = np.random.default_rng(0)
    rows = PlainRows(unit(rng, 500, 4), 50)
    assert len(by_turns(rows, unit(rng, 8, 4), allowed_N=np.ones(500, bool))) == 500
    assert rows.num_passes == 1
