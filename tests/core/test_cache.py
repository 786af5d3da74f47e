"""The cache is beside the artifacts unless somebody says otherwise, and a place that cannot be written is named."""

import os
from pathlib import Path

import pytest

from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.errors import ConfigError


def test_the_cache_is_beside_the_artifacts_or_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLEXTOOLS_CACHE", raising=False)
    assert cache_folder(tmp_path / "artifacts") == tmp_path / "artifacts" / "cache"
    monkeypatch.setenv("FLEXTOOLS_CACHE", str(tmp_path / "fast"))
    assert cache_folder(tmp_path / "artifacts") == tmp_path / "fast"


def test_a_cache_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEXTOOLS_CACHE", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # the administrator may write anywhere
    with pytest.raises(ConfigError, match=r"is read-only; give another folder with --cache DIR, or set FLEXTOOLS_CACHE"):
        cache_folder(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLEXTOOLS_CACHE", str(tmp_path / "file" / "x"))
    with pytest.raises(ConfigError, match="is a file"):
        cache_folder(tmp_path)
