"""Comparing plans: hand numbers on small plans, loops on random ones, and what is said when corpora differ."""

import json
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.core.plan import Selection
from dataflex_tools.ops.agreement import spearman
from dataflex_tools.report.compare import compare, compare_text
from tests.artifact.examples import measure, plan, plan_fields, random_ids


def scored(folder: Path, score: np.ndarray, **changed: object) -> Path:
    plan(folder, len(score), selection=Selection(np.asarray(score, dtype=np.float64)), **changed)
    return folder


def of_corpus(folder: Path, ids_N16: np.ndarray, score: np.ndarray, **changed: object) -> Path:
    corpus = {**plan_fields()["corpus"], "fingerprint": ids_digest(ids_N16), "rows": len(ids_N16)}
    return scored(folder, score, ids_N16=ids_N16, corpus=corpus, **changed)


def test_overlap_correlation_and_composition_by_hand(tmp_path: Path) -> None:
    # 10 rows of 1..10 tokens; odd rows are code; A takes the last two, B rows 9 and 0
    a = scored(tmp_path / "a", np.arange(10))
    b = scored(tmp_path / "b", np.array([8.5, *range(1, 9), 20]))
    result = compare([a, b], [0.2])
    (budget,) = result["budgets"]
    assert (budget["num_samples"], budget["share_by_chance"], budget["too_few"]) == (2, 0.2, [])
    assert budget["pairs"] == [{"plans": ["a", "b"], "shared": 1, "share": 0.5, "jaccard": 1 / 3}]
    assert result["length_edges"] == [1, 2, 4, 8, 16]
    both = {"rows": 2, "domains": {"web": 1, "code": 1}}
    assert budget["picks"][0] == {"plan": "a", "tokens": 19, "lengths": [0, 0, 0, 2], **both}
    assert budget["picks"][1] == {"plan": "b", "tokens": 11, "lengths": [1, 0, 0, 1], **both}
    assert result["pool"][0]["lengths"] == [1, 2, 4, 3]
    (pair,) = result["rank_correlation"]
    # row 0 moves from rank 1 to 9, rows 1 to 8 one down: 1 - 6 (64 + 8) / 990
    assert pair["spearman"] == pytest.approx(1 - 6 * 72 / 990)
    assert pair["rows"] == 10
    assert result["notes"] == []


def test_many_plans_and_budgets_are_the_loop_over_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(size=60) for name in "abc"}
    result = compare([scored(tmp_path / name, score) for name, score in scores.items()], [0.1, 0.5, 1.0])
    for budget, count in zip(result["budgets"], (6, 30, 60), strict=True):
        best = {name: set(sorted(range(60), key=lambda row: -score[row])[:count]) for name, score in scores.items()}
        assert [pair["plans"] for pair in budget["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
        for pair in budget["pairs"]:
            first, second = (best[name] for name in pair["plans"])
            assert pair["shared"] == len(first & second)
            assert pair["jaccard"] == len(first & second) / len(first | second)
        assert all(sum(pick["domains"].values()) == sum(pick["lengths"]) == count for pick in budget["picks"])


def test_rows_that_either_plan_excludes_are_left_out_of_the_correlation(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=20), rng.normal(size=20)
    first[[3, 4]], second[[4, 9]] = -np.inf, -np.inf
    keep = [row for row in range(20) if row not in (3, 4, 9)]
    (pair,) = compare([scored(tmp_path / "a", first), scored(tmp_path / "b", second)], [0.1])["rank_correlation"]
    assert pair["rows"] == 17
    assert pair["spearman"] == pytest.approx(spearman(first[keep], second[keep]))


def test_a_plan_that_cannot_fill_a_budget_is_named_and_has_no_pick(tmp_path: Path) -> None:
    few = np.full(20, -np.inf)
    few[:3] = 1
    result = compare([scored(tmp_path / "all", np.arange(20)), scored(tmp_path / "few", few)], [0.15, 0.2])
    assert [budget["too_few"] for budget in result["budgets"]] == [[], ["few"]]
    assert result["budgets"][1]["pairs"] == []
    assert [pick["plan"] for pick in result["budgets"][1]["picks"]] == ["all"]
    assert result["rank_correlation"][0]["spearman"] is None
    text = compare_text(result)
    assert "few cannot fill this budget" in text
    json.dumps(result, allow_nan=False)


def test_plans_of_different_corpora_are_compared_on_common_samples_and_it_is_said(tmp_path: Path) -> None:
    ids = random_ids(30)
    # B's corpus: samples 25, 24, ... 10 in that order, one of them twice
    rows = np.array([*range(25, 9, -1), 12])
    first, second = np.random.default_rng(2).normal(size=(2, 30))
    a, b = of_corpus(tmp_path / "a", ids, first), of_corpus(tmp_path / "b", ids[rows], second[rows])
    result = compare([a, b], [0.25])
    assert result["samples"] == {"compared": 16, "is_same_corpus": False}
    assert "different corpora (rows: a 30, b 17)" in result["notes"][0]
    assert "the 16 samples that all of them hold" in compare_text(result)
    (pair,) = result["budgets"][0]["pairs"]
    best = [set(sorted(range(10, 26), key=lambda row: -score[row])[:4]) for score in (first, second)]
    assert (result["budgets"][0]["num_samples"], pair["shared"]) == (4, len(best[0] & best[1]))
    assert result["rank_correlation"][0]["spearman"] == pytest.approx(spearman(first[10:26], second[10:26]))
    there, back = compare([a, b], [0.25]), compare([b, a], [0.25])
    assert there["budgets"][0]["pairs"][0]["shared"] == back["budgets"][0]["pairs"][0]["shared"]


def test_another_count_of_tokens_is_said(tmp_path: Path) -> None:
    a, b = scored(tmp_path / "a", np.arange(8)), scored(tmp_path / "b", np.arange(8), num_tokens_N=np.full(8, 3))
    result = compare([a, b], [0.5])
    assert ["count tokens differently" in note for note in result["notes"]] == [True]
    assert result["budgets"][0]["pairs"][0]["jaccard"] == 1


def test_text_holds_every_pair_budget_and_histogram(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    names = [f"domain-{number}" for number in range(30)]
    fields = {"domain_N": np.arange(90) % 30, "domain_names": names}
    folders = [scored(tmp_path / name, rng.normal(size=90), **fields) for name in ("less", "random", "loss")]
    text = compare_text(compare(folders))
    assert "3 plans of the same corpus, 90 samples compared" in text
    for words in ("less & random", "random & loss", "best 0.05", "domain-", "and 10 more", "64 to 127", "mean"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 140


def test_equal_folder_names_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [scored(tmp_path / seed / "less", np.arange(5)) for seed in ("one", "two")]
    assert [p["name"] for p in compare(folders, [0.2])["plans"]] == [str(folder) for folder in folders]


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", np.arange(5))
    measure(tmp_path / "signal", random_ids(5))
    with pytest.raises(ConfigError, match="found 1 artifacts"):
        compare([a])
    with pytest.raises(ConfigError, match="name an artifact twice"):
        compare([a, a])
    with pytest.raises(ConfigError, match=r"fraction is 1.5"):
        compare([a, a], [1.5])
    with pytest.raises(ConfigError, match="no fraction"):
        compare([a, a], [])
    with pytest.raises(ArtifactError, match="wanted 'plan'"):
        compare([a, tmp_path / "signal"])
    other = of_corpus(tmp_path / "other", random_ids(7, seed=9), np.arange(7))
    with pytest.raises(ArtifactError, match=r"no sample is in all of a \(5 rows\), other \(7 rows\)"):
        compare([a, other])
