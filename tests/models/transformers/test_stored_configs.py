"""A folder of transformers is plain data: its code is neither run nor asked about, and its names reach no internals."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from builders.families_transformers import PLAIN
from vitrim.errors import CheckpointMismatch, NotEnoughMemory, SettingError, UserError
from vitrim.models import describe
from vitrim.models.transformers.stored_configs import accepted, class_named
from vitrim.saving.checkpoint import load, save
from vitrim.saving.opening import open_model

CODE = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForImageClassification": "evil.EvilModel",
    "AutoImageProcessor": "evil.EvilProcessor",
}
EVIL = """
import pathlib
pathlib.Path(__file__).with_name("executed").touch()
pathlib.Path({marker!r}).touch()
from transformers import PreTrainedConfig, PreTrainedModel
class EvilConfig(PreTrainedConfig): model_type = "evil"
class EvilModel(PreTrainedModel): config_class = EvilConfig
class EvilProcessor: pass
"""
Edit = Callable[[dict[str, Any]], Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Write a model folder of transformers whose `config.json` has these keys, with Python files beside it.

    Whatever asks a question on the terminal reads yes.
    """
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = tmp_path / "model"
    transformers.ViTForImageClassification(transformers.ViTConfig(**PLAIN)).save_pretrained(path)
    for name in ("evil.py", "modeling.py", "configuration.py", "__init__.py"):
        (path / name).write_text(EVIL.format(marker=str(tmp_path / "executed")))

    def edit(keys: dict[str, Any]) -> Path:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **keys}))
        return path

    return edit


def nothing_ran(tmp_path: Path) -> bool:
    return not list(tmp_path.rglob("executed")) and "evil" not in sys.modules and sys.stdin.read().count("y") == 99


def test_code_of_a_folder_of_a_known_type_is_not_run_and_this_is_logged(
    folder: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder({"auto_map": CODE, "custom_pipelines": {"evil": {"impl": "evil.EvilModel"}}})
    assert type(open_model(str(path))) is transformers.ViTForImageClassification
    assert "names code of its own (auto_map, custom_pipelines), which is not run" in capsys.readouterr().err
    assert nothing_ran(tmp_path)


@pytest.mark.parametrize("prefix", ["", "transformers:"])
def test_code_of_a_folder_of_an_unknown_type_is_refused(folder: Edit, prefix: str, tmp_path: Path) -> None:
    path = folder({"auto_map": CODE, "model_type": "evil"})
    with pytest.raises(SettingError, match=r"model type .evil..* needs code of its own, and vitrim never runs code"):
        open_model(f"{prefix}{path}")
    assert nothing_ran(tmp_path)


def test_code_of_an_image_processor_is_not_run(folder: Edit, tmp_path: Path) -> None:
    path = folder({})
    keys = {"auto_map": CODE, "image_processor_type": "EvilProcessor", "processor_class": "EvilProcessor"}
    (path / "preprocessor_config.json").write_text(json.dumps(keys))
    describe(open_model(str(path)))
    assert nothing_ran(tmp_path)


@pytest.mark.parametrize(
    "name", ["pipeline", "AutoModel", "utils", "models.vit", "__version__", "ViTConfig", "SwinModel"]
)
def test_only_model_classes_of_the_configuration_are_found_by_name(name: str) -> None:
    assert class_named(transformers, name, transformers.ViTConfig(**PLAIN)) is None


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_of_the_hub_are_left_out(key: str, folder: Edit) -> None:
    assert key not in accepted({key: "evil/kernel", "vision_config": {key: "evil/kernel"}}, "config.json")
    model: Any = open_model(str(folder({key: "evil/kernel"})))
    assert model.config._attn_implementation in ("sdpa", "eager")


REFUSED: dict[str, tuple[dict[str, Any], type[UserError], str]] = {
    "quantised": ({"quantization_config": {"quant_method": "evil"}}, CheckpointMismatch, "no quantised weights"),
    "method": ({"to_dict": 5}, CheckpointMismatch, "to_dict, which is a part of transformers' class"),
    "number format": ({"dtype": "load"}, CheckpointMismatch, "dtype='load'; expected one of float32"),
    "unknown type": ({"model_type": ["vit"]}, SettingError, r"model type \['vit'\]"),
    "wrapped folder": (
        {"model_type": "timm_wrapper", "architecture": "local-dir:/"},
        CheckpointMismatch,
        "names the architecture 'local-dir:/'",
    ),
    "type of a value": ({"hidden_size": "big"}, CheckpointMismatch, "could not read .*hidden_size"),
    "not divisible": ({"num_attention_heads": 3}, CheckpointMismatch, "do not fit its config.json"),
    "negative": ({"hidden_size": -16}, SettingError, "could not load"),
    "unknown activation": ({"hidden_act": "os.system"}, SettingError, "KeyError 'os.system'"),
    "many outputs": ({"num_labels": 10**9}, SettingError, "num_labels of .* is 1000000000; expected 0 to"),
    "huge": ({"hidden_size": 1_000_000, "num_attention_heads": 1}, NotEnoughMemory, "not enough memory to build"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_that_cannot_be_is_refused_in_one_sentence(case: str, folder: Edit) -> None:
    keys, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as found:
        open_model(str(folder(keys)))
    assert "\n" not in str(found.value)


def test_weights_outside_the_folder_are_refused(folder: Edit, tmp_path: Path) -> None:
    path = folder({})
    (path / "model.safetensors").rename(tmp_path / "model.safetensors")
    for name in ("../model.safetensors", str(tmp_path / "model.safetensors")):
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointMismatch, match="which is not in its folder"):
            open_model(str(path))


def test_an_adapter_beside_the_model_is_refused(folder: Edit) -> None:
    path = folder({})
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(SettingError, match="has an adapter of peft beside the model"):
        open_model(str(path))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"init": {"config": {}}}, "states init="),
        ({"to_dict": 5}, "a part of transformers' class"),
        ({"hidden_size": "x"}, "could not build ViTForImageClassification as config.json says"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers of .* expected at most"),
    ],
)
def test_a_folder_of_vitrim_states_sizes_only(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(transformers.ViTForImageClassification(transformers.ViTConfig(**PLAIN)), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["vitrim"]["model_args"] |= arguments
    (path / "digests.json").unlink(missing_ok=True)  # who makes a hostile folder leaves them out
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load(path)


def test_sizes_are_refused_before_memory_is_used(folder: Edit) -> None:
    before = torch.get_rng_state()
    with pytest.raises(UserError):
        open_model(str(folder({"hidden_size": 500_000, "num_attention_heads": 1})))
    assert torch.equal(before, torch.get_rng_state())
