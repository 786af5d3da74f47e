import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.errors import ArtifactError, ConfigError, DataError
from dataflex_tools.stages.config import build
from dataflex_tools.stages.score import score
from tests import tiny
from tests.stages.conftest import Work

# the same rows in batches of other sizes: float32 rounding, seen through float16 storage
ROUNDING = {"rtol": 0, "atol": 1e-5}


def scored_with(root: Path, **changes: Any) -> dict[str, Any]:
    return score(build("score", tiny.score_config(root, **changes)))


def test_the_same_score_again_loads_no_model_and_returns_the_same_digest(project: Path, work: Work) -> None:
    before = read_manifest(project / "artifacts" / "less")
    assert scored_with(project) == before
    assert work.is_none


def test_another_out_reuses_every_signal_and_gives_the_same_scores(project: Path, work: Work) -> None:
    scored_with(project, out=str(project / "artifacts" / "again"))
    assert work.is_none
    first, second = (project / "artifacts" / name / "scores.parquet" for name in ("less", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_digest_does_not_depend_on_the_folder(project: Path) -> None:
    digests = [scored_with(project, out=str(project / "artifacts" / name))["digest"] for name in ("b", "c")]
    assert digests[0] == digests[1]


def test_another_target_costs_the_gradients_of_the_target_only(project: Path, work: Work) -> None:
    target = tiny.write_jsonl(project / "other.jsonl", tiny.records(5, seed=9, kind="count"))
    scored_with(project, target=[str(target)], out=str(project / "artifacts" / "other"))
    assert work.gradients == {"target": [5, 5]}
    assert work.num_trainings == 0
    assert work.num_loads == 2  # once per checkpoint


def test_an_appended_record_costs_one_gradient_per_checkpoint(project: Path, work: Work) -> None:
    before = load_plan(project / "artifacts" / "less")
    with (project / "pool.jsonl").open("a") as handle:
        handle.write(json.dumps(tiny.records(1, seed=77, kind="count")[0]) + "\n")
    scored_with(project, out=str(project / "artifacts" / "longer"))
    assert work.gradients == {"pool": [1, 1]}
    assert work.num_trainings == 0
    after = load_plan(project / "artifacts" / "longer")
    np.testing.assert_array_equal(after.ids_N16[:-1], before.ids_N16)
    np.testing.assert_allclose(after.score_N[:-1], before.score_N, **ROUNDING)


def test_an_appended_duplicate_costs_nothing_and_scores_alike(project: Path, work: Work) -> None:
    lines = (project / "pool.jsonl").read_text().splitlines()
    (project / "pool.jsonl").write_text("\n".join([*lines, lines[7]]) + "\n")
    scored_with(project, out=str(project / "artifacts" / "longer"))
    assert work.is_none
    after = load_plan(project / "artifacts" / "longer")
    assert after.score_N[-1] == after.score_N[7]


def test_a_reordered_pool_costs_nothing_and_keeps_the_scores(project: Path, work: Work) -> None:
    before = load_plan(project / "artifacts" / "less")
    lines = (project / "pool.jsonl").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    (project / "pool.jsonl").write_text("".join(lines[i] + "\n" for i in order))
    scored_with(project, out=str(project / "artifacts" / "mixed"), warmup=_no_growth(project))
    assert work.is_none
    after = load_plan(project / "artifacts" / "mixed")
    np.testing.assert_array_equal(after.ids_N16, before.ids_N16[order])
    np.testing.assert_allclose(after.score_N, before.score_N[order], **ROUNDING)


def test_a_subset_of_the_pool_costs_nothing(project: Path, work: Work) -> None:
    kept = _without_rows_outside_the_warmup(project, 4)
    scored_with(project, out=str(project / "artifacts" / "part"))
    assert work.is_none
    assert len(load_plan(project / "artifacts" / "part")) == kept


def test_growth_beyond_the_limit_trains_a_new_warmup(project: Path, work: Work) -> None:
    with (project / "pool.jsonl").open("a") as handle:
        handle.writelines(json.dumps(record) + "\n" for record in tiny.records(10, seed=77, kind="count"))
    scored_with(project, out=str(project / "artifacts" / "fresh"))  # 10 of 60 rows more, 10 % allowed
    assert work.num_trainings == 1
    assert work.gradients == {"pool": [70, 70], "target": [6, 6]}


def test_the_warmup_is_the_same_artifact_whatever_it_is_made_for(scored: Path, tmp_path: Path) -> None:
    target = tiny.write_jsonl(tmp_path / "t.jsonl", tiny.records(3, seed=5))
    scored_with(scored, target=[str(target)], out=str(tmp_path / "elsewhere" / "name"))
    manifests = [
        read_manifest(next((root / "models").glob("warmup-*"))) for root in (scored / "artifacts", tmp_path / "elsewhere")
    ]
    assert manifests[0]["digest"] == manifests[1]["digest"]


def test_everything_that_score_writes_verifies(scored: Path) -> None:
    root = scored / "artifacts"
    folders = [root / "less", *(root / "signals").glob("[!.]*"), *(root / "models").glob("[!.]*")]
    assert len(folders) == 6
    assert [verify_artifact(folder) for folder in folders] == [[]] * 6


def test_parents_of_a_plan_are_its_warmup_and_its_signals(scored: Path) -> None:
    root = scored / "artifacts"
    parents = read_manifest(root / "less")["parents"]
    assert len(parents) == 5
    assert all(read_manifest(root / parent["path"])["digest"] == parent["digest"] for parent in parents)


def test_another_plan_in_out_is_refused_before_any_work_and_replaced_on_request(project: Path, work: Work) -> None:
    before = (project / "artifacts" / "less" / "manifest.json").read_bytes()
    target = tiny.write_jsonl(project / "other.jsonl", tiny.records(5, seed=9))
    config = build("score", tiny.score_config(project, target=[str(target)]))
    with pytest.raises(ArtifactError, match="--overwrite"):
        score(config)
    assert work.is_none
    assert (project / "artifacts" / "less" / "manifest.json").read_bytes() == before
    score(config, overwrite=True)
    assert (project / "artifacts" / "less" / "manifest.json").read_bytes() != before
    assert [path.name for path in (project / "artifacts").glob(".*")] == [".less.lock"]


@pytest.mark.parametrize("leftover", [".less.99.tmp", ".less.99.old"])
def test_what_a_killed_writer_left_beside_the_plan_goes_away(project: Path, leftover: str) -> None:
    for name in (leftover, ".less.v2.99.tmp"):
        (project / "artifacts" / name).mkdir()
        (project / "artifacts" / name / "scores.parquet").write_bytes(b"half")
    target = tiny.write_jsonl(project / "other.jsonl", tiny.records(5, seed=9))
    score(build("score", tiny.score_config(project, target=[str(target)])), overwrite=True)
    left = sorted(path.name for path in (project / "artifacts").glob(".*"))
    assert left == [".less.lock", ".less.v2.99.tmp"]  # another plan's: not ours


def test_target_rows_can_be_left_out_of_the_pool_also_for_a_control(project: Path) -> None:
    pool = (project / "pool.jsonl").read_text().splitlines()
    target = project / "overlapping.jsonl"
    target.write_text("".join(pool[i] + "\n" for i in (3, 40)))
    common = {"target": [str(target)], "drop_overlap": True}
    less = scored_with(project, **common, out=str(project / "artifacts" / "clean"))
    control = scored_with(project, **common, method="random", out=str(project / "artifacts" / "random"))
    matched = scored_with(
        project, **common, method="random_length_matched", reference=str(project / "artifacts" / "clean"),
        out=str(project / "artifacts" / "matched"),
    )  # fmt: skip
    fingerprints = {manifest["corpus"]["fingerprint"] for manifest in (less, control, matched)}
    assert len(fingerprints) == 1
    rows = pq.read_table(project / "artifacts" / "random" / "scores.parquet")
    assert rows.num_rows == len(pool) - 2


def test_leaving_out_target_rows_without_a_target_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="no effect"):
        build("score", {**tiny.score_config(project, method="random", drop_overlap=True), "target": []})


def _no_growth(project: Path) -> dict[str, Any]:
    warmup = tiny.score_config(project)["warmup"]
    assert isinstance(warmup, dict)
    return {**warmup, "max_growth": 0}


def _without_rows_outside_the_warmup(project: Path, count: int) -> int:
    """Remove `count` lines that the warm-up was not trained on; the number of lines kept."""
    samples = pq.read_table(next((project / "artifacts" / "models").glob("warmup-*")) / "samples.parquet")
    trained = set(samples["row"].to_pylist())
    lines = (project / "pool.jsonl").read_text().splitlines()
    removed = [i for i in range(len(lines)) if i not in trained][:count]
    kept = [line for i, line in enumerate(lines) if i not in removed]
    (project / "pool.jsonl").write_text("\n".join(kept) + "\n")
    return len(kept)


def test_target_rows_without_a_label_are_left_out_where_they_may_be(project: Path) -> None:
    asked = {"role": "user", "content": "red"}
    answered = {"role": "assistant", "content": "blue"}
    records = [{"messages": [asked, answered, asked, {**answered, "weight": 0}]}, {"messages": [asked, answered]}]
    target = tiny.write_jsonl(project / "marked.jsonl", records)
    changes = {"render": {"cutoff_len": 64, "mask_history": True}, "method": "near", "warmup": {}, "gradient": {}}
    with pytest.raises(DataError, match="1 of 2 target rows have no answer token"):
        scored_with(project, target=[str(target)], out=str(project / "artifacts" / "near"), **changes)
    spec = {"path": str(target), "skip_bad": True}
    manifest = scored_with(project, target=[spec], out=str(project / "artifacts" / "near"), **changes)
    assert manifest["config"]["render"]["mask_history"]
    assert manifest["tokenizer"]["mask_history"]


def test_a_setting_that_is_off_is_not_recorded(project: Path) -> None:
    # what was recorded before it existed keeps its address
    manifest = read_manifest(project / "artifacts" / "less")
    assert "mask_history" not in manifest["config"]["render"]
    assert "mask_history" not in manifest["tokenizer"]
