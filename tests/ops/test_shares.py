"""Shares of domains, tempered and in an order that no listing changes."""

import numpy as np
import pytest

from dataflex_tools.core.mixing import Domains
from dataflex_tools.ops.shares import by_name, natural_shares, tempered
from tests.helpers import FLOAT64


def test_shares_count_tokens_unless_rows_are_asked_for():
    given = Domains(("a", "b"), np.array([1, 3]), np.array([30, 10]), 100)
    np.testing.assert_array_equal(natural_shares(given), [0.75, 0.25])
    np.testing.assert_array_equal(natural_shares(given, "rows"), [0.25, 0.75])


@pytest.mark.parametrize("exponent", [0, 0.3, 1, 2.5])
def test_tempered_shares_equal_the_loop(exponent):
    shares = [0.9, 0.06, 0.04]
    wanted = [share**exponent / sum(other**exponent for other in shares) for share in shares]
    np.testing.assert_allclose(tempered(np.array(shares), exponent), wanted, **FLOAT64)


def test_a_large_exponent_leaves_the_largest_and_no_nan():
    np.testing.assert_array_equal(tempered(np.array([0.6, 0.4]), 1e6), [1, 0])


def test_names_have_one_order_however_they_are_listed():
    names = ("b", "c", "a", "B")
    assert [names[place] for place in by_name(names)] == ["B", "a", "b", "c"]
