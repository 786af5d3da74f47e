"""A plan artifact opened from Python feeds a plain DataLoader."""

from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.artifact.plan import PlanRows, write_plan
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.core.plan import Selection
from dataflex_tools.sampler.api import load_artifact

SCORE_N = np.array([0.1, 0.9, -np.inf, 0.5, 0.7])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ids_N16 = np.arange(80, dtype=np.uint8).reshape(5, 16)
    facts = {
        "method": "random", "settings": {}, "model": None, "tokenizer": None, "parents": [], "stats": {}, "config": {},
        "corpus": {"fingerprint": ids_digest(ids_N16), "rows": 5, "domains": ["a", "b"], "sources": []},
    }  # fmt: skip
    rows = PlanRows(ids_N16, np.array([0, 1, 0, 1, 0]), ("a", "b"), np.array([10, 20, 30, 40, 50]))
    write_plan(tmp_path / "plan", Selection(SCORE_N), rows=rows, facts=facts)
    return tmp_path / "plan"


def test_selected_rows_are_the_best_first(folder: Path) -> None:
    plan = load_artifact(str(folder))
    assert plan.select(num_samples=3).tolist() == [1, 4, 3]
    assert plan.select(fraction=0.4).tolist() == [1, 4]
    assert plan.select(num_tokens=70).tolist() == [1, 4]
    assert plan.manifest["method"] == "random"
    np.testing.assert_array_equal(plan.scores().column("score").to_numpy(), SCORE_N)


def test_sampler_yields_the_selected_rows(folder: Path) -> None:
    plan = load_artifact(folder)
    assert sorted(plan.sampler(num_samples=3, seed=2)) == [1, 3, 4]


def test_two_budgets_are_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        load_artifact(folder).select(fraction=0.5, num_samples=2)


def test_an_unfinished_artifact_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        load_artifact(tmp_path)
