"""Laws of static int8 in ONNX: weights and activations are integers with ranges from training images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from builders.runs import digits, digits_model
from vitrim.costs.latency import LatencySettings
from vitrim.errors import SettingError
from vitrim.exporting.export import Exported, export
from vitrim.programs.onnx import read_metadata
from vitrim.programs.program import ProgramSettings

QUICK = LatencySettings(rounds=2, warmup=1)
SETTINGS = ProgramSettings(calibration_images=30)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exported]:
    model, path = digits_model(depth=1), tmp_path_factory.mktemp("static") / "model.onnx"
    return model, export(model, path, int8="static", data=digits(), latency=QUICK, program=SETTINGS)


def test_weights_are_int8_and_ranges_of_activations_are_constants(static: tuple[nn.Module, Exported]) -> None:
    model, found = static
    graph = onnx.load(found.path).graph
    stored = sum(np.prod(one.dims) for one in graph.initializer if one.data_type == onnx.TensorProto.INT8)
    assert stored >= sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    constants = {one.name for one in graph.initializer}
    scales = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert scales and scales <= constants
    assert {node.op_type for node in graph.node}.isdisjoint({"DynamicQuantizeLinear"})


def test_layers_with_weights_take_int8_and_the_products_of_attention_take_float32(
    static: tuple[nn.Module, Exported],
) -> None:
    model, found = static
    graph = onnx.load(found.path).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    quantised = [node for node in layers if {made_by.get(name) for name in node.input} == {"DequantizeLinear"}]
    products = [node for node in layers if node not in quantised]
    assert len(quantised) == sum(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules())
    assert len(products) == 2 and all("DequantizeLinear" not in map(made_by.get, one.input) for one in products)


def test_the_accuracy_is_that_of_the_file_and_the_metadata_says_int8(static: tuple[nn.Module, Exported]) -> None:
    _, found = static
    assert found.accuracy is not None and found.agreement is not None
    assert found.accuracy.int8.num_images == found.agreement.num_images == 50
    assert 0 < found.agreement.max_difference < 1 and found.agreement.same >= 25
    about = read_metadata(found.path)
    assert about["precision"] == found.precision == "int8" and about["int8"] == "static"


def test_static_int8_needs_training_images(tmp_path: Path) -> None:
    data = digits()
    for without in (replace(data, train=data.train.subset([])), data.validation):
        with pytest.raises(SettingError, match="calibrated on 30 training images, and the data has none"):
            export(digits_model(depth=1), tmp_path / "model.onnx", int8="static", data=without, program=SETTINGS)
    assert not list(tmp_path.iterdir())
