"""Ranks as the launcher set them (torchrun, accelerate, deepspeed, srun); a single process without one.

Ranks wait for each other in a process group of their own. A training's collectives keep the launcher's time-out, which finds
a hung rank; a rank that waits while another one reads the corpus, selects or holds on for a lock would run into it.
"""

import functools
import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch.distributed as torch_dist

T = TypeVar("T")

_PATIENCE = timedelta(days=30)  # a rank that died is noticed at once: its connections close


def rank() -> int:
    """This process's rank, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def begin() -> None:
    """Start the process group if there are several ranks; all of them call it, before any has long work to do alone."""
    if world_size() > 1:
        _waiting_group()


def barrier() -> None:
    """Wait for all ranks, however long; returns at once in a single process. Starts the process group on first use."""
    if world_size() == 1:
        return
    import torch.distributed as torch_dist

    torch_dist.barrier(group=_waiting_group())


def broadcast(value: T) -> T:
    """Rank 0's value on every rank, however long rank 0 takes; all ranks must call it."""
    if world_size() == 1:
        return value
    import torch.distributed as torch_dist

    held = [value]
    torch_dist.broadcast_object_list(held, src=0, group=_waiting_group())
    return held[0]


@functools.cache
def _waiting_group() -> "torch_dist.ProcessGroup":
    """The group for waiting: over gloo, whose ranks sleep while they wait, and with a time-out that is none."""
    import torch
    import torch.distributed as torch_dist
    from accelerate import PartialState

    # without the word on the CPU it takes each rank of a machine without accelerators for a process of its own
    PartialState(cpu=not torch.accelerator.is_available())
    return torch_dist.new_group(backend="gloo", timeout=_PATIENCE)


def finish() -> None:
    """Leave the process groups, so that no rank aborts when the interpreter exits."""
    if world_size() == 1:
        return
    import torch.distributed as torch_dist

    _waiting_group.cache_clear()
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()
