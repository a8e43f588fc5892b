"""A Core ML folder that cannot be run is compared with the model by its inputs, outputs and weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.runs import digits_model
from vitrim.errors import ExportMismatch
from vitrim.programs.coreml import check_content, write
from vitrim.programs.program import DEFAULT, Exportable, ProgramSettings, exportable

pytestmark = pytest.mark.deploy


def exported(seed: int = 0) -> Exportable:
    return exportable(digits_model(depth=1, embed_dim=32, seed=seed).eval().requires_grad_(False), batch=1)


@pytest.mark.parametrize("half", [False, True])
def test_other_weights_and_another_output_are_refused(half: bool, tmp_path: Path) -> None:
    written, file = exported(), tmp_path / "model.mlpackage"
    write(written, file, {}, ProgramSettings(half=half))
    check_content(written, file)
    with pytest.raises(ExportMismatch, match=r"does not have the weights `\S+`"):
        check_content(exported(seed=1), file)
    with pytest.raises(ExportMismatch, match="takes and returns"):
        check_content(replace(written, output="features"), file)


def test_one_changed_weight_is_found(tmp_path: Path) -> None:
    written, file = exported(), tmp_path / "model.mlpackage"
    write(written, file, {}, DEFAULT)
    with torch.no_grad():
        written.module.model.blocks[0].mlp.fc1.weight[0, 0] += 10
    with pytest.raises(ExportMismatch, match=r"blocks\.0\.mlp\.fc1\.weight"):
        check_content(written, file)
