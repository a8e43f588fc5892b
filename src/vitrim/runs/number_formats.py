"""Refuses weights in formats that are other numbers without their scales: 8-bit floats, integers, complex numbers.

Libraries convert such weights without a word when they load them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from vitrim.errors import CheckpointMismatch
from vitrim.runs.files import OF_SAFETENSORS, read_checkpoint

FLOATS = ("F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
WHOLE = re.compile(r"(BOOL|[IU]\d+|torch\.(bool|u?int\d+))")  # formats of tables and masks, which are no weights
WEIGHT = re.compile(r"(weight|bias|token|tokens|pos_embed|embeddings?|gamma|beta|scale|lambda_?\d?)$")  # of a name
FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt")


def check_formats(folder: Path) -> None:
    """Refuse a folder of a library that has weights in another format than float64, float32, float16 or bfloat16.

    Raises:
        CheckpointMismatch: names the tensor; or a file is damaged.
    """
    for file in sorted(path for pattern in FILES for path in folder.glob(pattern) if path.is_file()):
        for name, format in _formats(file):
            is_table = WHOLE.fullmatch(format) and not WEIGHT.search(name)
            if format not in FLOATS and not is_table:
                raise CheckpointMismatch(
                    f"{name} of {file} is {format}; expected float32, float16 or bfloat16. Convert the weights to "
                    "float32 where they were quantised."
                )


def _formats(file: Path) -> Iterator[tuple[str, str]]:
    if file.suffix != ".safetensors":
        if file.name not in ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt"):
            yield from ((name, str(tensor.dtype)) for name, tensor in read_checkpoint(file).tensors.items())
        return
    try:
        with safe_open(file, framework="pt") as opened:
            found = [(name, opened.get_slice(name).get_dtype()) for name in opened.keys()]  # noqa: SIM118
    except OF_SAFETENSORS as problem:
        raise CheckpointMismatch(f"{file} is not a readable checkpoint: {problem}.") from problem
    yield from found
