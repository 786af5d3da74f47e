"""Addresses depend on content alone."""

import hashlib

import numpy as np
import pytest

from dataflex_tools.core.fingerprint import canonical_json, digest, file_sha256, ids_digest


def test_key_order_and_spacing_do_not_matter_but_values_do():
    assert digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_nan_has_no_canonical_form():
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_a_files_address_is_its_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_corpus_in_another_order_is_another_corpus():
    ids = np.arange(32, dtype=np.uint8).reshape(2, 16)
    assert ids_digest(ids) != ids_digest(ids[::-1])
    with pytest.raises(ValueError, match="uint8"):
        ids_digest(ids.astype(np.int64))
