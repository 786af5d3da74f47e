"""Random draws without replacement that hold at every budget: one score per row, of which any number of best is taken.

Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", Information Processing Letters 97 [recall]: the k
largest keys u^(1/w) are a draw of k rows, one after the other with probabilities proportional to the weights that are
left. The keys are kept as -log(-log u^(1/w)) = log w + Gumbel noise, which orders the rows alike and does not underflow.
"""

import numpy as np

from dataflex_tools.core.errors import DataError

# N rows


def draw_scores(weight_N: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Scores (N,) float64 whose k best rows are a draw of k rows with probabilities proportional to `weight_N`, any k.

    Rows of weight 0 get -inf. One number of `rng` is used per row, whatever the weights. Raises DataError if no weight is
    positive.
    """
    weight_N = np.asarray(weight_N, dtype=np.float64)
    if not (np.isfinite(weight_N).all() and (weight_N >= 0).all()):
        raise ValueError("draw_scores: a weight is negative or not finite")
    if not (weight_N > 0).any():
        raise DataError(f"none of {len(weight_N):,} rows can be drawn: all their probabilities are 0")
    log_N = np.log(weight_N, out=np.full(len(weight_N), -np.inf), where=weight_N > 0)
    return np.asarray(log_N + rng.gumbel(size=len(weight_N)))
