"""The direction Adam would move in for one sample's gradient, from the moments a warm-up left behind.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning", arXiv 2402.04333, section 3.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

# B batch, P parameters of one module

Convention = Literal["optimizer_exact", "less_official", "dataflex"]
CONVENTIONS: tuple[Convention, ...] = ("optimizer_exact", "less_official", "dataflex")

# Hard-coded in LESS's collect_grad_reps.py and copied by DataFlex
_LESS_BETA1, _LESS_BETA2, _LESS_EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Adam's running averages after `step` optimizer steps, raw (not bias corrected), by parameter name."""

    step: int
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    exp_avg: Mapping[str, torch.Tensor] = field(default_factory=dict)
    exp_avg_sq: Mapping[str, torch.Tensor] = field(default_factory=dict)


class AdamScaling:
    """Turns gradients into Adam directions in place; what does not depend on the gradient is computed once.

    `optimizer_exact` is the step torch.optim.Adam would take: bias corrected with step + 1, eps outside the root, the
    optimizer's own betas and eps. `less_official` puts eps inside the root and `dataflex` outside it; both skip the
    bias correction and use the constants 0.9, 0.999 and 1e-8 whatever the optimizer had.
    """

    def __init__(self, m_P: torch.Tensor, v_P: torch.Tensor, *, step: int, beta1: float = 0.9, beta2: float = 0.999,
                 eps: float = 1e-8, convention: Convention = "optimizer_exact") -> None:  # fmt: skip
        if convention == "optimizer_exact":
            first, second = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        elif convention in CONVENTIONS:
            beta1, beta2, eps, first, second = _LESS_BETA1, _LESS_BETA2, _LESS_EPS, 1.0, 1.0
        else:
            raise ValueError(f"Adam convention {convention!r}, wanted one of {', '.join(CONVENTIONS)}")
        inside = convention == "less_official"
        self._gain, self._gain_sq = (1 - beta1) / first, (1 - beta2) / second
        self._m_P = m_P * (beta1 / first)
        self._v_P = v_P * (beta2 / second) + (eps if inside else 0.0)
        self._eps = 0.0 if inside else eps

    def apply_(self, grad_BP: torch.Tensor) -> torch.Tensor:
        """Overwrite gradients (..., P) with their Adam directions; returns the same tensor."""
        root_BP = torch.addcmul(self._v_P, grad_BP, grad_BP, value=self._gain_sq).sqrt_()
        if self._eps:
            root_BP.add_(self._eps)
        return torch.add(self._m_P, grad_BP, alpha=self._gain, out=grad_BP).div_(root_BP)


def adam_direction(g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, *, step: int, beta1: float = 0.9,
                   beta2: float = 0.999, eps: float = 1e-8,
                   convention: Convention = "optimizer_exact") -> torch.Tensor:  # fmt: skip
    """Adam direction of each gradient, same shape as `g` (..., P); `m` and `v` are (P,) after `step` steps."""
    scaling = AdamScaling(m, v, step=step, beta1=beta1, beta2=beta2, eps=eps, convention=convention)
    return scaling.apply_(g.clone())
