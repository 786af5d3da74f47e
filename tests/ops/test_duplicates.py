"""Cosines with what comes before, against the published numbers and loops."""

import numpy as np
import pytest

from dataflex_tools.ops import duplicates
from dataflex_tools.ops.duplicates import cosine_to_earlier
from tests.helpers import FLOAT64, vector


def naive(value_JD, limit=None):
    out, kept = [], []
    for j, x in enumerate(value_JD):
        against = range(j) if limit is None else kept
        out.append(max([0.0, *(float(sum(a * b for a, b in zip(x, value_JD[i], strict=True))) for i in against)]))
        if limit is not None and out[-1] <= limit:
            kept.append(j)
    return out


def test_the_official_rule_gives_the_published_numbers():
    data = vector("semdedup")
    order, wanted = data["expected"]["order_hard_first"], data["expected"]["max_sim_to_earlier"]
    value_JD = np.array(data["inputs"]["embeddings_unit"])[order]
    np.testing.assert_allclose(cosine_to_earlier(value_JD), wanted, **FLOAT64)


@pytest.mark.parametrize("limit", [None, 0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("numbers", [1, 100, 2**22])
def test_both_rules_equal_their_loops_for_any_block(monkeypatch, limit, numbers):
    monkeypatch.setattr(duplicates, "_BLOCK_NUMBERS", numbers)
    raw = np.random.default_rng(0).normal(size=(40, 3))
    value_JD = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine_to_earlier(value_JD, limit=limit), naive(value_JD, limit), **FLOAT64)


def test_one_row_and_no_row():
    assert cosine_to_earlier(np.ones((1, 3))).tolist() == [0]
    assert cosine_to_earlier(np.ones((1, 3)), limit=0.9).tolist() == [0]
    assert cosine_to_earlier(np.ones((0, 3))).tolist() == []


@pytest.mark.parametrize("limit", [None, 1 - 1e-15, 0.999])
@pytest.mark.parametrize("storage", [np.float16, np.float32])
def test_equal_rows_have_a_cosine_of_one_however_they_were_rounded(limit, storage):
    raw = np.random.default_rng(3).normal(size=(30, 24))
    unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(storage).astype(np.float32)
    value_JD = unit[np.random.default_rng(4).integers(0, 30, size=90)]
    found = cosine_to_earlier(value_JD, limit=limit)
    seen: set[bytes] = set()
    for j, row in enumerate(value_JD):
        assert (found[j] == 1.0) == (row.tobytes() in seen)
        seen.add(row.tobytes())


def test_greedily_a_copy_of_a_removed_row_is_removed_by_the_same():
    value_JD = np.array([[1.0, 0.0], [0.9, np.sqrt(0.19)], [0.9, np.sqrt(0.19)]])
    np.testing.assert_allclose(cosine_to_earlier(value_JD, limit=0.8), [0, 0.9, 0.9])
