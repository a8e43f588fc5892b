"""The processes of a distributed run: which one this is, and its device."""

import os
import signal
import time
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from vitrim.errors import UserError
from vitrim.runs.partners import (
    CONTINUE,
    DONE,
    FAILED,
    SECONDS_TO_END,
    Partners,
    is_lost_connection,
    is_one_of_several,
    meet_partners,
    watch_parent,
)

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> "PartialState":
    """The state of this process: its rank, the number of processes, and its device.

    `torchrun` or `accelerate launch` start several processes. Otherwise there is one. If there are GPUs of Nvidia, each
    process has its own GPU as device; on a Mac with a GPU, the device is `mps`; else it is the CPU. With the variable
    `ACCELERATE_USE_CPU=true`, it is the CPU.

    Raises:
        PartnerMissing: there are several processes, and not all of them have started.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Trap: on a machine without GPUs, accelerate makes no group without `cpu=True`. Each process then works alone.
    # The timeout is long because one process may work for hours while the others wait for its result.
    options: dict[str, Any] = {"timeout": timedelta(days=1)}
    if is_one_of_several() and not PartialState._shared_state:
        partners = join()
        options |= {"store": partners.store, "rank": partners.rank, "world_size": partners.count}
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return PartialState(cpu=not has_gpu or parse_flag_from_env("ACCELERATE_USE_CPU"), **options)


@cache
def join() -> Partners:
    """Meet the other processes, and end this one if one of them is gone. Call it only if there are several.

    Raises:
        PartnerMissing: not all of them have started.
    """
    watch_parent()
    return meet_partners()


def begin() -> None:
    """What a command of several processes does first: it meets the others.

    Raises:
        PartnerMissing: not all of them have started.
    """
    watch_parent()
    if is_one_of_several():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch prints a stack if a process is gone
        join()


def end(status: int) -> None:
    """What a command of several processes does last. If it has failed, the others end, too."""
    if join.cache_info().currsize:
        if status:  # torchrun ends all processes when the first one has failed; each should end with its own status
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        join().leave(FAILED if status else DONE)


def is_first_to_say(message: str) -> bool:
    """Whether this process prints a message that other processes may have, too."""
    if not is_one_of_several():
        return True
    if join.cache_info().currsize:
        return join().claims(message)
    return os.environ["RANK"] == "0" or os.environ.get("LOCAL_RANK", "0") == "0"  # the processes have not met


def explain_lost_connection(error: BaseException) -> str:
    """Say that the connection to another process is lost, if the error says so; else empty.

    If the other process has failed, it has said why. Then this process ends here.
    """
    if not is_one_of_several() or not is_lost_connection(error):
        return ""
    time.sleep(SECONDS_TO_END / 2)  # in which the thread that watches the others ends this process
    return f"The connection to another process is lost: it has ended, or the network failed. {CONTINUE}"


def is_main_process() -> bool:
    """Whether this is the first process, which prints and writes files."""
    return this_process().is_main_process


def raise_on_all(problem: UserError | None) -> None:
    """Raise an error of the first process on all processes. They call this together.

    Without it, the first process would go on where others wait, if its caller catches the error.

    Args:
        problem: of this process; only that of the first one counts.
    """
    if this_process().num_processes > 1:
        from accelerate.utils import broadcast_object_list

        problem = broadcast_object_list([problem])[0]
    if problem is not None:
        raise problem


def wait_for_all() -> None:
    """Wait until all processes have come to this call."""
    this_process().wait_for_everyone()
