import json
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.plan import Selection
from dataflex_tools.report.inspect import describe, summarise
from tests.artifact.examples import measure, plan, random_ids


def test_best_and_worst_rows_come_with_their_text(tmp_path: Path) -> None:
    plan(tmp_path / "less")
    facts = summarise(tmp_path / "less", text_of=lambda row: f"text of {row}", k=2)
    assert [(fact["row"], fact["text"]) for fact in facts["best"]] == [(11, "text of 11"), (10, "text of 10")]
    assert [fact["row"] for fact in facts["worst"]] == [0, 1]
    shown = describe(tmp_path / "less", text_of=lambda row: f"text\n\tof {row} " + "x" * 500, k=2)
    assert "text of 11 xxx" in shown
    assert max(map(len, shown.splitlines())) < 200


def test_a_row_is_not_shown_twice(tmp_path: Path) -> None:
    plan(tmp_path / "less", count=5)
    facts = summarise(tmp_path / "less", k=3)
    rows = [fact["row"] for title in ("best", "worst") for fact in facts[title]]
    assert sorted(rows) == [0, 1, 2, 4]  # row 3 is excluded


def test_the_numbers_are_those_of_the_scores(tmp_path: Path) -> None:
    plan(tmp_path / "less", count=40)
    facts = summarise(tmp_path / "less")
    score_N = np.delete(np.linspace(-1, 1, 40), 3)
    scores = facts["scores"]
    assert (scores["selectable"], scores["excluded"], scores["distinct"]) == (39, 1, 39)
    assert scores["quantiles"]["0.5"] == pytest.approx(np.median(score_N))
    assert sum(scores["histogram"]["counts"]) == 39
    none, web, code = facts["domains"]
    assert (none["rows"], web["rows"], code["rows"]) == (0, 20, 20)
    assert none["mean_score"] is None
    assert web["tokens"] == sum(range(1, 41, 2))
    assert code["mean_score"] == pytest.approx(np.delete(np.linspace(-1, 1, 40)[1::2], 1).mean())
    assert (web["share_of_top"], code["share_of_top"]) == (0.5, 0.5)


@pytest.mark.parametrize("score", [-np.inf, 0.0])
def test_scores_without_spread_are_described(tmp_path: Path, score: float) -> None:
    plan(tmp_path / "less", selection=Selection(np.full(12, score)))
    facts = summarise(tmp_path / "less")
    json.dumps(facts, allow_nan=False)
    assert facts["scores"]["selectable"] == (0 if score < 0 else 12)
    assert "selectable" in describe(tmp_path / "less")


def test_every_kind_is_described_as_text_and_json(tmp_path: Path) -> None:
    plan(tmp_path / "less")
    measure(tmp_path / "signal", random_ids(10))
    json.dumps(summarise(tmp_path / "less", text_of=str), allow_nan=False)
    json.dumps(summarise(tmp_path / "signal"), allow_nan=False)
    text = describe(tmp_path / "less")
    assert "plan less, 12 rows, 3 files" in text
    assert "model      tiny (weights abababababababab)" in text
    assert "from       ../signals/gradient-00 (efefefefefefefef)" in text
    assert "signal gradient, 10 rows" in describe(tmp_path / "signal")
    assert "settings   dim=16, seed=0" in describe(tmp_path / "signal")


def test_many_domains_are_cut_on_the_terminal_only(tmp_path: Path) -> None:
    plan(tmp_path / "less", count=50, domain_N=np.arange(50), domain_names=[f"domain-{i}" for i in range(50)])
    assert "and 10 more domains" in describe(tmp_path / "less")
    assert len(summarise(tmp_path / "less")["domains"]) == 50


def test_an_unfinished_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="score stage has not finished"):
        describe(tmp_path)


def test_names_and_text_of_a_corpus_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    nasty = "dom\x1b[31m\u202e\nbest rows"
    plan(tmp_path / "p", domain_names=("none", nasty, "code"), parents=[{"path": nasty, "digest": "00"}])
    text = describe(tmp_path / "p", text_of=lambda row: f"\x1b]0;{nasty}\x07", k=2)
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert text.splitlines().count("best rows") == 1
