"""The few things that processes of one training say to each other; in a single process all of them are free.

A run that several processes share must take every decision alike, or it hangs: time is therefore the main process's,
and a measured loss the sum over all.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed


@contextmanager
def joined(on_cpu: bool) -> Iterator[None]:
    """Join the other processes that torchrun, accelerate launch or Ray Train started; alone, nothing is done."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    ours = not torch.distributed.is_initialized()  # Ray Train's group is its own to end
    PartialState(cpu=on_cpu)
    try:
        yield
    finally:
        if ours:
            torch.distributed.destroy_process_group()


def processes() -> int:
    """How many there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the one that writes and speaks."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when all have come here."""
    if processes() > 1:
        torch.distributed.barrier()


def of_main(value: float) -> float:
    """The main process's value."""
    if processes() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=_device())
    torch.distributed.broadcast(shared, 0)
    return float(shared.item())


def add_up(*values: float) -> list[float]:
    """Each value summed over all."""
    if processes() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(total)
    return [float(value) for value in total.tolist()]


def count_differing(text: str) -> int:
    """How many processes have another text than the main one."""
    number = float(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))  # of 48 bits, which a double holds
    return int(add_up(float(of_main(number) != number))[0])


def _device() -> torch.device:
    on_gpu = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
