"""A bench on the tiny project: what it compares is what the stages made, and it goes on where it was stopped."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError, FlextoolsError
from dataflex_tools.stages.bench_select import RESULTS, bench_select, build_bench, estimate_bench
from tests import tiny
from tests.stages.conftest import Work, tree

ARMS = ["influence", "near", "random", "random_length_matched"]


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    """The pool in two files, a domain each; signals are those of the project's own plan."""
    common = tiny.score_config(root, data=[f"{kind}={root / kind}.jsonl" for kind in ("count", "say")])
    del common["method"], common["out"]
    training = {"num_train_epochs": 1, "learning_rate": 1e-3, "global_batch_size": 8}
    held_out = [f"say={root / 'heldout.jsonl'}", f"count={root / 'other.jsonl'}"]
    values = {
        "common": common, "methods": [{"method": "less", "name": "influence"}, "near"], "train": {"training": training},
        "evaluate": {"data": held_out}, "target_groups": ["say"], "budget": {"fraction": 0.4}, "seeds": 2,
        "artifacts": str(root / "artifacts"), "out": str(root / "bench"),
    }  # fmt: skip
    return {**values, **changes}


@pytest.fixture(scope="module")
def finished(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = Path(shutil.copytree(scored, tmp_path_factory.mktemp("bench") / "project"))
    for kind in ("count", "say"):
        tiny.write_jsonl(root / f"{kind}.jsonl", tiny.records(30, kind=kind))
    tiny.write_jsonl(root / "other.jsonl", tiny.records(8, seed=2, kind="count"))
    return root, bench_select(build_bench(recipe(root)))


def _loss(root: Path, run: str, group: str) -> float:
    found = json.loads((root / "bench" / "runs" / run / "evaluation.json").read_text())
    return float(found["groups"][group]["loss"])


def test_losses_and_differences_are_those_of_the_evaluations(finished: tuple[Path, Mapping[str, Any]]) -> None:
    root, result = finished
    assert [arm["name"] for arm in result["arms"]] == list(result["runs"]) == ARMS
    assert [arm["is_control"] for arm in result["arms"]] == [False, False, True, True]
    runs = {arm: [f"{arm}-seed{s}" if arm in ("influence", "near") else f"{arm}-{s}" for s in (0, 1)] for arm in ARMS}
    target = {arm: np.array([_loss(root, run, "say") for run in names]) for arm, names in runs.items()}
    for arm in result["arms"]:
        name = arm["name"]
        assert arm["target_loss"]["mean"] == pytest.approx(target[name].mean())
        assert arm["target_loss"]["std"] == pytest.approx(target[name].std(ddof=1))
        assert arm["other_loss"]["mean"] == pytest.approx(np.mean([_loss(root, run, "count") for run in runs[name]]))
        assert set(arm["versus"]) == {"random", "random_length_matched"} - {name}
        for control, versus in arm["versus"].items():
            difference = target[name] - target[control]
            assert versus["mean"] == pytest.approx(difference.mean())
            assert (versus["low"], versus["high"]) == (pytest.approx(difference.min()), pytest.approx(difference.max()))
    assert json.loads((root / "bench" / RESULTS).read_text()) == result
    assert result["is_finished"]


def test_all_arms_train_on_equally_many_tokens(finished: tuple[Path, Mapping[str, Any]]) -> None:
    from dataflex_tools.artifact.plan import load_plan

    root, result = finished
    num_tokens_N = load_plan(root / "artifacts" / "influence").num_tokens_N
    budget = int(0.4 * num_tokens_N.sum())
    for records in result["runs"].values():
        assert all(budget - num_tokens_N.max() < record["tokens"] <= budget for record in records)


def test_share_of_the_targets_kind_is_counted_in_the_ledger(finished: tuple[Path, Mapping[str, Any]]) -> None:
    import pyarrow.parquet as pq

    root, result = finished
    ledger = pq.read_table(root / "bench" / "runs" / "near-seed1" / "ledger.parquet")
    domain_of = dict(zip(ledger["row"].to_pylist(), ledger["domain"].to_pylist(), strict=True))
    share = np.mean([domain == "say" for domain in domain_of.values()])
    assert result["runs"]["near"][1]["target_share"] == pytest.approx(share)


def test_controls_are_drawn_anew_for_each_seed_and_methods_once(finished: tuple[Path, Mapping[str, Any]]) -> None:
    from dataflex_tools.artifact.manifest import read_manifest

    root, _ = finished
    plans = {path.parent.name: read_manifest(path.parent) for path in (root / "artifacts").glob("*/manifest.json")}
    controls = [f"{name}-{seed}" for name in ("random", "random_length_matched") for seed in (0, 1)]
    assert sorted(plans) == sorted(["less", "influence", "near", *controls])
    assert len({plans[name]["digest"] for name in controls}) == len(controls)


def test_the_same_bench_again_computes_nothing_and_gives_the_same_result(
    finished: tuple[Path, dict[str, Any]], work: Work
) -> None:
    root, result = finished
    assert bench_select(build_bench(recipe(root))) == result
    assert work.is_none


def test_a_bench_that_lost_a_run_trains_that_one_only(
    finished: tuple[Path, dict[str, Any]], work: Work, tmp_path: Path
) -> None:
    root, result = finished
    again = tmp_path / "bench"
    shutil.copytree(root / "bench", again)
    shutil.rmtree(again / "runs" / "near-seed1")
    found = bench_select(build_bench(recipe(root, out=str(again))))
    assert work.num_trainings == 1
    assert not work.measured
    assert [arm["target_loss"] for arm in found["arms"]] == [arm["target_loss"] for arm in result["arms"]]
    assert found["runs"]["near"][0] == result["runs"]["near"][0]


def test_a_dry_run_writes_nothing_and_counts_the_trainings(finished: tuple[Path, dict[str, Any]]) -> None:
    root, _ = finished
    before = tree(root)
    found = estimate_bench(build_bench(recipe(root, methods=["less", "rds"], artifacts=str(root / "fresh"))))
    assert tree(root) == before
    assert found["trainings"] == 8
    assert list(found["scores"]) == ["less", "rds"]
    json.dumps(found)


def test_each_method_gets_a_control_of_its_lengths_if_asked_for(finished: tuple[Path, dict[str, Any]]) -> None:
    bench = build_bench(recipe(finished[0], match="each"))
    arms = {arm.name: arm for arm in bench.arms}
    assert list(arms)[2:] == ["random", "random_length_matched_influence", "random_length_matched_near"]
    assert [s.reference for s in arms["random_length_matched_near"].scores] == [str(finished[0] / "artifacts" / "near")] * 2


def test_seeds_count_from_that_of_the_training(finished: tuple[Path, dict[str, Any]]) -> None:
    bench = build_bench(recipe(finished[0], train={"training": {"seed": 5}}))
    assert [bench.train_config(bench.arms[0], place).training.seed for place in (0, 1)] == [5, 6]
    assert [config.seed for config in bench.arms[2].scores] == [5, 6]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"methods": []}, "methods is empty"),
        ({"methods": ["tsd"]}, "unknown method 'tsd'; did you mean 'tsds'"),
        ({"methods": ["less", "random"]}, "random is always compared with"),
        ({"methods": ["less", "less"]}, "'less' stands twice in methods"),
        ({"methods": [{"name": "x"}]}, "does not say which method"),
        ({"methods": [{"method": "less", "name": "a/b"}]}, "'a/b' cannot be a plan's folder"),
        ({"methods": [{"method": "less", "data": ["x"]}]}, "methods has 'data', which the bench decides"),
        ({"methods": [{"method": "less", "settings": {"adm": 1}}]}, "did you mean 'adam'"),
        ({"train": {"budget": {}}}, "train has 'budget', which the bench decides"),
        ({"train": {"trainng": {}}}, "did you mean 'training'"),
        ({"budget": {"num_samples": 5}}, "a number of samples"),
        ({"budget": {"fraction": 0.1, "unit": "samples"}}, "a number of samples"),
        ({"target_groups": []}, "target_groups is empty"),
        ({"seeds": 0}, "seeds is 0"),
        ({"sede": 0}, "did you mean 'seeds'"),
    ],
)
def test_a_wrong_recipe_is_refused_when_it_is_read(
    finished: tuple[Path, dict[str, Any]], changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        build_bench(recipe(finished[0], **changes))


def test_what_cannot_work_is_refused_before_a_model_is_loaded(finished: tuple[Path, dict[str, Any]], work: Work) -> None:
    root, before = finished[0], tree(finished[0] / "bench")
    for changes, match in (
        ({"target_groups": ["sya"]}, "no group of the evaluation data; did you mean 'say'"),
        ({"methods": ["less", "nice"]}, "'nice' needs a reward"),
        ({"evaluate": {"data": ["absent.jsonl"]}}, "absent.jsonl"),
    ):
        with pytest.raises(FlextoolsError, match=match):
            bench_select(build_bench(recipe(root, **changes)))
    assert work.is_none
    assert tree(root / "bench") == before


def test_a_plan_that_cannot_fill_the_budget_is_refused_before_a_training(
    finished: tuple[Path, dict[str, Any]], work: Work
) -> None:
    few = {"method": "semdedup", "name": "few", "settings": {"eps": 1.0, "rows_per_cluster": 60}}
    with pytest.raises(ConfigError, match=r"artifacts/few lets .* lower budget\.fraction"):
        bench_select(build_bench(recipe(finished[0], methods=[few], budget={"fraction": 0.9})))
    assert work.num_trainings == 0


def test_evaluation_rows_that_are_in_the_pool_are_noted(finished: tuple[Path, dict[str, Any]]) -> None:
    from dataflex_tools.stages.bench_select import check

    root = finished[0]
    held_out = [f"say={root / 'heldout.jsonl'}", f"count={root / 'count.jsonl'}"]
    (note,) = check(build_bench(recipe(root, evaluate={"data": held_out})), root / "artifacts" / "cache")
    assert note.startswith("30 of 38 evaluation rows are pool rows too")
