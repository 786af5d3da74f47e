"""Peak memory of `flextools score` with LESS for a small and a ten times larger pool: `python benchmarks/memory.py`.

Each pool is scored in a process of its own: ingest, tokens, warm-up, gradients at D=8192, selection, plan. The model is
tiny, so that what grows with the pool shows. See benchmarks/README.md.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

DIM, MIB = 8192, 2**20
WARMUP_ROWS = 64  # the same for every pool


def make_inputs(num_rows: int, root: Path) -> None:
    """A tiny model, a pool of `num_rows` made-up records and a target under `root`."""
    from tests import tiny

    tiny.make_model(root / "model")
    rows = [{**row, "instruction": f"{row['instruction']} {i}"} for i, row in enumerate(tiny.records(num_rows))]
    tiny.write_jsonl(root / "pool.jsonl", rows)
    tiny.write_jsonl(root / "target.jsonl", tiny.records(32, seed=1, kind="say"))


def score_once(num_rows: int, root: Path) -> None:
    """Score the pool and print this process's peak."""
    from dataflex_tools.stages.config import build
    from dataflex_tools.stages.score import score
    from tests import tiny

    training = {"num_train_epochs": 1, "learning_rate": 1e-3, "global_batch_size": 8}
    warmup = {"fraction": WARMUP_ROWS / num_rows, "training": training}
    start = time.perf_counter()
    manifest = score(build("score", tiny.score_config(root, gradient={"dim": DIM}, warmup=warmup)))
    stored = sum(file.stat().st_size for file in (root / "artifacts" / "signals").rglob("*.parquet"))
    result = {"rows": manifest["stats"]["rows"], "peak": peak(), "stored": stored / MIB}
    print(json.dumps({**result, "seconds": time.perf_counter() - start}))


def peak() -> float:
    """Peak resident memory of this process so far, MiB."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024 if sys.platform != "darwin" else kib / MIB


def in_child(step: str, num_rows: int, root: Path) -> str:
    """What the step prints, run in a process of its own: a peak never falls, so each needs a fresh one."""
    command = [sys.executable, __file__, "--child", step, str(num_rows), str(root)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(num_rows: int) -> list[dict[str, float]]:
    """The whole chain on an empty folder, then gradients and selection alone, with tokens and warm-up kept."""
    with TemporaryDirectory(prefix="flextools-bench-") as folder:
        in_child("inputs", num_rows, Path(folder))
        whole = in_child("score", num_rows, Path(folder))
        for name in ("signals", "less"):
            shutil.rmtree(Path(folder) / "artifacts" / name)
        again = in_child("score", num_rows, Path(folder))
    return [json.loads(out.splitlines()[-1]) for out in (whole, again)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs=2, default=(1000, 10000), metavar=("SMALL", "LARGE"))
    parser.add_argument("--quick", action="store_true", help="smoke run: 200 and 1,000 rows")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.path.insert(0, str(Path(__file__).parent.parent))
        step, num_rows, root = given.child
        {"inputs": make_inputs, "score": score_once}[step](int(num_rows), Path(root))
        return
    results = [measure(num_rows) for num_rows in ((200, 1000) if given.quick else given.rows)]
    print(f"{'what':24} {'samples':>8} {'N x D fp16 MiB':>15} {'stored MiB':>11} {'peak MiB':>9} {'seconds':>8}")
    growths = []
    for name, small, large in zip(("whole chain", "gradients + selection"), *results, strict=True):
        for result in (small, large):
            matrix = result["rows"] * DIM * 2 / MIB
            print(f"{name:24} {result['rows']:8,} {matrix:15.0f} {result['stored']:11.0f} {result['peak']:9.0f} "
                  f"{result['seconds']:8.0f}")  # fmt: skip
        matrix = (large["rows"] - small["rows"]) * DIM * 2 / MIB
        growth = large["peak"] - small["peak"]
        growths.append(f"{name}: peak grows by {growth:.0f} MiB, the matrix by {matrix:.0f} MiB ({growth / matrix:.2f})")
    print("\n" + "\n".join(growths))


if __name__ == "__main__":
    main()
