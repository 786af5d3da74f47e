"""Artifacts as other tools read them."""

import html
from pathlib import Path

import datasets
import duckdb
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
import yaml

from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.fingerprint import ids_digest
from tests.artifact.examples import DIM, measure, plan, random_ids, vectors_of


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    plan(tmp_path / "less")
    measure(tmp_path / "signal", random_ids(10))
    return tmp_path / "less", tmp_path / "signal"


def test_datasets_loads_the_folder_as_it_is(folders: tuple[Path, Path], tmp_path: Path) -> None:
    scores, signal = folders
    rows = datasets.load_dataset(str(scores), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.column_names == ["row", "sample_id", "domain", "num_tokens", "score", "score_maths"]
    assert rows["domain"][:2] == ["web", "code"]
    assert rows["sample_id"][0] == random_ids(12)[0].tobytes()
    vectors = datasets.load_dataset(str(signal), cache_dir=str(tmp_path / "cache"))["train"]
    assert np.shape(vectors["value"][:]) == (10, DIM)


def test_the_schema_names_the_features_that_datasets_finds(folders: tuple[Path, Path]) -> None:
    for path in (folders[0] / "scores.parquet", folders[1] / "part-00000.parquet"):
        schema = pq.read_schema(path)
        stated = datasets.Features.from_arrow_schema(schema)
        assert stated == datasets.Features.from_arrow_schema(schema.remove_metadata())
        assert stated == datasets.Features.from_dict(yaml.safe_load(schema.metadata[b"huggingface"])["info"]["features"])


def test_duckdb_and_polars_read_the_same_rows(folders: tuple[Path, Path]) -> None:
    scores, signal = folders
    loaded = load_plan(scores)
    best = duckdb.sql(f"select row, domain from '{scores}/scores.parquet' order by score desc limit 1").fetchall()
    assert best == [(11, "code")]
    np.testing.assert_array_equal(polars.read_parquet(scores / "scores.parquet")["score"].to_numpy(), loaded.score_N)
    raw_D = vectors_of(random_ids(10))[9]
    unit_D = (raw_D / np.linalg.norm(raw_D)).astype(np.float16)
    found = duckdb.sql(f"select value from '{signal}/part-*.parquet' where row = 9").fetchall()[0][0]
    np.testing.assert_array_equal(np.array(found, dtype=np.float16), unit_D)
    frame = polars.read_parquet(signal / "part-*.parquet")
    np.testing.assert_array_equal(frame["value"].to_numpy()[9].astype(np.float16), unit_D)


def test_the_card_names_licence_and_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    front = yaml.safe_load((folders[0] / "README.md").read_text().split("---")[1])
    assert front["license"] == "unknown"
    assert front["configs"][0]["data_files"] == "scores.parquet"
    plan(tmp_path / "licensed", licence="cc-by-4.0")
    assert "license: cc-by-4.0" in (tmp_path / "licensed" / "README.md").read_text()


NASTY = "<img src=x onerror=alert(1)>[a](http://evil.example)|`c`\x1b[31m\u202e\n# title"


def test_names_are_shown_in_a_card_and_never_become_markup(tmp_path: Path) -> None:
    names = (NASTY, "**web** &lt; www.evil.example", "my_domain")
    model = {"name": f"models/{NASTY}", "sha256": "ab" * 32, "dtype": "float32"}
    corpus = {"fingerprint": ids_digest(random_ids(12)), "rows": 12, "domains": list(names), "sources": []}
    plan(tmp_path / "p", domain_names=names, model=model, corpus=corpus, method=NASTY)
    card = (tmp_path / "p" / "README.md").read_text()
    body = card.split("---\n", 2)[2]
    assert not {"\x1b", "\u202e"} & set(card)
    lines = body.splitlines()
    assert [line for line in lines if line.startswith("#")] == [line for line in lines[:3] if line.startswith("# ")]
    for markup in ("<img", "](http", "**web", "http://", "&lt;", "www.", "`c`"):
        assert markup not in body
    assert "my_domain" in body
    shown = html.unescape(body)
    assert r"<img src=x onerror=alert(1)>[a](http://evil.example)|`c`\x1b[31m\u202e\n# title" in shown
    assert yaml.safe_load(card.split("---\n")[1])["pretty_name"] == f"flextools plan: {NASTY}"
