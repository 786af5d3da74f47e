"""The demo: LESS 5 % against two random controls, on real text: `python pipelines/demo/run.py --size small|real`.

Builds the pool and the model, scores once, then trains every arm at an equal number of tokens with several seeds, and
prints one table. Everything is done by the stages of pipelines/less.yaml; only paths and sizes are set here. What exists
is not made again.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.config import apply_overrides, load_yaml
from dataflex_tools.core.errors import FlextoolsError
from dataflex_tools.report.tables import table

HERE = Path(__file__).parent
RECIPE = HERE.parent / "less.yaml"
WORK = Path(".demo")
FRACTION = 0.05
ARMS = {"less": "LESS 5 %", "random": "random 5 %", "random_length_matched": "length-matched random 5 %"}

logger = logging.getLogger("flextools.demo")


@dataclass(frozen=True)
class Size:
    """One size of the demo: how its inputs are made and which settings of the recipe it changes."""

    pool: str
    model: str
    changes: tuple[str, ...] = ()


SIZES = {
    "small": Size(pool="fast", model="pretrain.py"),
    "real": Size(
        pool="real",
        model="smollm2.py",
        changes=(
            "common.model.dtype=bfloat16",
            "stages.score.warmup.fraction=0.1",
            "stages.score.warmup.training.num_train_epochs=2",
            "stages.score.warmup.training.learning_rate=2e-4",
            "stages.score.warmup.training.global_batch_size=8",
            "stages.train.training.learning_rate=2e-4",
            "stages.train.training.global_batch_size=4",
        ),
    ),
}


def make_inputs(name: str, folder: Path) -> None:
    """Pool, target, held-out items and model under `folder`, by the scripts beside this one."""
    cache = ["--cache", str(WORK / "wheels")]
    if not (folder / "summary.json").exists():
        run_script("pool.py", "--out", str(folder), "--size", SIZES[name].pool, *cache)
    if not (folder / "model" / "tokenizer.json").exists():  # the file that is written last
        script = SIZES[name].model
        run_script(script, "--out", str(folder / "model"), *(cache if script == "smollm2.py" else []))


def run_script(script: str, *arguments: str) -> None:
    """Run one of the scripts beside this file; its error, already on the screen, ends the demo."""
    if code := subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode:
        sys.exit(code)


def recipe(name: str, folder: Path) -> dict[str, Any]:
    """The recipe with this size's files and settings."""
    values = apply_overrides(load_yaml(RECIPE), SIZES[name].changes)
    values["common"]["model"]["path"] = str(folder / "model")
    values["common"]["data"] = [str(path) for path in sorted((folder / "pool").glob("*.jsonl"))]
    target = sorted((folder / "target").glob("*.jsonl"))
    values["stages"]["score"]["target"] = [{"path": str(path), "subtask_column": "subtask"} for path in target]
    values["stages"]["evaluate"]["data"] = [str(path) for path in sorted((folder / "heldout").glob("*.jsonl"))]
    return values


def settings(values: Mapping[str, Any], stage: str, **changes: Any) -> Any:
    """The checked settings of one stage of the recipe."""
    from dataflex_tools.stages.config import STAGES, build

    known = STAGES[stage].__dataclass_fields__
    common = {key: item for key, item in values["common"].items() if key in known}
    own = {key: item for key, item in values["stages"][stage].items() if key != "stage"}
    return build(stage, {**common, **own, **changes})


def score_arm(values: Mapping[str, Any], arm: str, seed: int, artifacts: Path) -> Path:
    """The arm's plan; LESS is scored once, the controls are drawn anew for each seed."""
    from dataflex_tools.stages.score import score

    if arm == "less":
        score(settings(values, "score", out=str(artifacts / "less")))
        return artifacts / "less"
    out = artifacts / f"{arm}-{seed}"
    reference = {"reference": str(artifacts / "less")} if arm == "random_length_matched" else {}
    score(settings(values, "score", method=arm, target=[], seed=seed, out=str(out), **reference))
    return out


def run_arm(values: Mapping[str, Any], plan: Path, seed: int, folder: Path, target_kind: str) -> dict[str, float]:
    """Train on the plan's best 5 % of tokens, evaluate, and sum up in the units of the table."""
    from dataflex_tools.stages.evaluate import evaluate
    from dataflex_tools.stages.train import train

    start = time.perf_counter()
    out = folder / "runs" / f"{plan.name}-seed{seed}" if plan.name == "less" else folder / "runs" / plan.name
    training = {**values["stages"]["train"]["training"], "seed": seed}
    budget = {"fraction": FRACTION, "unit": "tokens"}
    manifest = train(settings(values, "train", artifacts=[str(plan)], out=str(out), budget=budget, training=training))
    seconds = time.perf_counter() - start
    losses = evaluate(settings(values, "evaluate", run=str(out)))["groups"]
    others = [group for kind, group in losses.items() if kind != target_kind]
    return {
        "target loss": losses[target_kind]["loss"],
        "held-out loss": sum(g["loss"] * g["tokens"] for g in others) / sum(g["tokens"] for g in others),
        "target share": target_share(plan, target_kind),
        "samples": manifest["stats"]["selected_rows"],
        "tokens": manifest["stats"]["selected_tokens"],
        "steps": manifest["stats"]["steps"],
        "seconds": seconds,
    }


def target_share(plan_folder: Path, target_kind: str) -> float:
    """Share of the target's kind among the rows that the budget takes."""
    from dataflex_tools.core.plan import Budget, select_rows

    plan = load_plan(plan_folder)
    rows = select_rows(plan.score_N, plan.num_tokens_N, Budget(fraction=FRACTION, unit="tokens"))
    return float((plan.domain_N[rows] == plan.domain_names.index(target_kind)).mean())


def results_table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Mean and standard deviation over seeds, a row per arm."""

    def cell(rows: Sequence[Mapping[str, float]], name: str, pattern: str) -> str:
        found = [row[name] for row in rows]
        spread = f" +- {statistics.stdev(found):{pattern}}" if len(found) > 1 and len(set(found)) > 1 else ""
        return f"{statistics.mean(found):{pattern}}{spread}"

    patterns = {"target loss": ".3f", "held-out loss": ".3f", "target share": ".0%"}
    patterns |= {"samples": ",.0f", "tokens": ",.0f", "steps": ".0f", "seconds": ".0f"}
    lines = [[ARMS[arm], *(cell(rows, name, p) for name, p in patterns.items())] for arm, rows in results.items()]
    return table(["trained on", *patterns], lines, right=list(patterns))


def run(name: str, seeds: int) -> None:
    """The whole demo of one size."""
    start, folder = time.perf_counter(), WORK / name
    make_inputs(name, folder)
    logger.info("inputs ready after %.0f s", time.perf_counter() - start)
    values, artifacts = recipe(name, folder), folder / "artifacts"
    target_kind = next((folder / "target").glob("*.jsonl")).stem
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(seeds):
        for arm in ARMS:
            plan = score_arm(values, arm, seed, artifacts)
            results[arm].append(run_arm(values, plan, seed, folder, target_kind))
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    whole = load_plan(artifacts / "less")
    share = (whole.domain_N == whole.domain_names.index(target_kind)).mean()
    print(f"\npool: {len(whole):,} real instruction items, {share:.0%} of them {target_kind}; target: {target_kind}")
    print(f"mean +- standard deviation over {seeds} seeds; losses in nats per answer token on items nobody trained on\n")
    print(results_table(results))
    print(f"\nartifact: {artifacts / 'less'}   look at it: flextools inspect {artifacts / 'less'}")
    print(f"{time.perf_counter() - start:.0f} s in all, set-up not counted")


def main() -> None:
    """Parse arguments and run; a user's error is one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds per arm")
    parser.add_argument("--inputs-only", action="store_true", help="build pool and model, then stop")
    given = parser.parse_args()
    from dataflex_tools.cli import start_logging

    start_logging()
    try:
        if given.inputs_only:
            make_inputs(given.size, WORK / given.size)
        else:
            run(given.size, given.seeds)
    except FlextoolsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
