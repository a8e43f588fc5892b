"""Errors of allocators: which they are, and one sentence about them. What is done about them is decided elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from vitrim.errors import OutOfMemory

# Texts of RuntimeError, in lower case: CUDA and MPS; the allocator of the CPU; cuBLAS, cuDNN.
TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch, NumPy or Python has raised this error, on any device."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in TEXTS)


@contextmanager
def explained_out_of_memory(doing: str, advice: str) -> Iterator[None]:
    """A context in which a lack of memory is an error that the user can fix.

    Args:
        doing: what needs the memory, such as `scoring the model`.
        advice: what to lower, such as `Lower importance.batch_size (now 64).`

    Raises:
        OutOfMemory: the block has run out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"Out of memory while {doing}. {advice}") from None
