"""Losses and router loads of the same held-out rows of every domain, measured while or after a model trains.

Held-out blocks are parted by content: one half decides (it is measured here), the other half reports (`flextools evaluate`),
so that a mixture is not judged by the very text it was fitted to.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.distributed import all_reduce

from dataflex_tools.core import dist
from dataflex_tools.core.errors import DataError
from dataflex_tools.core.mixing import Observation
from dataflex_tools.score.batches import pad_batch, token_batches
from dataflex_tools.score.losses import sample_losses
from dataflex_tools.score.router_load import router_loads

# N rows, K domains, E experts, B rows of a domain

_CPU_TOKENS = 4096  # padded tokens of a batch, as in evaluation


def decides(ids_N16: np.ndarray) -> np.ndarray:
    """Whether a held-out row is of the half that decides, (N,) bool; a function of its content."""
    return np.asarray(ids_N16[:, 0] < 128)


def deciding_rows(tokens: Any, num_rows: int) -> list[np.ndarray]:
    """The same number of rows of each domain, at most `num_rows`, (B,) each: those with the smallest content hashes.

    A domain with fewer tokens would look more different from the others than it is, so the smallest decides the number.
    Raises DataError if a domain has none.
    """
    rows = tokens.rows_with_labels()
    rows = rows[decides(tokens.ids_N16[rows])]
    by_hash = rows[np.lexsort(tokens.ids_N16[rows].T[::-1])]
    parts = [by_hash[tokens.group_N[by_hash] == code] for code in range(len(tokens.group_names))]
    for name, part in zip(tokens.group_names, parts, strict=True):
        if not len(part):
            raise DataError(
                f"domain {name!r} has no held-out block to decide by; raise pack.held_out, or lower pack.block_size"
            )
    return [part[: min(num_rows, *map(len, parts))] for part in parts]


def reporting_rows(tokens: Any) -> np.ndarray:
    """Labelled rows of the half that reports, ascending. Raises DataError if a domain has none."""
    rows = tokens.rows_with_labels()
    rows = rows[~decides(tokens.ids_N16[rows])]
    for code, name in enumerate(tokens.group_names):
        if not (tokens.group_N[rows] == code).any():
            raise DataError(
                f"domain {name!r} has no held-out block to report on; raise pack.held_out, or lower pack.block_size"
            )
    return np.asarray(rows)


def held_out_losses(model: torch.nn.Module, tokens: Any, *, num_rows: int, is_sharded: bool = False) -> Observation:
    """Summed loss and label tokens of the deciding rows of each domain; `step` is 0. All ranks call it.

    Ranks share the rows out, unless the model is sharded (ZeRO-3, FSDP): all ranks then run every forward pass.
    """
    parts = deciding_rows(tokens, num_rows)
    total_2K = np.zeros((2, len(parts)))
    for code, row_B in enumerate(parts):
        if len(mine := _share(row_B, is_sharded)):
            sum_B, count_B = sample_losses(model, tokens, mine, token_budget=_CPU_TOKENS)
            total_2K[:, code] = sum_B.sum(), count_B.sum()
    total_2K = _over_ranks(model, total_2K, is_sharded)
    return Observation(0, total_2K[0], total_2K[1])


def held_out_loads(model: torch.nn.Module, tokens: Any, *, num_rows: int, is_sharded: bool = False) -> Observation:
    """How often each expert of the last mixture-of-experts layer is chosen for the deciding rows of each domain, as above.

    `num_tokens_K` counts choices: top-k times the label tokens.
    """
    parts = deciding_rows(tokens, num_rows)
    load_KE = np.stack([router_loads(model, _batches(tokens, _share(row_B, is_sharded))) for row_B in parts])
    load_KE = _over_ranks(model, load_KE, is_sharded)
    return Observation(0, np.zeros(len(parts)), load_KE.sum(axis=1), load_KE)


def _batches(tokens: Any, row_B: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
    for batch in token_batches(np.asarray(tokens.num_tokens_N)[row_B], _CPU_TOKENS):
        yield pad_batch(tokens, row_B[batch])


def _share(row_B: np.ndarray, is_sharded: bool) -> np.ndarray:
    return row_B if is_sharded else row_B[dist.rank() :: dist.world_size()]


def _over_ranks(model: torch.nn.Module, value: np.ndarray, is_sharded: bool) -> np.ndarray:
    if is_sharded:
        return dist.broadcast(value)  # the last bits may differ between ranks; a mixer must see the same on all
    if dist.world_size() == 1:
        return value
    tensor = torch.from_numpy(value).to(next(model.parameters()).device)
    all_reduce(tensor)
    return tensor.cpu().numpy()
