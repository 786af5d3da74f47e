"""Manifests that somebody else wrote: whatever they hold, the answer is one error."""

import json
from pathlib import Path
from typing import Any

import pytest

from dataflex_tools.artifact.manifest import manifest_digest, read_manifest, verify_artifact, write_manifest
from dataflex_tools.core.errors import ArtifactError
from tests.artifact.examples import measure, mix, plan, random_ids
from tests.artifact.hostile import sign

ENTRY = {"path": "scores.parquet", "bytes": 1, "sha256": "0" * 64, "rows": None, "schema": None}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"format": 1, "x": NaN}', "NaN is not JSON"),
        ('{"format": 1, "x": -Infinity}', "-Infinity is not JSON"),
        ('{"format": 1, "x": 1e999}', "1e999 is more than a float holds"),
        ('{"format": 1, "x": "\\ud800"}', "half of a surrogate pair"),
        ('{"format": 1, "\\udfff": 1}', "half of a surrogate pair"),
        ('{"format": 1, "format": 1}', "the key 'format' stands twice"),
        ('{"format": 1, "x": ' + "9" * 5000 + "}", "integer string conversion"),
        ('{"format": 1, "x": ' + "[" * 100 + "]" * 100 + "}", "nested more than 64 deep"),
        ('{"format": 1, "x": ' + "[" * 100_000, "nested too deeply"),
        ('{"format": 1, "x": "' + "x" * (17 * 2**20) + '"}', r"17,\d+,\d+ bytes, at most"),
        ('{"format": ' + "9" * 400 + "}", "has format a huge number.*update flextools"),
        ("\x00", "cannot be read"),
    ],
)
def test_json_that_is_no_manifest_is_one_short_line(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    for read in (read_manifest, verify_artifact):
        with pytest.raises(ArtifactError, match=match) as error:
            read(tmp_path)
        assert len(str(error.value)) < 600
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("kind", "virus", "kind is 'virus'"),
        ("files", {}, "files is a dict of 0"),
        ("files", [ENTRY, 3], "files.1 is 3"),
        ("files", [{**ENTRY, "path": "../../x"}], "files.0.path is '../../x': leads outside the artifact"),
        ("files", [{**ENTRY, "path": "/etc/passwd"}], "leads outside"),
        ("files", [{**ENTRY, "path": "a\0b"}], "leads outside"),
        ("files", [{**ENTRY, "bytes": 2**70}], "files.0.bytes is a huge number"),
        ("files", [{**ENTRY, "bytes": True}], "files.0.bytes is True"),
        ("files", [{**ENTRY, "rows": -1}], "files.0.rows is -1"),
        ("files", [{**ENTRY, "sha256": "x"}], "files.0.sha256 is 'x'"),
        ("corpus", None, "corpus is None"),
        ("corpus", {"rows": 12}, "corpus.fingerprint is missing"),
        ("corpus", {"fingerprint": "x", "rows": "12"}, "corpus.rows is '12'"),
        ("corpus", {"fingerprint": "x", "rows": 12, "domains": {"a": -1}}, "whole numbers of 0 or more"),
        ("corpus", {"fingerprint": "x", "rows": 12, "domains": [1]}, "corpus.domains"),
        ("corpus", {"fingerprint": "x", "rows": 12, "sources": [{"path": 1, "domain": "a"}]}, "corpus.sources.0.path"),
        ("model", {"name": ["x"], "sha256": "0"}, "model.name is a list of 1"),
        ("tokenizer", {"sha256": 3}, "tokenizer.sha256 is 3"),
        ("method", 3, "method is 3"),
        ("parents", [{"path": "x"}], "parents.0.digest is missing"),
        ("stats", [], "stats is a list of 0"),
        ("config", "x", "config is 'x'"),
        ("stats", {"checkpoints": [{"path": "../../..", "mean_learning_rate": 1.0}]}, "leads outside the artifact"),
        ("stats", {"checkpoints": [{"path": "a", "mean_learning_rate": -1}]}, "mean_learning_rate is -1"),
        ("producer", "me", "producer is 'me'"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, field: str, value: Any, match: str) -> None:
    plan(tmp_path / "p")
    sign(tmp_path / "p", **({field: value} if field != "files" else {}))
    if field == "files":
        content = json.loads((tmp_path / "p" / "manifest.json").read_text()) | {"files": value}
        (tmp_path / "p" / "manifest.json").write_text(json.dumps(content | {"digest": manifest_digest(content)}))
    with pytest.raises(ArtifactError, match=match):
        read_manifest(tmp_path / "p")
    assert verify_artifact(tmp_path / "p")


@pytest.mark.parametrize(
    ("stats", "match"),
    [
        ({"entropy": "x"}, "stats.entropy is 'x'"),
        ({"schedule": {"entries": 1}}, "stats.schedule.last_step is missing"),
        ({"warnings": "x"}, "stats.warnings is 'x'"),
        ({"weights": {"web": "1"}}, "stats.weights.web is '1'"),
    ],
)
def test_a_field_of_a_mixture_of_another_type_is_named(tmp_path: Path, stats: Any, match: str) -> None:
    mix(tmp_path / "m")
    sign(tmp_path / "m", stats={**read_manifest(tmp_path / "m")["stats"], **stats})
    with pytest.raises(ArtifactError, match=match):
        read_manifest(tmp_path / "m")


def test_a_signal_that_states_another_address_is_refused(tmp_path: Path) -> None:
    measure(tmp_path, random_ids(4))
    sign(tmp_path, spec_digest="0" * 64)
    with pytest.raises(ArtifactError, match="spec_digest is not that of its spec"):
        read_manifest(tmp_path)


def test_fields_of_a_later_version_are_no_fault(tmp_path: Path) -> None:
    plan(tmp_path / "p")
    sign(tmp_path / "p", colour={"of": ["anything", 1.5, None]})
    assert read_manifest(tmp_path / "p")["colour"]["of"] == ["anything", 1.5, None]
    assert verify_artifact(tmp_path / "p") == []


def test_text_that_is_no_unicode_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not Unicode text"):
        write_manifest(tmp_path, {"kind": "model", "files": [], "name": "caf\udce9.jsonl"})
    assert not (tmp_path / "manifest.json").exists()
