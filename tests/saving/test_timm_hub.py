"""Models that were cut load through timm and transformers as any other, once vitrim is imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from builders.models import build, random_images, random_plan, same_tensors
from vitrim.errors import SettingError
from vitrim.models import describe, origin_of
from vitrim.saving.checkpoint import load, save
from vitrim.saving.opening import open_model
from vitrim.surgery import prune

IMAGES = random_images(dtype=torch.float32)


@pytest.fixture(scope="module")
def student() -> nn.Module:
    model = build(dtype=torch.float32)
    return prune(model, random_plan(describe(model), seed=1, blocks=(0, 2, 3)))


@pytest.fixture(scope="module")
def folder(student: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(student, tmp_path_factory.mktemp("cut"), classes=tuple("abcdefg"))


@pytest.mark.parametrize("pretrained", [True, False])
def test_timm_loads_a_cut_model_with_its_weights(pretrained: bool, student: nn.Module, folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=pretrained).eval()
    assert type(model) is type(student)
    assert same_tensors(model, student)
    assert torch.equal(model(IMAGES), student(IMAGES))
    assert model.pretrained_cfg["mean"] == list(student.pretrained_cfg["mean"])


def test_timm_gives_it_another_classifier(student: nn.Module, folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", num_classes=3).eval()
    assert model(IMAGES).shape == (4, 3)
    assert torch.equal(model.forward_features(IMAGES), student.forward_features(IMAGES))
    assert origin_of(model).model_args["num_classes"] == 3


def test_timm_gives_its_features(student: nn.Module, folder: Path) -> None:
    wrapper = timm.create_model(f"local-dir:{folder}", features_only=True).eval()
    parent = timm.create_model("vit_tiny_patch16_224", features_only=True, img_size=32, embed_dim=16, num_heads=4)
    assert type(wrapper) is type(parent)
    _, wanted = student.forward_intermediates(IMAGES, indices=3)
    found = wrapper(IMAGES)
    assert len(found) == len(wanted) == 3
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_timm_builds_it_for_another_image_size(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", img_size=48).eval()
    assert model(random_images(side=48, dtype=torch.float32)).shape == (4, 7)


def test_what_timm_loaded_can_be_cut_and_saved_again(folder: Path, tmp_path: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}").eval()
    plan = random_plan(describe(model), seed=5, blocks=(0, 2))
    twice = prune(model, plan)
    save(twice, tmp_path)
    for again in (load(tmp_path), timm.create_model(f"local-dir:{tmp_path}").eval()):
        assert torch.equal(again(IMAGES), twice(IMAGES))
    assert [kept.block for kept in origin_of(twice).plan.blocks] == [0, 3]


def test_timm_loads_it_from_the_hub(student: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is stood in for by a function that gives the folder's files; no network is needed."""

    def download(repo_id: str, filename: str, **options: object) -> str:
        assert repo_id == "someone/small-vit"
        if not (folder / filename).is_file():
            from huggingface_hub.errors import EntryNotFoundError

            raise EntryNotFoundError(filename)
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = timm.create_model("hf-hub:someone/small-vit").eval()
    assert torch.equal(model(IMAGES), student(IMAGES))


def test_a_dense_model_loads_through_timm_under_its_own_name(tmp_path: Path) -> None:
    dense = build(dtype=torch.float32)
    save(dense, tmp_path)
    assert not (tmp_path / "modeling.py").exists()
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(model(IMAGES), dense(IMAGES))


def test_transformers_loads_it_in_its_timm_wrapper(student: nn.Module, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert torch.equal(model(IMAGES).logits, student(IMAGES))
    assert [model.config.id2label[index] for index in range(7)] == list("abcdefg")


def run(code: str, *arguments: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_vitrim_is_light_and_enough(student: nn.Module, folder: Path) -> None:
    """In a fresh process: vitrim first, nothing heavy with it, then timm, which knows the architecture."""
    code = """
import sys, vitrim
assert not {"torch", "timm", "numpy", "transformers"} & sys.modules.keys()
import timm, torch
model = timm.create_model(f"local-dir:{sys.argv[1]}").eval()
torch.manual_seed(0)
with torch.no_grad():
    print(model(torch.ones(1, 3, 32, 32)).sum().item())
"""
    with torch.no_grad():
        assert float(run(code, folder)) == pytest.approx(student(torch.ones(1, 3, 32, 32)).sum().item(), abs=1e-5)


@pytest.mark.slow  # the default run executes each family's `modeling.py` in this process
def test_the_file_beside_the_weights_needs_no_vitrim(student: nn.Module, folder: Path, tmp_path: Path) -> None:
    """In a fresh process in which `import vitrim` fails, from a copy of the folder."""
    shutil.copytree(folder, tmp_path / "copy")
    code = """
import sys
sys.modules["vitrim"] = None
import torch
from modeling import load_model
with torch.no_grad():
    print(load_model()(torch.ones(1, 3, 32, 32)).sum().item())
"""
    with torch.no_grad():
        wanted = student(torch.ones(1, 3, 32, 32)).sum().item()
    assert float(run(code, cwd=tmp_path / "copy")) == pytest.approx(wanted, abs=1e-5)


def test_a_folder_that_timm_wrote_is_opened(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    dense = build(dtype=torch.float32)
    save_for_hf(dense, tmp_path, model_config={"num_classes": 7}, safe_serialization=True)
    opened = open_model(str(tmp_path))
    assert torch.equal(opened(IMAGES), dense(IMAGES))
    student = prune(opened, random_plan(describe(opened), seed=1))
    save(student, tmp_path / "cut")
    assert torch.equal(load(tmp_path / "cut")(IMAGES), student(IMAGES))


def test_a_folder_that_transformers_wrote_is_opened(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16, num_labels=7)
    dense = transformers.ViTForImageClassification(config).eval()
    dense.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    assert type(opened) is type(dense)
    assert torch.equal(opened(IMAGES).logits, dense(IMAGES).logits)


def test_names_may_say_their_library() -> None:
    model = open_model("torchvision:vit_b_16", img_size=32, num_classes=3)
    assert type(model).__module__.startswith("torchvision.")
    assert model(IMAGES).shape == (4, 3)
    assert type(open_model("timm:vit_tiny_patch16_224", img_size=32)).__module__.startswith("timm.")


@pytest.mark.parametrize(
    "name", ["someone/small-vit", "torchvision:no_such_model", "timm:no_such_model", "transformers:NoSuchModel"]
)
def test_names_that_nothing_goes_by_are_refused_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError):
        open_model(name)


def test_a_model_with_fewer_blocks_than_its_parent_gives_features_of_gives_those_it_has(tmp_path: Path) -> None:
    dense = build(dtype=torch.float32)
    save(prune(dense, random_plan(describe(dense), seed=2, blocks=(0, 3))), tmp_path)
    assert len(timm.create_model(f"local-dir:{tmp_path}", features_only=True).eval()(IMAGES)) == 2
