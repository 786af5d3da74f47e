"""Selection from a large stored signal: time against a plain read of the same files, and peak memory.

`python benchmarks/selection.py`: writes 1,000,000 x 1,024 float16 gradient features (2 GB) and 64 target rows into a
temporary folder with the store that scoring writes with, then reads them plainly and lets LESS select, each in a process
of its own, in turn.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

DIM, NUM_TARGET, PART = 1024, 64, 2**16
POOL = {"kind": "gradient", "side": "pool"}
TARGET = {"kind": "gradient", "side": "target"}


def ids(count: int, first: int = 0) -> np.ndarray:
    """(count, 16) made-up sample ids, all different."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return np.ascontiguousarray(np.stack([numbers, numbers * np.uint64(0x9E3779B97F4A7C15)], axis=1)).view(np.uint8)


def open_store(root: Path, spec: dict[str, str]):
    """The signal's store."""
    from dataflex_tools.artifact.signal import SignalStore, signal_folder, vector_columns

    return SignalStore(signal_folder(root, spec), spec, vector_columns(DIM, "float16"))


def write(root: Path, num_rows: int) -> None:
    """Both signals, part by part."""
    rng = np.random.default_rng(0)
    for spec, count in ((POOL, num_rows), (TARGET, NUM_TARGET)):
        store, ids_N16 = open_store(root, spec), ids(count)
        for number, where in store.plan_parts(ids_N16, PART):
            size = len(ids_N16[where])
            value = rng.standard_normal((size, DIM), dtype=np.float32)
            value /= np.linalg.norm(value, axis=1, keepdims=True)
            columns = {
                "num_tokens": np.ones(size, np.int32),
                "norm": np.ones(size, np.float32),
                "value": value.astype(np.float16),
            }
            store.write_part(number, ids_N16[where], columns)


def read(root: Path, num_rows: int) -> float:
    """Every row group of every part, decoded by pyarrow and dropped; seconds."""
    import pyarrow.parquet as pq

    paths = sorted(open_store(root, POOL).folder.glob("part-*.parquet"))
    start = time.perf_counter()
    for path in paths:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.metadata.num_row_groups):
                file.read_row_group(group)
    return time.perf_counter() - start


def select(root: Path, num_rows: int) -> float:
    """LESS on the stored features: open, join by id, score, order; seconds."""
    from dataflex_tools.core.plan import stable_order
    from dataflex_tools.core.signals import Samples, Signals
    from dataflex_tools.methods.less import Less, LessSettings

    ids_N16, ids_M16 = ids(num_rows), ids(NUM_TARGET)
    start = time.perf_counter()
    rows = {("gradient", "pool"): [open_store(root, POOL).rows(ids_N16)],
            ("gradient", "target"): [open_store(root, TARGET).rows(ids_M16)]}  # fmt: skip
    pool = Samples(np.ones(num_rows, np.int32), np.ones(num_rows, bool), np.zeros(num_rows, np.int32), ("pool",))
    target = Samples(np.ones(NUM_TARGET, np.int32), np.ones(NUM_TARGET, bool), np.zeros(NUM_TARGET, np.int32), ("target",))
    signals = Signals(pool=pool, target=target, rows=rows)
    stable_order(Less(LessSettings()).select(signals, rng=np.random.default_rng(0)).score_N)
    return time.perf_counter() - start


def in_child(step: str, root: Path, num_rows: int) -> dict[str, float]:
    """The step in a process of its own."""
    command = [sys.executable, __file__, "--child", step, str(root), "--rows", str(num_rows)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        step, root = given.child
        seconds = {"read": read, "select": select}[step](Path(root), given.rows)
        print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    with TemporaryDirectory(prefix="flextools-bench-") as folder:
        write(Path(folder), given.rows)
        runs = [{step: in_child(step, Path(folder), given.rows) for step in ("read", "select")} for _ in range(given.repeat)]
    print(f"{given.rows:,} x {DIM:,} float16 and {NUM_TARGET} target rows, medians of {given.repeat}")
    for step in ("read", "select"):
        seconds = statistics.median(run[step]["seconds"] for run in runs)
        print(f"{step:8} {seconds:7.2f} s  peak {max(run[step]['peak'] for run in runs):7.0f} MiB")
    ratios = sorted(run["select"]["seconds"] / run["read"]["seconds"] for run in runs)
    print(f"select / read: {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
