"""Natural proportions: what the data has."""

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.methods.natural import Natural, NaturalSettings
from tests.helpers import FLOAT64, vector
from tests.methods.domains import domains, mix


def test_shares_of_tokens_are_the_given_numbers():
    data = vector("sampling_distributions")
    mixture = mix(Natural, domains(data["inputs"]["sizes"]))
    np.testing.assert_allclose(mixture.weight_SK[0], data["expected"]["temperature"]["tau=1.0"], **FLOAT64)


def test_rows_or_tokens_are_counted_as_asked():
    given = domains([10, 30], num_rows=[3, 1])
    np.testing.assert_array_equal(mix(Natural, given).weight_SK, [[0.25, 0.75]])
    np.testing.assert_array_equal(mix(Natural, given, unit="rows").weight_SK, [[0.75, 0.25]])


def test_a_corpus_beyond_32_bits_keeps_its_shares():
    np.testing.assert_allclose(mix(Natural, domains([3 * 10**15, 10**15])).weight_SK, [[0.75, 0.25]], **FLOAT64)


def test_another_unit_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match="unit is 'token'; did you mean 'tokens'"):
        NaturalSettings(unit="token")
