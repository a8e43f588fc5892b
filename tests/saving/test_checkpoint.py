"""Laws of the files: what is written is read back bit for bit, whole or not at all, and nothing foreign is touched."""

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

from benchmarks.costs.ratios import count_operations
from builders.models import BY_FACTORY, build, random_images, random_plan, same_tensors
from vitrim.costs.counting import count_cost
from vitrim.errors import CheckpointMismatch, FolderInUse, UnsupportedModel
from vitrim.models import describe, origin_of, with_new_head
from vitrim.plan import PruningPlan
from vitrim.runs.files import RUN, read_json, read_tensors, write_tensors, write_text, writing
from vitrim.runs.folder import RunFolder
from vitrim.saving.checkpoint import file_bytes, fingerprint, is_model_folder, load, load_weights, save
from vitrim.surgery import prune

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
def test_saving_and_loading_gives_the_same_model(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = CUTS[how](build(dtype=dtype))
    back = load(save(model, tmp_path / "model"))
    assert_same_model(model, back)
    assert not back.training
    assert names(tmp_path / "model") == [
        "config.json",
        "model.safetensors",
        *(["modeling.py"] if how != "dense" else []),
    ]


@pytest.mark.parametrize("variant", BY_FACTORY)
def test_every_variant_is_built_again(variant: str, tmp_path: Path) -> None:
    model = cut(build(variant))
    assert_same_model(model, load(save(model, tmp_path / "model")))


def test_a_loaded_model_can_be_cut_and_saved_again(tmp_path: Path) -> None:
    model = build()
    once = load(save(cut(model), tmp_path / "once"))
    twice = load(save(cut(once, seed=2, blocks=(0, 2)), tmp_path / "twice"))
    assert_same_model(CUTS["cut twice"](model), twice)


def test_folders_of_the_first_format_are_still_read(tmp_path: Path) -> None:
    """It kept architecture and arguments where timm looks for them."""
    model = cut(build())
    save(model, tmp_path, classes=tuple("abcdefg"))
    config = read_json(tmp_path / "config.json")
    about = config.pop("vitrim")
    old = {"architecture": about.pop("architecture"), "model_args": about.pop("model_args"), "num_classes": 7}
    old |= {"label_names": about.pop("classes"), "vitrim": {**about, "format": 1}}
    (tmp_path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    back = load(tmp_path)
    assert_same_model(model, back)
    assert origin_of(back).classes == tuple("abcdefg")


def test_the_config_tells_plan_cost_classes_and_provenance(tmp_path: Path) -> None:
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


def test_a_new_classifier_is_saved_too(tmp_path: Path) -> None:
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
def test_a_foreign_folder_is_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / content).write_text("{}")
    with pytest.raises(FolderInUse, match="not empty"):
        save(build(), tmp_path)
    assert names(tmp_path) == [content] and (tmp_path / content).read_text() == "{}"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderInUse, match="is a file"):
        save(build(), tmp_path / "file")


def test_a_model_that_does_not_say_how_it_was_built_cannot_be_saved(tmp_path: Path) -> None:
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


def test_a_full_disk_leaves_the_old_model_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    save(model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", disk_full)
        with pytest.raises(OSError, match="No space left"):
            save(cut(model), tmp_path)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    assert_same_model(model, load(tmp_path))


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    for problem in (OSError(errno.ENOSPC, "full"), KeyboardInterrupt()):
        with pytest.raises(type(problem)), writing(tmp_path / "file") as path:
            path.write_text("new, but")
            assert (tmp_path / "file").read_text() == "old"
            raise problem
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"
    with writing(tmp_path / "file") as path:
        path.write_text("new")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_named(missing: str, tmp_path: Path) -> None:
    save(build(), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointMismatch, match=f"has no {missing}"):
        load(tmp_path)
    assert is_model_folder(tmp_path) == (missing != "config.json")
    with pytest.raises(CheckpointMismatch, match="no folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"vitrim": null}', '{"vitrim": {}}', "\xff"])
def test_a_broken_config_is_named(text: str, tmp_path: Path) -> None:
    save(build(), tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointMismatch, match=r"config\.json"):
        load(tmp_path)


def test_weights_that_do_not_fit_are_listed_by_key_and_shape(tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors is not a readable"):
        load(tmp_path)


WRAPPINGS: dict[str, Callable[[dict], dict]] = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "arch": "vit"},
    "ema first": lambda state: {"state_dict_ema": state, "state_dict": {"head.weight": torch.zeros(1)}},
    "module prefix": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_checkpoints_of_training_scripts_are_unwrapped(wrapping: str, tmp_path: Path) -> None:
    model = build()
    torch.save(WRAPPINGS[wrapping](model.state_dict()), tmp_path / "weights.pth")
    other = build(seed=1)
    load_weights(other, read_tensors(tmp_path / "weights.pth"), "weights.pth")
    assert same_tensors(model, other)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_executed(zipped: bool, tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "owned")}, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointMismatch, match="executes no pickled code"):
        read_tensors(tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"hello",
        b"aaa",
        b"(lp0",
        b"tensors: none",
        b"not a checkpoint",
        b"\x80\x02",
        b"PK\x03\x04",
        bytes(200),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.bin"])
def test_files_that_are_no_checkpoints_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=name):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [{}, [], 3, {"model": {"epoch": 3}}, {"head": [torch.zeros(1)]}], ids=repr)
def test_checkpoints_without_a_state_dict_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointMismatch, match="no state dict"):
        read_tensors(tmp_path / "weights.pth")
    with pytest.raises(CheckpointMismatch, match="no file"):
        read_tensors(tmp_path / "nothing.pth")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fingerprints_follow_the_weights(dtype: torch.dtype) -> None:
    model = build(dtype=dtype)
    assert fingerprint(model) == fingerprint(build(dtype=dtype)) != fingerprint(build(seed=1, dtype=dtype))
    assert fingerprint(model) != fingerprint(cut(model))


def test_file_bytes_is_the_size_on_disk(tmp_path: Path) -> None:
    for model in (build(), cut(build())):
        save(model, tmp_path)
        written = (tmp_path / "model.safetensors").stat().st_size
        assert file_bytes(model) == written


# Run folders

IDENTITY = {"recipe": {"budget": {"params": 0.7}, "seeds": (0, 1)}, "model": "vit"}


def counted(calls: list[int], value: Any) -> Callable[[], Any]:
    def make() -> Any:
        calls.append(1)
        return value

    return make


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(3):
        run = RunFolder(tmp_path / "run", IDENTITY)
        assert run.once_json("scores.json", counted(calls, {"a": [1, 2]})) == {"a": [1, 2]}
    assert len(calls) == 1


def test_a_plan_is_made_once_and_stays_readable(tmp_path: Path) -> None:
    plan, calls = random_plan(describe(build())), []
    for _ in range(2):
        assert RunFolder(tmp_path, IDENTITY).once_plan("plan.json", counted(calls, plan)) == plan
    assert len(calls) == 1
    assert PruningPlan.from_json((tmp_path / "plan.json").read_text()) == plan


def test_a_folder_is_a_stage_too(tmp_path: Path) -> None:
    model, calls = build(), []
    for _ in range(2):
        back = RunFolder(tmp_path, IDENTITY).once("model", counted(calls, model), save, load)
        assert_same_model(model, back)
    assert len(calls) == 1


def test_a_failed_stage_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, IDENTITY)

    def fail(value: Any, path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        run.once("stage", lambda: 1, fail, read_json)
    with pytest.raises(KeyError):
        run.once_json("stage", lambda: {}["nothing"])
    assert names(tmp_path) == [RUN]
    assert run.once_json("stage", lambda: 2) == 2


def test_leftovers_of_a_killed_run_do_not_matter(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, IDENTITY)
    leftover = tmp_path / ".model.partial"
    leftover.mkdir()
    (leftover / "old.txt").touch()
    run.once("model", build, save, load)
    assert names(tmp_path) == ["model", RUN]
    assert names(tmp_path / "model") == ["config.json", "model.safetensors"]


def test_another_run_is_refused_with_its_differences(tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY).once_json("stage.json", lambda: 1)
    other = {"recipe": {"budget": {"params": 0.5}, "seeds": [0, 1]}, "model": "deit"}
    with pytest.raises(FolderInUse) as caught:
        RunFolder(tmp_path, other)
    assert 'model was "vit", now "deit"' in str(caught.value)
    assert "recipe.budget.params was 0.7, now 0.5" in str(caught.value)
    assert "seeds" not in str(caught.value)
    RunFolder(tmp_path, IDENTITY)


@pytest.mark.parametrize("other", [{**IDENTITY, "more": 1}, {"model": "vit"}], ids=["more", "less"])
def test_more_or_less_is_another_run(other: dict, tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY).once_json("stage.json", lambda: 1)
    with pytest.raises(FolderInUse, match="made from something else"):
        RunFolder(tmp_path, other)


def test_a_folder_in_which_nothing_was_made_yet_can_be_taken_by_a_corrected_command(tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY)
    RunFolder(tmp_path, {"model": "corrected"}).once_json("stage.json", lambda: 1)
    with pytest.raises(FolderInUse, match="corrected"):
        RunFolder(tmp_path, IDENTITY)


def test_foreign_folders_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FolderInUse, match="holds no vitrim run"):
        RunFolder(tmp_path, IDENTITY)
    with pytest.raises(FolderInUse, match="is a file"):
        RunFolder(tmp_path / "notes.txt", IDENTITY)
    assert names(tmp_path) == ["notes.txt"]


def test_a_broken_identity_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY).once_json("stage.json", lambda: 1)
    (tmp_path / RUN).write_text(json.dumps(IDENTITY)[:-5])
    with pytest.raises(CheckpointMismatch, match=RUN):
        RunFolder(tmp_path, IDENTITY)


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    save(build(), tmp_path)
    weights, config = ((tmp_path / name).stat().st_mode for name in ("model.safetensors", "config.json"))
    assert weights == config


def test_tensors_that_share_memory_are_written_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"whole": base, "again": base, "turned": base.T, "a part": base[1:], "trained": nn.Parameter(base)}
    write_tensors(tmp_path / "shared.safetensors", tensors, {})
    found = read_tensors(tmp_path / "shared.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items()) and len(found) == len(tensors)


def test_writing_weights_copies_nothing_that_lies_alone(tmp_path: Path) -> None:
    tensors = {"one": torch.zeros(1000), "other": torch.ones(1000)}
    assert count_operations(lambda: write_tensors(tmp_path / "alone.safetensors", tensors, {})).peak_bytes == 0
