"""The demo: LESS 5 % against two random controls, on real text: `python pipelines/demo/run.py --size small|real`.

Builds the pool and the model, scores once, then trains every arm at an equal number of tokens with several seeds, and
prints one table. The comparison is that of `flextools bench-select` with the stages of pipelines/less.yaml; only paths and
sizes are set here. What exists is not made again.
"""

import argparse
import logging
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
from dataflex_tools.report.bench import cell
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


def bench(name: str, folder: Path, seeds: int) -> Any:
    """The recipe's score, train and evaluate stages as a comparison with both controls."""
    from dataflex_tools.stages.bench_select import build_bench

    values = recipe(name, folder)
    score, train, evaluate = (values["stages"][stage] for stage in ("score", "train", "evaluate"))
    return build_bench(
        {
            "common": values["common"] | {key: score[key] for key in score if key not in ("stage", "method", "out")},
            "methods": [score["method"]],
            "train": {"training": train["training"]},
            "evaluate": {"data": evaluate["data"]},
            "target_groups": [path.stem for path in (folder / "target").glob("*.jsonl")],
            "budget": {"fraction": FRACTION},
            "seeds": seeds,
            "out": str(folder),
        }
    )


def results_table(arms: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds, a row per arm."""
    patterns = {"target loss": ".3f", "other loss": ".3f", "target share": ".0%"}
    patterns |= {"samples": ",.0f", "tokens": ",.0f", "steps": ".0f", "seconds": ".0f"}
    lines = [[ARMS[arm["name"]], *(cell(arm[title.replace(" ", "_")], p) for title, p in patterns.items())] for arm in arms]
    titles = [title.replace("other", "held-out") for title in patterns]
    return table(["trained on", *titles], lines, right=titles)


def run(name: str, seeds: int) -> None:
    """The whole demo of one size."""
    from dataflex_tools.stages.bench_select import bench_select

    start, folder = time.perf_counter(), WORK / name
    make_inputs(name, folder)
    logger.info("inputs ready after %.0f s", time.perf_counter() - start)
    comparison = bench(name, folder, seeds)
    result = bench_select(comparison)
    (target_kind,), less = comparison.config.target_groups, comparison.root / "less"
    whole = load_plan(less)
    share = (whole.domain_N == whole.domain_names.index(target_kind)).mean()
    print(f"\npool: {len(whole):,} real instruction items, {share:.0%} of them {target_kind}; target: {target_kind}")
    print(f"mean +- standard deviation over {seeds} seeds; losses in nats per answer token on items nobody trained on\n")
    print(results_table(result["arms"]))
    print(f"\nartifact: {less}   look at it: flextools inspect {less}")
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
