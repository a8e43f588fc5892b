"""Errors of libraries become one sentence; errors of vitrim and bugs pass."""

import pickle
import zlib

import pytest
import torch
from safetensors import SafetensorError

from vitrim.asking import OF_LIBRARY, asking, is_out_of_memory, reason, within_memory
from vitrim.errors import CheckpointMismatch, NotEnoughMemory, PlanMismatch, SettingError

LOWER = "Lower batch_size (--batch-size)."


@pytest.mark.parametrize("library", OF_LIBRARY)
@pytest.mark.parametrize("problem", [KeyError("a"), ZeroDivisionError(), RecursionError("deep"), OSError("gone")])
def test_an_error_of_a_library_says_what_it_was_asked_for(library: str, problem: Exception) -> None:
    expected = pytest.raises(SettingError, match=f"^{library} could not build x: .*. Try y.$")
    with expected as found, asking(library, "build x", advice="Try y."):
        raise problem
    assert found.value.__cause__ is problem
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("problem", [SafetensorError("header"), pickle.UnpicklingError("no"), zlib.error("bad")])
def test_exceptions_that_only_a_library_has_are_known_by_name(problem: Exception) -> None:
    expected = pytest.raises(CheckpointMismatch, match=r"^safetensors could not read f: ")
    with expected, asking("safetensors", "read f", error=CheckpointMismatch):
        raise problem


def test_an_error_of_vitrim_inside_a_library_passes() -> None:
    problem = PlanMismatch("The plan keeps no block.")
    with pytest.raises(PlanMismatch) as found, asking("timm", "build x"):
        raise problem
    assert found.value is problem


@pytest.mark.parametrize("problem", [StopIteration(), KeyboardInterrupt()])
def test_what_no_library_raises_passes(problem: BaseException) -> None:
    with pytest.raises(type(problem)), asking("timm", "build x"):
        raise problem


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(problem: Exception) -> None:
    assert is_out_of_memory(problem)
    for context in (within_memory("make x", LOWER), asking("timm", "make x", lower=LOWER)):
        with pytest.raises(NotEnoughMemory, match=r"not enough memory to make x: .*--batch-size"), context:
            raise problem


def test_the_allocator_itself_is_understood() -> None:
    with pytest.raises(NotEnoughMemory), within_memory("make a tensor", LOWER):
        torch.empty(2**55)


def test_other_errors_pass_where_only_memory_is_asked_for() -> None:
    with pytest.raises(RuntimeError, match="mat1"), within_memory("multiply", LOWER):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_reason_is_one_short_line() -> None:
    assert reason(RuntimeError("first:\n\n  second\nthird")) == "first: second"
    assert reason(ValueError("x" * 999)).endswith("x...") is False
    assert len(reason(ValueError("x" * 999))) < 250
    assert reason(KeyError("a")) == "KeyError 'a'"
    assert reason(ValueError()) == "ValueError"
