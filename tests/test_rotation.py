"""Rotation of heads: exact, finite for few tokens and dead heads, and useful before heads are narrowed."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from builders.exactness import relative_distance, set_fused
from builders.models import VARIANTS, build, has_hooks, random_batches, random_images, same_tensors
from vitrim.errors import CheckpointMismatch, DataError
from vitrim.importance.criteria import score
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.recovery.recover import recover
from vitrim.rotation import Rotation, RotationStatistics, measure_rotation, rotate
from vitrim.surgery import prune

EXACT = 1e-9  # relative; the inverse matrices are rounded
FAST = {"class token", "distilled token", "qk-norm", "no bias", "gated attention"}  # the others: in the slow run
HEADS_OF_16 = {"embed_dim": 32, "num_heads": 2, "depth": 2}


def assert_close(first: Rotation, second: Rotation, tolerance: float = 1e-9) -> None:
    assert first.maps.keys() == second.maps.keys()
    for name, maps in first.maps.items():
        for one, two in zip(maps, second.maps[name], strict=True):
            torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def assert_rotated_exactly(model: nn.Module, rotation: Rotation) -> None:
    images = random_images(3, seed=7)
    assert relative_distance(rotate(model, rotation)(images), model(images)) < EXACT


@torch.no_grad()
def correlated(model: nn.Module) -> nn.Module:
    """The model with heads as training leaves them: a few directions, not along the axes, carry the most."""
    for block in model.blocks:
        attn = block.attn
        rows = attn.qkv.weight.unflatten(0, (3, attn.num_heads, -1))  # (3, H, K, D)
        axes = torch.linalg.qr(torch.randn(*rows.shape[:2], attn.head_dim, attn.head_dim, dtype=rows.dtype)).Q
        sizes = 2.0 ** -torch.arange(attn.head_dim, dtype=rows.dtype)
        attn.qkv.weight.copy_((axes * sizes @ axes.mT @ rows).flatten(0, 2))
    return model


def test_the_model_does_not_change_and_keeps_no_hooks() -> None:
    model = build()
    before = copy.deepcopy(model)
    rotated = rotate(model, measure_rotation(model, random_batches()))
    assert same_tensors(model, before)
    assert not has_hooks(model) and not has_hooks(rotated)
    assert describe(rotated) == describe(model)


@pytest.mark.parametrize(
    "variant", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
@torch.no_grad()
def test_a_rotated_model_computes_what_the_model_computes(variant: str) -> None:
    model, images = build(variant), random_images(3, seed=7)
    rotated = rotate(model, measure_rotation(model, random_batches()))
    changes_nothing = "gated" in variant  # a gate multiplies each column of the heads
    assert same_tensors(rotated, model) == changes_nothing
    for fused, training in itertools.product((True, False), (False, True)):
        for each in (model, rotated):
            set_fused(each, fused)
            each.train(training)
        assert relative_distance(rotated(images), model(images)) < EXACT


def test_the_first_directions_carry_the_most() -> None:
    """Queries of a rotated head are uncorrelated, and their second moments fall from one direction to the next."""
    model, batches = correlated(build()), random_batches()
    rotated = rotate(model, measure_rotation(model, batches))
    statistics = RotationStatistics()
    with torch.no_grad(), statistics.watching(rotated):
        for images, _ in batches:
            rotated(images)
    for block in describe(rotated).blocks:
        directions = block.heads.directions
        assert directions is not None
        sums = statistics.inputs[directions.query_input]
        moments = sums.second_moments(rotated, directions.queries, block.heads.count)
        sizes = moments.diagonal(dim1=1, dim2=2)
        assert (sizes[:, :-1] >= sizes[:, 1:] * (1 - 1e-5)).all()
        assert ((moments - torch.diag_embed(sizes)).abs() < 1e-3 * sizes[:, :1, None]).all()


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
@torch.no_grad()
def test_narrowing_after_rotation_is_better_than_without(width: int) -> None:
    """Mean error of the logits of three recovered models, on images that were not measured.

    Recovery adds back the mean of the removed directions, which a rotation does not make smaller.
    """
    errors = {"rotated": 0.0, "plain": 0.0}
    for seed in range(3):
        torch.manual_seed(seed)
        model, images = correlated(build(seed=seed)), random_images(16, seed=100 + seed)
        plan = PruningPlan.full(describe(model)).with_head_widths(describe(model), width)
        batches = random_batches(64, 32, seed=seed)
        for name, source in (("rotated", rotate(model, measure_rotation(model, batches))), ("plain", model)):
            student = recover(prune(source, plan), source, plan, batches)
            errors[name] += F.mse_loss(student(images), model(images)).item()
    assert errors["rotated"] < 0.6 * errors["plain"]


def test_fewer_tokens_than_directions_are_exact_and_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = build(**HEADS_OF_16)
    rotation = measure_rotation(model, random_batches(1, 1))  # 5 tokens
    lines = [line for line in capsys.readouterr().err.splitlines() if "rotation" in line]
    assert len(lines) == 1
    assert "2 attentions saw no more tokens than their head width" in lines[0]
    assert all(torch.isfinite(tensor).all() for maps in rotation.maps.values() for tensor in maps)
    assert_rotated_exactly(model, rotation)


@pytest.mark.parametrize("part", ["queries, keys and values", "values", "output projection"])
def test_a_dead_head_is_rotated_exactly(part: str) -> None:
    model = build()
    attn = model.blocks[1].attn
    with torch.no_grad():
        for tensor in (attn.qkv.weight, attn.qkv.bias):
            by_head = tensor.unflatten(0, (3, attn.num_heads, -1))
            if part == "queries, keys and values":
                by_head[:, 2] = 0
            elif part == "values":
                by_head[2, 2] = 0
        if part == "output projection":
            attn.proj.weight.unflatten(1, (attn.num_heads, -1))[:, 2] = 0
    rotation = measure_rotation(model, random_batches())
    assert all(torch.isfinite(tensor).all() for maps in rotation.maps.values() for tensor in maps)
    assert_rotated_exactly(model, rotation)


def test_keys_are_centred_in_each_image() -> None:
    """A constant that is added to all keys of a head changes no attention, so it does not change the rotation."""
    model, batches = build(), random_batches()
    before = measure_rotation(model, batches)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.bias.unflatten(0, (3, -1))[1] += 10.0
    assert_close(measure_rotation(model, batches), before, 1e-4)  # inputs are summed in float32


def test_statistics_of_scoring_are_those_of_measuring() -> None:
    model, batches = build(), random_batches()
    statistics = RotationStatistics()
    with statistics.watching(model):
        score(model, batches, "fisher")
    assert_close(statistics.rotation(model), measure_rotation(model, batches), 1e-4)
    assert not has_hooks(model)


def test_a_rotation_is_saved_and_loaded(tmp_path: Path) -> None:
    rotation = measure_rotation(build("qk-norm"), random_batches())  # only values
    rotation.save(tmp_path / "rotation.safetensors")
    assert_close(Rotation.load(tmp_path / "rotation.safetensors"), rotation, 0.0)


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_file_without_a_rotation_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "rotation.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="does not hold a rotation"):
        Rotation.load(path)


def test_no_calibration_image_is_an_error() -> None:
    with pytest.raises(DataError, match="No calibration image was given"):
        measure_rotation(build(), [])
