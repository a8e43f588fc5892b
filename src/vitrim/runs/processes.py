"""Which of how many processes this is, and its device: a GPU each where there are any, else the CPU."""

from datetime import timedelta

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """The state of the group that `torchrun` or `accelerate launch` started; a group of one otherwise."""
    # Not told `cpu`, accelerate makes no group of processes without GPUs: each would take itself for the only one.
    # One process may work for hours while the others wait for its result.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def is_main_process() -> bool:
    return this_process().is_main_process


def wait_for_all() -> None:
    this_process().wait_for_everyone()
