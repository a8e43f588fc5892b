"""Laws of files for other runtimes: what was asked for is in the file, or it is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from builders.runs import digits_model
from vitrim.costs.latency import LatencySettings
from vitrim.errors import ExportFailed, ExportMismatch
from vitrim.exporting.export import Exported, export
from vitrim.programs.program import ProgramSettings, output_name

QUICK = LatencySettings(rounds=2, warmup=1)


def backbone() -> nn.Module:
    """A model without a classifier."""
    model = digits_model(depth=1)
    model.reset_classifier(0)
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exported]:
    """Features in float16, for batches of two images, in a chosen opset."""
    model, path = backbone(), tmp_path_factory.mktemp("exported") / "model.onnx"
    return model, export(model, path, latency=QUICK, program=ProgramSettings(opset=18, batch=2, half=True))


def test_a_file_has_the_opset_the_batch_the_precision_and_the_name_of_the_output(
    small: tuple[nn.Module, Exported],
) -> None:
    _, found = small
    made = onnx.load(found.path)
    (images,), (output,) = made.graph.input, made.graph.output
    assert [entry.version for entry in made.opset_import if not entry.domain] == [18]
    assert images.type.tensor_type.shape.dim[0].dim_value == output.type.tensor_type.shape.dim[0].dim_value == 2
    assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert output.name == found.output == "features"
    weights = [tensor for tensor in made.graph.initializer if np.prod(tensor.dims) > 16]
    assert weights and all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights)
    assert (found.precision, found.latency.batch_size) == ("float16", 2)
    assert found.input.startswith("float16 (2, 3, ")
    properties = {entry.key: json.loads(entry.value) for entry in made.metadata_props}
    assert (properties["precision"], properties["output"], properties["input"]) == ("float16", "features", found.input)
    assert properties["batch"] == 2


def test_a_classifier_that_was_replaced_by_nothing_leaves_features() -> None:
    model = digits_model(depth=1)
    assert output_name(model) == "logits"
    model.head = nn.Identity()
    assert output_name(model) == "features"


@torch.no_grad()
def test_float16_computes_the_features_of_float32_within_its_rounding(small: tuple[nn.Module, Exported]) -> None:
    model, found = small
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[-1]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)).half()
    (features,) = session.run(None, {"images": images.numpy()})
    expected = model.eval()(images.float())
    assert float((torch.from_numpy(features).float() - expected).abs().max()) < 0.01 * float(expected.abs().max())
    assert set(found.max_differences) == {2} and next(iter(model.parameters())).dtype == torch.float32


@pytest.mark.slow
def test_an_opset_that_pytorch_does_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="opset 13; it wrote 18"):
        export(backbone(), tmp_path / "model.onnx", program=ProgramSettings(opset=13))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_whose_numbers_do_not_fit_into_float16_is_refused(tmp_path: Path) -> None:
    model = digits_model(depth=1)
    with torch.no_grad():
        model.head.weight.fill_(1e5)
    with pytest.raises(ExportMismatch, match=r"end at 65504.* Leave out half"):
        export(model, tmp_path / "model.pt2", format="torch-export", program=ProgramSettings(half=True))
    assert not list(tmp_path.iterdir())
