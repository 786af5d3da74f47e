"""The checked-in artifact of format 1 stays readable for ever; it is never rewritten to make a test pass."""

from pathlib import Path

import duckdb
import numpy as np
import polars
import pytest

from dataflex_tools.artifact.manifest import verify_artifact
from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.plan import Budget, select_rows
from dataflex_tools.report.inspect import describe
from dataflex_tools.sampler.api import load_artifact
from dataflex_tools.stages.look import texts_of

FOLDER = Path("artifacts/example")
BEST = [12, 13, 6]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def test_format_1_verifies_and_reads_as_it_was_written() -> None:
    assert verify_artifact(FOLDER) == []
    plan = load_plan(FOLDER)
    assert (plan.manifest["format"], plan.manifest["kind"], plan.manifest["method"]) == (1, "plan", "less")
    assert plan.manifest["digest"] == "4c13cdba8a50a4e9ede25e4d3740a813fe2a5d1ec825e5d49ab0b7c65a519dbe"
    assert len(plan) == 48
    assert plan.domain_names == ("sums", "opposites", "code")
    assert select_rows(plan.score_N, plan.num_tokens_N, Budget(num_samples=3)).tolist() == BEST
    assert set(load_artifact(FOLDER).sampler(num_samples=3)) == set(BEST)


def test_it_shows_its_best_rows_with_their_text_right_after_a_clone(tmp_path: Path) -> None:
    text_of = texts_of(FOLDER)
    assert text_of is not None
    assert "What is 5 plus 7?" in describe(FOLDER, text_of=text_of, k=1)


def test_other_tools_read_it_as_it_is(tmp_path: Path) -> None:
    import datasets

    score_N = load_plan(FOLDER).score_N
    loaded = datasets.load_dataset(str(FOLDER), cache_dir=str(tmp_path))["train"]
    np.testing.assert_array_equal(loaded["score"][:], score_N)
    np.testing.assert_array_equal(polars.read_parquet(FOLDER / "scores.parquet")["score"].to_numpy(), score_N)
    ((best,),) = duckdb.sql(f"select row from '{FOLDER}/scores.parquet' order by score desc limit 1").fetchall()
    assert best == BEST[0]
