"""Which file or folder is opened for a path: shards, a part of a folder, folders of trainings, adapters."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from builders.checkpoints import ARGUMENTS, tiny
from builders.models import VIT, random_images, same_tensors
from vitrim.errors import CheckpointMismatch, SettingError
from vitrim.saving.checkpoint import save
from vitrim.saving.opening import open_model
from vitrim.saving.weight_files import resolve_model_path

IMAGES = random_images(dtype=torch.float32)
ARGS = {"arch": VIT, "model_args": {**ARGUMENTS, "depth": 2}}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny()


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_shards(folder: Path, state: dict[str, Tensor], ending: str) -> None:
    """Two files and their index, as transformers writes them."""
    folder.mkdir()
    name, suffix = ("model", ".safetensors") if ending == "safetensors" else ("pytorch_model", ".bin")
    items, places = list(state.items()), {}
    for number, part in enumerate((dict(items[:5]), dict(items[5:])), 1):
        file = f"{name}-0000{number}-of-00002{suffix}"
        safetensors.torch.save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{name}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_model_in_several_files_is_opened_by_its_index_or_folder(ending: str, model: nn.Module) -> None:
    write_shards(Path("shards"), model.state_dict(), ending)
    index = next(Path("shards").glob("*.index.json"))
    assert torch.equal(open_model(str(index), **ARGS)(IMAGES), model(IMAGES))
    assert torch.equal(open_model("shards", **ARGS)(IMAGES), model(IMAGES))
    with pytest.raises(SettingError, match=rf"has no config\.json, but files of weights.*{index.name}.*--arch"):
        open_model("shards")


def test_a_missing_shard_or_one_outside_the_folder_is_refused_by_name(model: nn.Module) -> None:
    write_shards(Path("shards"), model.state_dict(), "bin")
    second = Path("shards/pytorch_model-00002-of-00002.bin")
    second.rename("elsewhere.bin")
    index = Path("shards/pytorch_model.bin.index.json")
    with pytest.raises(CheckpointMismatch, match=rf"lists {second.name}, which is not in its folder"):
        open_model(str(index), **ARGS)
    index.write_text(index.read_text().replace(second.name, "../elsewhere.bin"))
    with pytest.raises(CheckpointMismatch, match=r"lists \.\./elsewhere\.bin, which is not in its folder"):
        open_model(str(index), **ARGS)
    torch.save({"head.bias": torch.ones(7)}, second)
    index.write_text(index.read_text().replace("../elsewhere.bin", second.name))
    with pytest.raises(CheckpointMismatch, match=rf"{second.name} does not have it"):
        open_model(str(index), **ARGS)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_part_of_a_model_folder_opens_the_folder(
    file: str, model: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    save(model, "plain")
    assert same_tensors(open_model(f"plain/{file}"), model)
    assert f"plain/{file} is a part of a model folder; the folder plain is opened" in capsys.readouterr().err
    if file == "model.safetensors":
        assert same_tensors(open_model(f"plain/{file}", **ARGS), model)


def trainer(steps: dict[int, str | None]) -> None:
    """Folders `checkpoint-N` with a configuration, and the best checkpoint that each of them notes."""
    for step, best in steps.items():
        folder = Path(f"trainer/checkpoint-{step}")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))


@pytest.mark.parametrize(
    ("steps", "chosen", "said"),
    [
        ({90: None, 100: None, 20: None}, 100, "the last one"),
        ({90: None, 100: "/old/place/checkpoint-90"}, 90, "the best one"),
        ({90: None, 100: "/old/place/checkpoint-10"}, 100, "the last one"),
    ],
)
def test_of_the_checkpoints_of_a_trainer_the_best_or_last_is_opened_and_said(
    steps: dict[int, str | None], chosen: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(steps)
    assert resolve_model_path(Path("trainer"), None) == Path(f"trainer/checkpoint-{chosen}")
    assert f"trainer/checkpoint-{chosen} is opened, {said}" in capsys.readouterr().err


def test_the_model_that_a_trainer_saved_itself_comes_first() -> None:
    trainer({10: None})
    Path("trainer/config.json").write_text("{}")
    assert resolve_model_path(Path("trainer"), None) == Path("trainer")


def test_an_adapter_of_peft_is_refused_with_how_to_merge_it() -> None:
    Path("lora").mkdir()
    Path("lora/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "google/vit"}))
    Path("lora/adapter_model.safetensors").touch()
    for name in ("lora", "lora/adapter_model.safetensors"):
        with pytest.raises(SettingError, match=r"adapter of peft for google/vit.*merge_and_unload"):
            open_model(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("training_args.bin", "the settings of a training"),
        ("optimizer.pt", "the state of an optimizer"),
        ("preprocessor_config.json", "a text file"),
        ("model.onnx", "an ONNX file"),
        ("tf_model.h5", "a file of Keras"),
        ("flax_model.msgpack", "a file of Flax"),
    ],
)
def test_a_file_without_weights_is_refused_by_its_kind(name: str, said: str) -> None:
    Path(name).touch()
    with pytest.raises(CheckpointMismatch, match=rf"is {said}; expected a model"):
        open_model(name, **ARGS)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["last.pth.tar", "model_best.pth.tar", "summary.csv"], "model_best.pth.tar"),
        (["checkpoints/epoch=1.ckpt", "checkpoints/last.ckpt", "hparams.yaml"], "last.ckpt"),
        (["model.safetensors", "optimizer.bin", "random_states_0.pkl"], "model.safetensors"),
    ],
)
def test_a_folder_of_a_training_is_refused_with_the_file_to_name(files: list[str], named: str) -> None:
    for file in files:
        path = Path("run", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(SettingError, match=rf"files of weights.*{named} with arch \(--arch\)"):
        open_model("run")


def test_a_distributed_checkpoint_is_refused_with_how_to_convert_it() -> None:
    Path("distributed").mkdir()
    Path("distributed/__0_0.distcp").touch()
    with pytest.raises(SettingError, match="dcp_to_torch"):
        open_model("distributed")
