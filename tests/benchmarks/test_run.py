"""Laws of `python -m benchmarks.run`: arms are complete and comparable, and a cell goes on where it was stopped."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.ablation import recipes_between
from benchmarks.architectures import fresh_model, model_to_train, narrow_model, uniform_counts, uniform_plan
from benchmarks.cell import alone_in, load_images, seconds_in
from benchmarks.config import (
    ARMS,
    CONFIGS,
    CONTROL,
    CellConfig,
    dense_recipe,
    load_config,
    recipe_for,
    scratch_training,
    student_training,
)
from benchmarks.measurements import read_measurements
from benchmarks.run import app, status_of
from builders.models import same_tensors
from builders.runs import DIGITS_SIZES
from vitrim import cli
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.errors import BudgetError, SettingError
from vitrim.losses import check_relation_heads
from vitrim.models import describe, origin_of
from vitrim.planning import check_budget
from vitrim.recipe import from_table
from vitrim.saving.checkpoint import load
from vitrim.structure import ViTStructure
from vitrim.training import _Loop

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {**{key: DIGITS_SIZES[key] for key in ("embed_dim", "num_heads")}, "depth": 2, "qkv_bias": False}
PLAIN = {"crop": "none", "flip": 0.0, "rand_augment_ops": 0, "mixup": 0.0, "cutmix": 0.0}
TRAINING = {"batch_size": 20, "warmup_epochs": 0, "checkpoint_minutes": 0.0, "augmentation": PLAIN}
CELL: dict[str, Any] = {
    "name": "tiny",
    "model_name": "tiny ViT",
    "dataset": "digits",
    "seeds": [0, 1],
    "keeps": [0.6, 0.5],
    "student_epochs": 3,
    "data": {"source": "digits", "limit_per_class": 6},
    "model": {"architecture": ARCHITECTURE, "img_size": 8, "patch_size": 4, "model_args": MODEL_ARGS},
    "dense": {"training": {"epochs": 6, **TRAINING}},
    "student": TRAINING,
    "recipe": {
        "budget": {"min_neurons": 4},
        "importance": {"num_images": 40, "batch_size": 20},
        "depth": {"search_images": 40, "search_epochs": 1, "max_share": 0.5},
        "latency": {"rounds": 1, "warmup": 0},
    },
}
IN_ONE_WORKER = pytest.mark.xdist_group("the whole cell")  # which takes some time to make


def _status(arguments: list[str]) -> int:
    return status_of(app, arguments)


def cell_file(folder: Path, **changes: Any) -> str:
    path = folder / "cell.toml"
    path.write_text(tomli_w.dumps({**CELL, **changes}))
    return str(path)


def config(**changes: Any) -> CellConfig:
    return from_table(CellConfig, {**CELL, **changes})


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said about arguments that are refused: one line."""
    capsys.readouterr()
    assert _status(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("benchmarks.run: ")]
    assert len(lines) == 1
    return lines[0]


def finished(out: Path) -> list[str]:
    return sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("arm.json"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cell of one seed and one share with all nine arms."""
    folder = tmp_path_factory.mktemp("whole")
    assert _status([cell_file(folder), "-o", str(folder / "out"), "--seeds", "0", "--keeps", ".5"]) == 0
    yield folder / "out"


@IN_ONE_WORKER
def test_every_arm_leaves_a_record_that_the_tables_take(whole):
    found, notes = read_measurements([whole])
    assert notes == [] and {item.values["arm"] for item in found} == set(ARMS)
    for record in (item.values for item in found):
        is_cut = record["arm"] not in ("scratch", "timm-small", CONTROL)
        assert (record["after_cut"] is not None) == is_cut
        assert (record["after_recover"] is not None) == (record["arm"] == "vitrim")
        assert record["stages"][-1]["top1"] == record["evaluation"]["top1"]
        assert (record["search_epochs"] > 0) == (record["arm"] == "vitrim")
        assert record["seconds"] > 0 and record["images_per_second"] > 0
        assert record["keep"] == (1.0 if record["arm"] == CONTROL else 0.5)
        assert max(record["params_ratio"], record["macs_ratio"]) <= record["keep"]
        assert record["command"].endswith("-o runs/tiny") and "/tmp" not in json.dumps(record)


@IN_ONE_WORKER
def test_training_costs_three_passes_of_the_student_and_one_of_the_teacher(whole):
    dense = count_cost(load(whole / "seed-0" / "dense")).macs
    for item in read_measurements([whole])[0]:
        teacher = 0 if item.values["arm"] == CONTROL else dense
        assert item.values["train_macs_per_image"] == 3 * item.values["stages"][-1]["macs"] + teacher


@IN_ONE_WORKER
def test_scratch_has_the_architecture_of_vitrim_and_other_weights(whole):
    ours, scratch = (load(whole / "seed-0" / "keep-0.5" / arm) for arm in ("vitrim", "scratch"))
    assert origin_of(ours).plan == origin_of(scratch).plan
    assert not same_tensors(ours, scratch)


@IN_ONE_WORKER
def test_a_finished_cell_is_left_as_it_is(whole, monkeypatch):
    monkeypatch.setattr(_Loop, "_update", lambda *_: 1 / 0)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("arm.json")}
    config_file = str(whole.parent / "cell.toml")
    assert _status([config_file, "-o", str(whole), "--seeds", "0", "--keeps", "0.5"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("arm.json")}


@IN_ONE_WORKER
def test_the_dense_model_is_what_the_command_line_trains(whole, monkeypatch):
    monkeypatch.setattr(_Loop, "_update", lambda *_: 1 / 0)  # a run with another identity would train again
    recipe = whole / "seed-0" / "dense" / "recipe.toml"
    options = [f"--model-arg={key}={str(value).lower()}" for key, value in MODEL_ARGS.items()]
    command = ["train", ARCHITECTURE, "--img-size", "8", "--patch-size", "4", *options, "--limit-per-class", "6"]
    assert cli._status([*command, "--recipe", str(recipe), "-o", str(recipe.parent)]) == 0


@IN_ONE_WORKER
def test_another_cell_is_refused_and_its_difference_named(whole, capsys, tmp_path):
    other = cell_file(tmp_path, student={**TRAINING, "learning_rate": 1e-4})
    assert "student.learning_rate was null, now 0.0001" in complaint([other, "-o", str(whole)], capsys)


def test_a_stopped_cell_ends_with_the_same_models(tmp_path, monkeypatch):
    command = [cell_file(tmp_path), "--seeds", "1", "--keeps", "0.6", "--arms", f"vitrim,random,{CONTROL}"]
    assert _status([*command, "-o", str(tmp_path / "once")]) == 0
    update, done = _Loop._update, 0

    def stopped_now_and_then(*arguments: Any) -> None:
        nonlocal done
        done += 1
        if done % 9 == 0:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(_Loop, "_update", stopped_now_and_then)
    statuses = [_status([*command, "-o", str(tmp_path / "often")])]
    while statuses[-1]:
        statuses.append(_status([*command, "-o", str(tmp_path / "often")]))
    assert len(statuses) > 3 and set(statuses[:-1]) == {2}
    places = finished(tmp_path / "once")
    assert len(places) == 3 and finished(tmp_path / "often") == places
    for place in places:
        assert same_tensors(load(tmp_path / "once" / place), load(tmp_path / "often" / place))
        one, two = (json.loads((tmp_path / run / place / "arm.json").read_text()) for run in ("once", "often"))
        kept = ("evaluation", "after_cut", "after_recover", "stages", "search_epochs", "dense")
        assert {key: one[key] for key in kept} == {key: two[key] for key in kept}


def test_a_part_of_the_cell_can_be_selected_and_what_it_needs_comes_along(tmp_path, capsys):
    command = [cell_file(tmp_path), "-o", str(tmp_path / "out")]
    assert _status([*command, "--seeds", "1", "--keeps", ".60", "--arms", "scratch"]) == 0
    assert finished(tmp_path / "out") == ["seed-1/keep-0.6/scratch", "seed-1/keep-0.6/vitrim"]
    assert "it has 0, 1." in complaint([*command, "--seeds", "0,2"], capsys)
    assert "it has 0.6, 0.5." in complaint([*command, "--keeps", "0.7"], capsys)
    assert "'vitrm'" in complaint([*command, "--arms", "vitrm"], capsys)
    assert "digits come with" in complaint([*command, "--data", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"nam": "a"}, "did you mean name?"),
        ({"arms": ["vitrim", "magnitud"]}, "did you mean magnitude?"),
        ({"keeps": [1.5]}, "shares between 0 and 1"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"student_epochs": 4}, "at most half of the dense model's 6"),
        ({"tuning_share": 1.0}, "tuning_share is 1"),
        ({"student": {"learningrate": 1}}, "did you mean student.learning_rate?"),
        ({"student": {"distillation": {"soft": 0.5}}}, "student.distillation cannot be set"),
        ({"recipe": {"budget": {"params": 0.5}}}, "recipe.budget.params cannot be set"),
        ({"vitrim": {"depth": {"blcks": 1}}}, "did you mean vitrim.depth.blocks?"),
        ({"dense": {"seed": 1}}, "dense.seed cannot be set"),
        ({"data": {"source": ""}}, "data.source"),
        ({"model": {**CELL["model"], "weights": "a.pth", "pretrained": True}}, "set one of them"),
    ],
)
def test_a_wrong_configuration_is_named(changes, expected):
    with pytest.raises(SettingError) as problem:
        config(**changes)
    assert expected in str(problem.value)


@pytest.mark.parametrize("text", ["seeds = 3", "dense = 3", "name = ", 'name = "x"\nhardware = "tpu"'])
def test_a_wrong_file_is_refused_in_one_sentence(text, tmp_path, capsys):
    (tmp_path / "cell.toml").write_text(text)
    complaint([str(tmp_path / "cell.toml"), "-o", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()
    assert "smoke.toml" in complaint([str(tmp_path / "other.toml"), "-o", str(tmp_path / "out")], capsys)


def test_our_changes_reach_our_arms_alone_and_hard_labels_learn_from_labels():
    cell = config(vitrim={"depth": {"blocks": 1}, "width_training": {"distillation": {"soft": 0.5}}})
    ours, paper, hard = (recipe_for(cell, arm, keep=0.5, seed=3) for arm in ("vitrim", "paper", "hard-labels"))
    assert (ours.depth.blocks, ours.width_training.distillation.soft) == (1, 0.5)
    assert paper.width_training.distillation.soft == 1.0 and not paper.recovery.enabled
    losses = hard.depth_training.distillation
    assert (losses.hard, losses.soft, losses.hidden, losses.relations) == (1, 0, 0, 0)
    assert replace(hard, width_training=paper.width_training, depth_training=paper.depth_training) == paper
    assert student_training(cell).distillation.soft == 0.5
    for recipe in (ours, paper, hard):
        assert (recipe.seed, recipe.budget.params, recipe.budget.macs) == (3, 0.5, 0.5)
        assert (recipe.width_training.epochs, recipe.depth_training.epochs) == (2, 1)
        assert recipe.width_training.augmentation.crop == "none"


@pytest.mark.parametrize("keep", [0.8, 0.6, 0.4, 0.3])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_cut_alike_all_blocks_keep_the_same_share_within_the_budget(keep, multiple_of):
    budget = Budget(params=keep, macs=keep, min_neurons=4, multiple_of=multiple_of)
    cell = config(model={**CELL["model"], "model_args": {**MODEL_ARGS, "depth": 4}})
    dense = fresh_model(cell, 10, 0)
    structure, limit = describe(dense), budget.limit(count_cost(dense))
    plan = uniform_plan(dense, [], "magnitude", budget)
    cost = count_cost(structure, plan)
    assert cost.params <= limit.params and cost.macs <= limit.macs
    assert len({len(block.heads) for block in plan.blocks}) == 1
    neurons = [len(block.neurons) for block in plan.blocks]
    assert neurons == sorted(neurons, reverse=True) and neurons[0] - neurons[-1] in (0, multiple_of)
    step = structure.blocks[0].neurons
    room = (limit.params - cost.params, limit.macs - cost.macs)
    assert room[0] < multiple_of * step.params or room[1] < multiple_of * step.macs  # no further neuron fits


def test_cut_alike_heads_give_way_and_too_small_a_budget_is_refused():
    structure = describe(fresh_model(config(), 10, 0))
    roomy = uniform_counts(structure, Budget(params=0.6, macs=0.6, min_neurons=4))
    tight = uniform_counts(structure, Budget(params=0.6, macs=0.6, min_neurons=40))
    assert 1 <= tight[0]["heads"] < roomy[0]["heads"]
    with pytest.raises(BudgetError, match="Cut alike"):
        uniform_counts(structure, Budget(params=0.6, macs=0.6, min_neurons=64, min_heads=3))


@pytest.mark.parametrize("keep", [0.7, 0.5, 0.3])
def test_the_narrow_model_is_the_widest_within_the_budget(keep):
    cell = config(model={**CELL["model"], "model_args": {**MODEL_ARGS, "embed_dim": 64}})
    dense = fresh_model(cell, 10, 0)
    budget = Budget(params=keep, macs=keep)
    small, limit = narrow_model(cell, dense, budget, 1), budget.limit(count_cost(dense))
    found = describe(small)
    wider = count_cost(fresh_model(cell, 10, 0, embed_dim=found.embed_dim + 8))
    assert count_cost(small).params <= limit.params and count_cost(small).macs <= limit.macs
    assert wider.params > limit.params or wider.macs > limit.macs
    assert [(b.heads.count, b.neurons.count) for b in found.blocks] == [(4, 4 * found.embed_dim)] * 2


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1]}), ("levit_128s", {"depth": [1, 1, 1]})],
)
def test_a_model_whose_width_is_no_argument_has_no_narrow_model(architecture, arguments):
    cell = config(model={"architecture": architecture, "model_args": arguments})
    with torch.device("meta"):
        dense = fresh_model(cell, 10, 0)
    with pytest.raises(SettingError, match="leave this arm out"):
        narrow_model(cell, dense, Budget(params=0.5, macs=0.5), 0)


def test_with_a_tuning_share_no_official_validation_image_is_seen(tmp_path):
    for split, low, high in (("train", 0, 100), ("val", 150, 250)):
        for name in "ab":
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(10):
                pixels = np.random.default_rng(number).integers(low, high, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{number}.png")
    cell = config(data={"source": "elsewhere"}, tuning_share=0.2)
    data = load_images(cell, tmp_path / "set")
    assert data.name == "elsewhere"
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert data.validation.pixels is not None and data.validation.pixels.max() < 100
    official = load_images(config(data={"source": "elsewhere"}), tmp_path / "set").validation
    assert official.pixels is not None and official.pixels.min() >= 150


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    entered: list[str] = []

    def second() -> None:
        with alone_in(tmp_path / "arm"):
            entered.append("second")

    with alone_in(tmp_path / "arm"):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        entered.append("first")
    other.join()
    assert entered == ["first", "second"]


def test_time_is_added_up_over_runs_also_after_a_kill(tmp_path):
    folder = tmp_path / "arm"
    rows = [{"began": 100.0, "last": 0.0}, {"began": 500.0, "last": 130.0}, {"ended": 507.0, "last": 506.0}]
    (tmp_path / "arm.times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds_in(folder) == 30.0 + 7.0


def _takes_width(cell: CellConfig, structure: ViTStructure) -> bool:
    """Whether the arm timm-small can make a narrower model of as many heads and blocks."""
    width = structure.embed_dim - 2 * structure.blocks[0].heads.count
    with torch.device("meta"):
        narrow = fresh_model(cell, 100, 0, embed_dim=width)
    return narrow.embed_dim == width and len(narrow.blocks) == len(structure.blocks)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow) if path.stem.startswith("vit-b") else path
        for path in sorted(CONFIGS.glob("*.toml"))
    ],
    ids=lambda path: path.stem,
)
def test_every_shipped_cell_can_be_built_and_cut(path):
    cell = load_config(path)
    assert cell.name == path.stem
    assert (
        path.read_text().startswith("# ")
        and f"-o runs/{'bench-' * (cell.name == 'smoke')}{cell.name}" in path.read_text()
    )
    with torch.device("meta"):
        dense = fresh_model(cell, 100, 0)
    structure = describe(dense)
    for keep in cell.keeps:
        for arm in cell.arms:
            recipe = recipe_for(cell, arm, keep=keep, seed=0)
            check_budget(structure, recipe)
            check_relation_heads(recipe.width_training.distillation, structure)
            assert recipe.width_training.batch_size % (2 * recipe.width_training.accumulate) == 0
        uniform_counts(structure, recipe.budget)
    assert _takes_width(cell, structure)
    assert scratch_training(cell).learning_rate >= student_training(cell).learning_rate
    assert dense_recipe(cell, 2).seed == 2


def test_the_cells_with_pretrained_weights_are_ready(tmp_path, monkeypatch):
    """The real configuration, its model and its numbers of images made small; random weights stand in for timm's."""
    shipped = load_config(CONFIGS / "vit-s-imagenet-weights.toml")
    sizes = {"architecture": shipped.model.architecture, "img_size": 16, "patch_size": 4, "model_args": MODEL_ARGS}
    weights = fresh_model(config(model=sizes), 1000, 5)
    save_file(weights.state_dict(), tmp_path / "weights.safetensors")
    model = {**sizes, "weights": str(tmp_path / "weights.safetensors")}
    tables = {"dense": shipped.dense, "student": shipped.student, "scratch": shipped.scratch}
    for table in (tables["dense"]["training"], tables["student"]):
        table |= {"batch_size": 20, "compile": False}
    tables["dense"]["training"]["epochs"] = 2
    file = cell_file(tmp_path, model=model, student_epochs=1, **tables)
    begun = model_to_train(load_config(file), 10, 0)
    assert torch.equal(begun.get_parameter("blocks.0.attn.qkv.weight"), weights.blocks[0].attn.qkv.weight)
    command = [file, "-o", str(tmp_path / "out"), "--seeds", "0", "--keeps", "0.5", "--arms", "random"]
    assert _status(command) == 0
    assert finished(tmp_path / "out") == ["seed-0/keep-0.5/random"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_ablations_changes_lead_from_the_published_method_to_the_cells_recipe(file: Path) -> None:
    config = load_config(file)
    found = recipes_between(config, keep=0.5, seed=0)
    assert found[0][1] == recipe_for(config, "paper", keep=0.5, seed=0)
    assert found[-1][1] == recipe_for(config, "vitrim", keep=0.5, seed=0)
    assert all(earlier[1] != later[1] for earlier, later in pairwise(found))
