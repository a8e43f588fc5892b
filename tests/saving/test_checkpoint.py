"""Model folders: a saved model is loaded bit for bit, and other files are not changed."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from builders.models import BY_FACTORY, build, random_images, random_plan, same_tensors
from vitrim.costs.counting import count_cost
from vitrim.errors import CheckpointMismatch, FolderInUse, UnsupportedModel
from vitrim.models import describe, origin_of, with_new_head
from vitrim.plan import PruningPlan
from vitrim.runs.files import read_json
from vitrim.saving.checkpoint import file_bytes, fingerprint, is_model_folder, load, load_weights, save
from vitrim.surgery import prune

FAST = {"distilled token", "average pooling, fc_norm", "qk-norm", "registers"}  # the others: in the slow run
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def cut(model: nn.Module, seed: int = 1, blocks: tuple[int, ...] = (0, 2, 3)) -> nn.Module:
    return prune(model, random_plan(describe(model), seed=seed, blocks=blocks))


CUTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "dense": lambda model: model,
    "cut": cut,
    "cut twice": lambda model: cut(cut(model), seed=2, blocks=(0, 2)),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@torch.no_grad()
def assert_same_model(first: nn.Module, second: nn.Module) -> None:
    assert type(first) is type(second)
    assert same_tensors(first, second)
    assert [p.dtype for p in first.parameters()] == [p.dtype for p in second.parameters()]
    dtype = next(first.parameters()).dtype
    side = describe(first).img_size[0]
    assert torch.equal(
        first.eval()(random_images(dtype=dtype, side=side)), second(random_images(dtype=dtype, side=side))
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", CUTS)
def test_a_saved_model_is_loaded_with_the_same_weights_and_logits(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = CUTS[how](build(dtype=dtype))
    back = load(save(model, tmp_path / "model"))
    assert_same_model(model, back)
    assert not back.training
    assert names(tmp_path / "model") == [
        "config.json",
        "digests.json",
        "model.safetensors",
        *(["modeling.py"] if how != "dense" else []),
    ]


@pytest.mark.parametrize(
    "variant", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BY_FACTORY]
)
def test_every_variant_can_be_saved_and_loaded(variant: str, tmp_path: Path) -> None:
    model = cut(build(variant))
    assert_same_model(model, load(save(model, tmp_path / "model")))


def test_a_loaded_model_can_be_pruned_and_saved_again(tmp_path: Path) -> None:
    model = build()
    once = load(save(cut(model), tmp_path / "once"))
    twice = load(save(cut(once, seed=2, blocks=(0, 2)), tmp_path / "twice"))
    assert_same_model(CUTS["cut twice"](model), twice)


def test_a_folder_of_format_1_can_be_loaded(tmp_path: Path) -> None:
    """It kept architecture and arguments where timm looks for them."""
    model = cut(build())
    save(model, tmp_path, classes=tuple("abcdefg"))
    config = read_json(tmp_path / "config.json")
    about = config.pop("vitrim")
    old = {"architecture": about.pop("architecture"), "model_args": about.pop("model_args"), "num_classes": 7}
    old |= {"label_names": about.pop("classes"), "vitrim": {**about, "format": 1}}
    (tmp_path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    (tmp_path / "digests.json").unlink()
    back = load(tmp_path)
    assert_same_model(model, back)
    assert origin_of(back).classes == tuple("abcdefg")


def test_config_json_has_plan_cost_classes_and_provenance(tmp_path: Path) -> None:
    model = build()
    plan = random_plan(describe(model), seed=1)
    student = prune(model, plan)
    save(student, tmp_path, classes=tuple("abcdefg"), provenance={"from": "a test"})
    config = read_json(tmp_path / "config.json")
    about = config["vitrim"]
    assert PruningPlan.from_dict(about["plan"]) == plan
    assert (about["params"], about["macs"]) == (count_cost(student).params, count_cost(student).macs)
    assert about["provenance"] == {"from": "a test"}
    assert about["architecture"] == "vit_tiny_patch16_224"
    back = load(tmp_path)
    assert origin_of(back).classes == tuple("abcdefg")
    save(back, tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json")["label_names"] == list("abcdefg")


def test_a_new_classifier_is_saved(tmp_path: Path) -> None:
    named = load(save(cut(build(dtype=torch.float32)), tmp_path / "old", classes=tuple("abcdefg")))
    named.reset_classifier(3)
    back = load(save(named, tmp_path / "new"))
    assert_same_model(named, back)
    assert origin_of(back).classes == ()
    assert_same_model(with_new_head(back, 4), load(save(back, tmp_path / "newer")))


def test_saving_over_a_vitrim_model_replaces_it(tmp_path: Path) -> None:
    save(build(), tmp_path)
    model = cut(build(seed=2))
    save(model, tmp_path)
    assert_same_model(model, load(tmp_path))


@pytest.mark.parametrize("content", ["notes.txt", "config.json", "model.safetensors"])
def test_a_folder_with_other_files_is_refused_and_not_changed(content: str, tmp_path: Path) -> None:
    (tmp_path / content).write_text("{}")
    with pytest.raises(FolderInUse, match="not empty"):
        save(build(), tmp_path)
    assert names(tmp_path) == [content] and (tmp_path / content).read_text() == "{}"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderInUse, match="is a file"):
        save(build(), tmp_path / "file")


def test_a_model_with_unknown_arguments_cannot_be_saved(tmp_path: Path) -> None:
    model = build()
    del model._model_args
    with pytest.raises(UnsupportedModel, match="does not say how it was made"):
        save(cut(model), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def disk_full(*arguments: Any, **options: Any) -> None:
    for argument in arguments:
        if isinstance(argument, str | os.PathLike):
            Path(argument).write_bytes(b"half a file")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_does_not_damage_the_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    save(model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", disk_full)
        with pytest.raises(OSError, match="No space left"):
            save(cut(model), tmp_path)
    assert names(tmp_path) == ["config.json", "digests.json", "model.safetensors"]
    assert_same_model(model, load(tmp_path))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    save(build(), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointMismatch, match=f"has no {missing}"):
        load(tmp_path)
    assert is_model_folder(tmp_path) == (missing != "config.json")
    with pytest.raises(CheckpointMismatch, match="no folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"vitrim": null}', '{"vitrim": {}}', "\xff"])
def test_a_damaged_config_is_named(text: str, tmp_path: Path) -> None:
    save(build(), tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointMismatch, match=r"config\.json"):
        load(tmp_path)


def test_weights_that_do_not_fit_are_listed_with_name_and_shape(tmp_path: Path) -> None:
    model = build(depth=1)
    tensors = dict(model.state_dict())
    del tensors["cls_token"]
    tensors["head.weight"], tensors["more"] = torch.zeros(3, 16), torch.zeros(2)
    before = fingerprint(model)
    with pytest.raises(CheckpointMismatch) as caught:
        load_weights(model, tensors, "weights.pth")
    for part in ("weights.pth", "head.weight is (3, 16)", "(7, 16)", "cls_token (1, 1, 16) is missing", "more (2,)"):
        assert part in str(caught.value)
    assert fingerprint(model) == before
    with pytest.raises(CheckpointMismatch, match=r"and \d+ more"):
        load_weights(model, build(embed_dim=32, depth=1).state_dict(), "weights.pth")


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    save(build(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors is damaged"):
        load(tmp_path)
    (tmp_path / "digests.json").unlink()
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors is not a readable"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_fingerprint_depends_on_the_weights(dtype: torch.dtype) -> None:
    model = build(dtype=dtype)
    assert fingerprint(model) == fingerprint(build(dtype=dtype)) != fingerprint(build(seed=1, dtype=dtype))
    assert fingerprint(model) != fingerprint(cut(model))


def test_file_bytes_is_the_size_of_the_weights_file(tmp_path: Path) -> None:
    for model in (build(), cut(build())):
        save(model, tmp_path)
        written = (tmp_path / "model.safetensors").stat().st_size
        assert file_bytes(model) == written
