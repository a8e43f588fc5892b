"""Contexts around the libraries that write and run files: their output is hidden, and their errors become vitrim's."""

import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress

from vitrim.asking import is_out_of_memory
from vitrim.errors import ExportFailed, NotEnoughMemory, SettingError, UserError

OUTPUTS = (1, 2)  # file descriptors of standard output and error, to which code in C++ writes
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # ONNX Runtime reads it when it is imported; else it writes to the user's cache


def check_packages(format: str, extra: str, packages: Iterable[str]) -> None:
    """Import the packages that a format needs, without the telemetry of ONNX Runtime, which onnxscript and NNCF import.

    Args:
        format: as the message names it, such as `ONNX`.
        extra: of vitrim, which installs the packages.
        packages: names of their modules.

    Raises:
        SettingError: one is missing.
    """
    os.environ.setdefault(NO_TELEMETRY, "1")
    for package in packages:
        try:
            with quiet():
                importlib.import_module(package)
        except ImportError as error:
            raise SettingError(
                f"{format} needs the package {package} ({error}): pip install 'vitrim[{extra}]'."
            ) from None


@contextmanager
def failing_as(complaint: str) -> Iterator[None]:
    """A context that hides the exporter's output, warnings and logs, and turns its errors into those of vitrim.

    Raises:
        ExportFailed: the exporter fails. NotEnoughMemory: it fails because memory is short.
    """
    try:
        with quiet():
            yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise NotEnoughMemory(f"{complaint}, because memory is short: {_reason(error)}. Free memory.") from error
        raise ExportFailed(f"{complaint}: {_reason(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """A context that hides output, warnings and logs, also of code in C++."""
    logging_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
            stack.enter_context(_descriptors_to_nowhere())
            yield
    finally:
        logging.disable(logging_level)


@contextmanager
def _descriptors_to_nowhere() -> Iterator[None]:
    kept: dict[int, int] = {}
    for number in OUTPUTS:
        with suppress(OSError):  # it is closed
            kept[number] = os.dup(number)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)


def _reason(error: BaseException) -> str:
    """The first line of the original error; exporters wrap it in long messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
