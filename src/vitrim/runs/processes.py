"""The processes of a distributed run: which one this is, and its device."""

from datetime import timedelta

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """The state of this process: its rank, the number of processes, and its device.

    `torchrun` or `accelerate launch` start several processes. Otherwise there is one. If there are GPUs, each process
    has its own GPU as device, else the CPU.
    """
    # Trap: on a machine without GPUs, accelerate makes no group without `cpu=True`. Each process then works alone.
    # The timeout is long because one process may work for hours while the others wait for its result.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def is_main_process() -> bool:
    """Whether this is the first process, which prints and writes files."""
    return this_process().is_main_process


def wait_for_all() -> None:
    """Wait until all processes have come to this call."""
    this_process().wait_for_everyone()
