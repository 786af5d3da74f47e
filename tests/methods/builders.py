"""Small signals for the tests of methods."""

import numpy as np

from dataflex_tools.core.signals import ArrayRows, Samples, Signals

# C checkpoints, N pool samples, M target samples, D features


def samples(num, group=None, has_labels=None) -> Samples:
    group_N = np.zeros(num, int) if group is None else np.asarray(group)
    names = tuple(f"task{g}" for g in range(group_N.max() + 1))
    return Samples(np.full(num, 10), np.ones(num, bool) if has_labels is None else np.asarray(has_labels), group_N, names)


def vectors(kinds, train_CND, target_CMD, group_M, weight_C=(1.0,), has_labels_N=None) -> Signals:
    """Signals of vectors; `kinds`: that of the pool and that of the target."""
    rows = {
        (kinds[0], "pool"): [ArrayRows(np.asarray(x, float)) for x in train_CND],
        (kinds[1], "target"): [ArrayRows(np.asarray(x, float)) for x in target_CMD],
    }
    pool = samples(len(train_CND[0]), has_labels=has_labels_N)
    return Signals(pool, samples(len(group_M), group_M), rows, checkpoint_weight_C=np.asarray(weight_C))


def losses(has_labels_N=None, **loss_CN) -> Signals:
    """Signals of numbers; each keyword is a kind with one array of losses per checkpoint."""
    columns = {(kind, "pool"): [{"loss": np.asarray(x, float)} for x in arrays] for kind, arrays in loss_CN.items()}
    num = len(next(iter(columns.values()))[0]["loss"])
    return Signals(samples(num, has_labels=has_labels_N), columns=columns)


def cosine(a, b) -> float:
    """Cosine in loops, 0 for a zero vector."""
    length = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0
