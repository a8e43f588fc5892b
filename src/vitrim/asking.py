"""Errors of libraries become one sentence, at the place where the library is called.

`asking` surrounds the call of a library, and none of our own code: what is wrong there is a bug, and is shown as one.
Errors of vitrim inside it, such as those of a builder that the library calls, pass unchanged. Libraries are not
imported here: their exceptions are known by name.
"""

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from vitrim.errors import NotEnoughMemory, SettingError, UserError

# What any code raises for values that it was not written for.
UNFORESEEN: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)
# What libraries that read files pass on, where a file is damaged.
DAMAGED_FILE: tuple[type[Exception], ...] = (
    *(*UNFORESEEN, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError),
)
DOWNLOADS = (  # of the libraries that download; most of their errors are no OSError
    *("httpx.HTTPError", "httpx.InvalidURL", "httpx2.HTTPError", "httpx2.InvalidURL", "http.HTTPException"),
    *("huggingface_hub.EntryNotFoundError", "huggingface_hub.RevisionResolutionError"),
    *("huggingface_hub.XetDownloadError", "requests.RequestException"),
)
FILES = ("safetensors.SafetensorError", "_pickle.UnpicklingError", "zipfile.BadZipFile", "zlib.error", "struct.error")
OF_LIBRARY = {  # further exceptions of each library: the package and the class
    "timm": (*DOWNLOADS, *FILES),
    "torchvision": (*DOWNLOADS, *FILES),
    "transformers": (*DOWNLOADS, *FILES, "huggingface_hub.StrictDataclassError"),
    "huggingface_hub": DOWNLOADS,
    "safetensors": FILES,
    "torch": FILES,
    "numpy": (*FILES, "tokenize.TokenError"),
    "zipfile": (*FILES, "zipfile.LargeZipFile", "_lzma.LZMAError"),
    "tarfile": (*FILES, "tarfile.TarError", "_lzma.LZMAError"),
    "datasets": (*DOWNLOADS, *FILES, "datasets.DatasetsError", "pyarrow.ArrowException"),
    "onnxruntime": tuple(f"onnxruntime.{name}" for name in ("Fail", "InvalidArgument", "InvalidGraph", "NoSuchFile")),
}
OF_LIBRARY["onnxruntime"] += ("onnxruntime.RuntimeException", "onnxruntime.NotImplemented", "onnxruntime.EPFail")
NO_MEMORY = re.compile(
    r"out of memory|can.t allocate memory|not enough memory|failed to allocate|bad_alloc|unable to allocate"
    r"|_ALLOC_FAILED|could not (create|execute) a primitive|Storage size calculation overflowed|invalid buffer size",
    re.IGNORECASE,
)
LOWER_CALIBRATION = "Lower importance.batch_size (--set importance.batch_size=32), or use a smaller model."
LOWER_ANY = (
    "Lower the number of images at a time (--batch-size, --eval-batch, --latency-batch, --set "
    "importance.batch_size=32), use smaller images or a smaller model, or free memory."
)
MAX_REASON = 200  # characters


@contextmanager
def asking(
    library: str, request: str, *, error: type[UserError] = SettingError, advice: str = "", lower: str = ""
) -> Iterator[None]:
    """A context in which a library is called.

    Args:
        library: a key of `OF_LIBRARY`.
        request: what it is asked for, to follow "could not", such as `build vit_tiny_patch16_224 with depth=-1`.
        error: class of the error that is raised.
        advice: what to do, a sentence.
        lower: what to lower if the memory is not enough; names the option.

    Raises:
        UserError: of the class `error`, with the first line of what the library said. NotEnoughMemory: the memory is
            not enough.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        if is_out_of_memory(problem):
            raise NotEnoughMemory(
                f"There is not enough memory to {request}: {reason(problem)}. {lower}".rstrip()
            ) from (problem)
        if not isinstance(problem, UNFORESEEN) and not _class_names(problem) & {*OF_LIBRARY[library]}:
            raise
        raise error(f"{library} could not {request}: {reason(problem)}. {advice}".rstrip()) from problem


@contextmanager
def within_memory(request: str, lower: str) -> Iterator[None]:
    """A context in which only a lack of memory is turned into an error of the user; all else passes.

    Args:
        request: what is done, to follow "There is not enough memory to".
        lower: what to lower, a sentence that names the option.

    Raises:
        NotEnoughMemory: an allocator of the CPU or of a device failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise NotEnoughMemory(f"There is not enough memory to {request}: {reason(problem)}. {lower}") from problem


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an allocator failed: Python's, numpy's, or torch's for the CPU or a device."""
    if isinstance(problem, MemoryError):
        return True
    names = _class_names(problem)
    is_of_runtime = isinstance(problem, RuntimeError) or bool(names & {*OF_LIBRARY["onnxruntime"]})
    return "torch.OutOfMemoryError" in names or (is_of_runtime and NO_MEMORY.search(str(problem)) is not None)


def reason(problem: BaseException) -> str:
    """The first line of an error of a library, shortened; with its class where this line alone says too little."""
    if type(problem).__name__ == "DatasetGenerationError" and problem.__cause__ is not None:
        problem = problem.__cause__
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = " ".join(lines[0].split()) if lines else ""
    if len(lines) > 1 and text.endswith(":"):
        text = f"{text} {' '.join(lines[1].split())}"
    text = text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."
    is_short = isinstance(problem, LookupError | ZeroDivisionError | UnicodeError | MemoryError) or not text
    return (f"{type(problem).__name__} {text}" if is_short else text).rstrip(" .")


def _class_names(problem: BaseException) -> set[str]:
    """The class and its bases, each with the package that defines it."""
    return {f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}" for cls in type(problem).__mro__}
