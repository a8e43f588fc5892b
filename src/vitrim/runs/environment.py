"""Hardware and library versions, for reports."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    names = ("vitrim", "torch", "torchvision", "timm", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def program() -> str:
    """The name of the program that runs: `vitrim`, also as a module, or the name of a script."""
    path = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("python")
    return path.parent.name if path.name == "__main__.py" else path.name


def command_line() -> str:
    """The command that runs, as a line for a shell. Of a script, only its name; empty if there is none."""
    name = program()
    if name == "vitrim":
        return shlex.join([name, *sys.argv[1:]])
    return name if name.endswith(".py") else ""


def device_name(device: "torch.device") -> str:
    """The model name of a GPU or of the CPU, such as `AMD EPYC 7763`; on other systems than Linux, less exact."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"GPU of {platform.processor() or platform.machine()} (mps)"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # this file exists on Linux only
    return platform.processor() or platform.machine()


def environment(device: "torch.device") -> dict[str, Any]:
    """Hardware, number of threads and versions, as plain data for `report.json`.

    Args:
        device: on which the model was trained and evaluated.
    """
    import torch

    return {
        "device": "cpu" if device.type == "cpu" else device_name(device),
        "cpu": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "versions": versions(),
    }
