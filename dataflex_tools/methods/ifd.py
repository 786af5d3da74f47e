"""IFD: take the samples whose prompt helps the model least to predict the answer, as long as it helps at all.

Li, Zhang, Li, Chen, Chen, Cheng, Wang, Zhou, Xiao 2023, "From Quantity to Quality: Boosting LLM Performance with Self-Guided
Data Selection for Instruction Tuning", https://arxiv.org/abs/2308.12032 [note]: IFD = s(A|Q) / s(A), the mean token loss of
the answer given the prompt over that of the answer alone. Read: cherry_seletion/data_by_IFD.py of the authors' repository
(tianyi-lab/Cherry_LLM, commit 6c200ba); checked by the numbers of tests/vectors/ifd.json, computed from its formula.
Departs from it: the model is whichever is given, not one trained on 1000 clustered samples first; answer tokens are marked
by position, not searched for in re-tokenised text; ties go to the lowest row. `ratio="perplexity"` is the ratio of Li et al.
2024, "Superfiltering", https://arxiv.org/abs/2402.00530 [recall], which can order samples differently.
"""

from dataclasses import dataclass

import numpy as np

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Signals
from dataflex_tools.methods.base import Selector

# N pool samples

RATIOS = ("loss", "perplexity")


@dataclass(frozen=True, kw_only=True)
class IfdSettings:
    """`ratio`: of mean `loss` (paper), or of `perplexity` = exp(mean loss) (Superfiltering)."""

    ratio: str = "loss"

    def __post_init__(self) -> None:
        require(self.ratio in RATIOS, f"ifd: ratio is {self.ratio!r}, wanted one of {', '.join(RATIOS)}")


class Ifd(Selector):
    """score = IFD; samples with IFD > 1, where the prompt hurts, are never taken."""

    Settings = IfdSettings
    paper = "Li et al. 2023, https://arxiv.org/abs/2308.12032"
    cost = "two forwards per pool sample, with and without its prompt"
    ranks_all_rows = False

    def needs(self) -> tuple[Need, ...]:
        """Mean loss of each pool answer, given its prompt and alone."""
        return (Need("loss", "pool"), Need("loss_alone", "pool"))

    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score the pool; `ifd` in `detail` also holds the ratios above 1, and NaN where the answer alone has loss 0.

        Raises DataError if no sample is left.
        """
        (given,), (alone,) = signals.columns["loss", "pool"], signals.columns["loss_alone", "pool"]
        can_N = signals.pool.has_labels_N & np.isfinite(given["loss"]) & np.isfinite(alone["loss"]) & (alone["loss"] > 0)
        given_N, alone_N = given["loss"][can_N].astype(np.float64), alone["loss"][can_N].astype(np.float64)
        ifd_N = np.full(len(can_N), np.nan)
        ifd_N[can_N] = given_N / alone_N if self.settings.ratio == "loss" else np.exp(given_N - alone_N)
        keep_N = ifd_N <= 1  # False for NaN
        if not keep_N.any():
            raise DataError(
                f"ifd: of {len(can_N):,} pool samples {int(can_N.sum()):,} have both losses and none of these IFD <= 1: no "
                "prompt helps this model; check the template, or score with a model that has seen instructions"
            )
        return Selection(np.where(keep_N, ifd_N, -np.inf), {"ifd": ifd_N})
