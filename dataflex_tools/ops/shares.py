"""Domain shares that mixers start from: the natural ones, tempered ones, and an order of domains that no listing changes."""

from collections.abc import Sequence

import numpy as np

from dataflex_tools.core.mixing import Domains

# K domains

UNITS = ("tokens", "rows")


def natural_shares(domains: Domains, unit: str = "tokens") -> np.ndarray:
    """Share of each domain in all tokens or rows, (K,) float64; sums to 1. `unit`: one of UNITS."""
    return domains.share_K if unit == "tokens" else np.asarray(domains.num_rows_K / domains.num_rows_K.sum())


def tempered(share_K: np.ndarray, exponent: float) -> np.ndarray:
    """share ** exponent, scaled to sum to 1, (K,); 1 leaves positive shares as they are, 0 makes them equal."""
    # of logarithms, so that a large exponent neither over- nor underflows all of them
    log_K = exponent * np.log(share_K)
    raised_K = np.exp(log_K - log_K.max())
    return np.asarray(raised_K / raised_K.sum())


def by_name(names: Sequence[str]) -> np.ndarray:
    """Places of the domains in the order of their names, (K,) int64.

    What is drawn in this order belongs to a name, whatever order the sources were given in.
    """
    return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
