"""The names of the formats and of the kinds of int8. This file imports no torch, so that `vitrim --help` is fast."""

from typing import Literal

FormatName = Literal["onnx", "torch-export", "openvino", "executorch", "coreml", "litert"]
Int8Kind = Literal["dynamic", "static"]
