"""Ranks as the launcher set them (torchrun, accelerate, deepspeed, srun); a single process without one."""

import os
from typing import TypeVar

T = TypeVar("T")


def rank() -> int:
    """This process's rank, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks; returns at once in a single process. Starts the process group on first use."""
    if world_size() == 1:
        return
    import torch
    from accelerate import PartialState

    # without the word on the CPU it takes each rank of a machine without accelerators for a process of its own
    PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


def finish() -> None:
    """Leave the process group, so that no rank aborts when the interpreter exits."""
    if world_size() == 1:
        return
    import torch.distributed as torch_dist

    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def broadcast(value: T) -> T:
    """Rank 0's value on every rank; all ranks must call it."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    barrier()  # starts the process group if nothing has yet
    held = [value]
    broadcast_object_list(held, from_process=0)
    return held[0]
