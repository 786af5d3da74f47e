import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex_tools.artifact.ids import as_keys, first_occurrences, positions_of

# few distinct ids, among them ones that end in zero bytes, so that duplicates and padding both occur
ids = st.lists(
    st.sampled_from([bytes(16), b"\1" + bytes(15), bytes(15) + b"\1", b"\xff" * 16, b"a" * 15 + b"\0"]), max_size=12
)


def as_array(items: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(items), dtype=np.uint8).reshape(-1, 16)


@given(ids, ids)
def test_positions_are_those_a_loop_finds(wanted: list[bytes], known: list[bytes]) -> None:
    expected = [known.index(item) if item in known else -1 for item in wanted]
    np.testing.assert_array_equal(positions_of(as_array(wanted), as_array(known)), np.array(expected, dtype=np.int64))


@given(ids)
def test_first_occurrences_are_those_a_loop_finds(items: list[bytes]) -> None:
    expected = [row for row, item in enumerate(items) if item not in items[:row]]
    np.testing.assert_array_equal(first_occurrences(as_array(items)), np.array(expected, dtype=np.int64))


def test_anything_but_sixteen_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8\)"):
        as_keys(np.zeros((3, 8), np.uint8))
