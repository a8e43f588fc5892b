"""The configuration of a cell: which settings each arm uses, and which files are refused."""

from dataclasses import replace

import pytest
import torch

from benchmarks.architectures import fresh_model, uniform_counts
from benchmarks.config import (
    ARMS,
    CONFIGS,
    CONTROL,
    CellConfig,
    TeacherSettings,
    dense_recipe,
    load_config,
    recipe_for,
    scratch_training,
    student_training,
)
from builders.cells import CELL, cell_config
from vitrim.costs.counting import count_cost
from vitrim.errors import SettingError
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.recipe import from_table, to_table
from vitrim.source import Source, check
from vitrim.structure import ViTStructure
from vitrim.surgery import prune


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"nam": "a"}, "did you mean name?"),
        ({"arms": ["vitrim", "magnitud"]}, "did you mean magnitude?"),
        ({"keeps": [1.5]}, "fractions between 0 and 1"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"student_epochs": 3}, "at most half of the dense model's 4"),
        ({"dense_seed": -1}, "dense_seed is -1"),
        ({"dense_from": "../other/seed-0/dense"}, "dense_seed is not"),
        ({"teacher": {"models": [3]}}, "expected a list of folders"),
        ({"teacher": {"models": ["a", "a"]}}, "expected different folders"),
        ({"teacher": {"model": "a"}}, "did you mean teacher.models?"),
        ({"fixed_macs": 1.0}, "fixed_macs is 1"),
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
        cell_config(**changes)
    assert expected in str(problem.value)


def test_changes_for_vitrim_apply_to_its_arms_only_and_hard_labels_use_labels():
    cell = cell_config(vitrim={"depth": {"blocks": 1}, "width_training": {"distillation": {"soft": 0.5}}})
    ours, paper, hard = (recipe_for(cell, arm, keep=0.5, seed=3) for arm in ("vitrim", "paper", "hard-labels"))
    assert (ours.depth.blocks, ours.width_training.distillation.soft) == (1, 0.5)
    assert paper.width_training.distillation.soft == 1.0 and not paper.recovery.enabled
    losses = hard.depth_training.distillation
    assert (losses.hard, losses.soft, losses.hidden, losses.relations) == (1, 0, 0, 0)
    assert replace(hard, width_training=paper.width_training, depth_training=paper.depth_training) == paper
    assert student_training(cell).distillation.soft == 0.5
    for recipe in (ours, paper, hard):
        assert (recipe.seed, recipe.budget.params, recipe.budget.macs) == (3, 0.5, 0.5)
        assert (recipe.width_training.epochs, recipe.depth_training.epochs) == (1, 1)
        assert recipe.width_training.augmentation.crop == "none"


def test_the_arm_with_whole_heads_differs_from_vitrim_in_the_head_width_only():
    cell = cell_config(vitrim={"heads": {"width": 2}})
    ours, whole = (recipe_for(cell, arm, keep=0.5, seed=3) for arm in ("vitrim", "vitrim-whole-heads"))
    assert (ours.heads.width, whole.heads.width) == (2, "full")
    assert replace(whole, heads=ours.heads) == ours


def test_the_tables_say_what_the_teacher_is():
    texts = [({}, ""), ({"models": ["a"]}, "1 model"), ({"models": ["a", "b"], "name": "2 snapshots"}, "2 snapshots")]
    texts += [({"flip": True}, "dense model, mirrored"), ({"models": ["a", "b"], "flip": True}, "2 models, mirrored")]
    for table, text in texts:
        assert from_table(TeacherSettings, table).text == text


def test_a_mirrored_teacher_teaches_all_arms_that_have_a_teacher():
    cell, plain = cell_config(teacher={"flip": True}), cell_config()
    for arm in ARMS:
        ours, before = (recipe_for(config, arm, keep=0.5, seed=0) for config in (cell, plain))
        stages = (ours.width_training.distillation, ours.depth_training.distillation)
        assert [to_table(losses)["flip"] for losses in stages] == [arm not in ("hard-labels", CONTROL)] * 2
        assert ours.importance == before.importance and ours.recovery == before.recovery
    assert to_table(scratch_training(cell).distillation)["flip"]


def _can_be_narrower(cell: CellConfig, structure: ViTStructure) -> bool:
    """Whether the arm timm-small can make a narrower model with the same number of heads and blocks."""
    width = structure.embed_dim - 2 * structure.blocks[0].heads.count
    with torch.device("meta"):
        narrow = fresh_model(cell, 100, 0, embed_dim=width)
    return narrow.embed_dim == width and len(narrow.blocks) == len(structure.blocks)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow) if path.stem.startswith("vit-") else path
        for path in sorted(CONFIGS.glob("*.toml"))
    ],
    ids=lambda path: path.stem,
)
def test_every_shipped_cell_can_be_built_and_pruned(path):
    cell = load_config(path)
    assert cell.name == path.stem
    assert (
        path.read_text().startswith("# ")
        and f"-o runs/{'bench-' * (cell.name == 'smoke')}{cell.name}" in path.read_text()
    )
    with torch.device("meta"):
        dense = fresh_model(cell, 100, 0)
    structure = describe(dense)
    source = Source(model=dense, structure=structure)
    for keep in cell.keeps:
        for arm in cell.arms:
            recipe = recipe_for(cell, arm, keep=keep, seed=0)
            check(source, recipe)
            assert recipe.width_training.batch_size % (2 * recipe.width_training.accumulate) == 0
        uniform_counts(structure, recipe.budget)
    assert _can_be_narrower(cell, structure)
    assert scratch_training(cell).learning_rate >= student_training(cell).learning_rate
    assert dense_recipe(cell, 2).seed == 2


def test_fixed_macs_are_those_outside_of_the_blocks():
    cell = load_config(CONFIGS / "cifar100-small.toml")
    model = fresh_model(cell, 100, seed=0)
    dense = count_cost(model)
    one_block = count_cost(prune(model, PruningPlan.full(describe(model)).without_blocks(range(1, 6))))
    outside = one_block.macs - (dense.macs - one_block.macs) / 5
    assert cell.fixed_macs == pytest.approx(outside / dense.macs, abs=1e-4)
    budget = recipe_for(cell, "vitrim", keep=0.5, seed=0).budget
    assert budget.params == 0.5 and budget.macs == pytest.approx(0.5 + 0.5 * cell.fixed_macs)
