"""Laws of errors of allocators: they are recognised on every device, and nothing else is taken for one."""

import numpy as np
import pytest
import torch

from vitrim.errors import OutOfMemory
from vitrim.runs.memory import explained_out_of_memory, is_out_of_memory


def test_allocators_of_torch_and_numpy_are_recognised() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**56)
    for error in (of_torch.value, of_numpy.value, torch.OutOfMemoryError("CUDA out of memory.")):
        assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError("memory")]
)
def test_other_errors_are_not_about_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), explained_out_of_memory("scoring", "Lower it."):
        raise error


def test_a_lack_of_memory_says_what_to_lower() -> None:
    advice = "Lower importance.batch_size."
    with pytest.raises(OutOfMemory, match=rf"while scoring\. {advice}"), explained_out_of_memory("scoring", advice):
        torch.empty(2**60)
