"""Speed, memory and accuracy of the mixture sampler from 1e4 to 1e9 rows: `python benchmarks/mixture_sampler.py`.

Each corpus size runs in a process of its own, since a peak never falls. Beside the sampler stands the obvious way, which
draws a domain and then a row of it: no epochs, no seek, multinomial noise. See benchmarks/README.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

NUM_DOMAINS, BATCH, READ = 20, 1024, 200  # READ: batches per measurement
REPEATS = 5
ROOT = str(Path(__file__).parent.parent)


def peak() -> float:
    """Peak resident memory of this process so far, MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1024 if sys.platform != "darwin" else used / 2**20


def rate(read: Callable[[int], np.ndarray], starts: list[int]) -> float:
    """Rows per second of processor time, which work beside it disturbs less, of batches that begin at `starts`."""
    begin = time.process_time()
    for start in starts:
        read(start)
    return len(starts) * BATCH / (time.process_time() - begin)


def largest_error(code_L: np.ndarray, weight_K: np.ndarray) -> float:
    """Samples that any domain was ever off its share."""
    position_L = np.arange(1, len(code_L) + 1)
    return max(float(np.abs(np.cumsum(code_L == k) - position_L * weight).max()) for k, weight in enumerate(weight_K))


def measure(num_rows: int, read: int) -> dict[str, float]:
    """Rows per second of both, in turns, and what the sampler adds to this process's peak, MiB."""
    from dataflex_tools.sampler.mixture_sampler import MixtureSampler

    rng = np.random.default_rng(0)
    weight_K = rng.dirichlet(np.ones(NUM_DOMAINS))
    size_K = np.maximum(rng.dirichlet(np.ones(NUM_DOMAINS)) * num_rows, 1).astype(np.int64)
    first_K = np.cumsum(size_K) - size_K
    before = peak()
    ranges = [range(first, first + size) for first, size in zip(first_K.tolist(), size_K.tolist(), strict=True)]
    sampler = MixtureSampler(ranges, (np.zeros(1, dtype=np.int64), weight_K[None]), seed=0)

    def ours(start: int) -> np.ndarray:
        return sampler.rows_at(start, start + BATCH)

    def obvious(start: int) -> np.ndarray:
        code_B = rng.choice(NUM_DOMAINS, size=BATCH, p=weight_K)
        return np.asarray(first_K[code_B] + rng.integers(size_K[code_B]))

    rates = []
    for _ in range(REPEATS):
        starts = rng.integers(0, 10 * num_rows, read).tolist()  # in ten epochs
        rates.append((rate(ours, starts), rate(obvious, starts)))
    added = peak() - before
    found = {
        "rows": num_rows,
        "ours": median(a for a, _ in rates),
        "obvious": median(b for _, b in rates),
        "ratio": median(b / a for a, b in rates),
        "added": added,
        "off": largest_error(sampler.domains_at(0, 100_000), weight_K),
        "obvious off": largest_error(rng.choice(NUM_DOMAINS, size=100_000, p=weight_K), weight_K),
    }
    far = rng.integers(10**12, 10**13, read).tolist()
    return {**found, "far": rate(ours, far)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smoke run: two sizes, few batches")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.path.insert(0, ROOT)
        print(json.dumps(measure(*given.child)))
        return
    sizes, read = ([10**4, 10**6], 10) if given.quick else ([10**n for n in range(4, 10)], READ)
    print(f"{NUM_DOMAINS} domains, batches of {BATCH} rows at random positions of ten epochs; rows per CPU second")
    names = ("rows", "sampler", "at 1e12", "obvious", "ratio", "added MiB", "off by", "obvious")
    print("{:>13} {:>10} {:>10} {:>11} {:>6} {:>10} {:>7} {:>8}".format(*names))
    for size in sizes:
        command = [sys.executable, __file__, "--child", str(size), str(read)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        print(
            f"{found['rows']:13,} {found['ours']:10,.0f} {found['far']:10,.0f} {found['obvious']:11,.0f} "
            f"{found['ratio']:6.1f} {found['added']:10.1f} {found['off']:7.2f} {found['obvious off']:8.0f}"
        )


if __name__ == "__main__":
    main()
