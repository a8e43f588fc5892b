"""Laws of the criteria: what each of them measures, and that scoring changes nothing."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from builders.models import build, has_hooks, random_batches, random_images, same_tensors
from builders.scores import assert_same_scores, flat
from vitrim.errors import DataError, SettingError
from vitrim.importance.blocks import mean_loss
from vitrim.importance.criteria import ImportanceSettings, score
from vitrim.models import describe
from vitrim.silencing import gated, unit_gate
from vitrim.structure import UNIT_KINDS, UnitGroup

CRITERIA = ("taylor", "fisher", "kl", "exact", "magnitude", "activation", "random")
FROM_DATA = ("taylor", "fisher", "kl", "exact", "activation")
NUM_CLASSES = 4


def task(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of four patterns with noise, `(num_images, 3, 32, 32)`, and their labels."""
    patterns = torch.randn(NUM_CLASSES, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(num_images) % NUM_CLASSES
    noise = torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.25 * patterns[labels] + noise, labels


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A model that has partly learned the task: its loss is between that of chance and zero."""
    model = build(depth=2, num_classes=NUM_CLASSES).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(30):
        images, labels = task(64, seed=10 + step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    assert 0.1 < mean_loss(model, [task(64, seed=1)]) < 1.0
    return model


@torch.no_grad()
def removal_effects(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """For each unit, in the order of `flat`: the absolute change of the loss without it, averaged over images."""
    dense_loss, structure = F.cross_entropy(model(images), labels, reduction="none"), describe(model)
    effects = []
    for kind in UNIT_KINDS:
        for group in (block.group(kind) for block in structure.blocks):
            for unit in range(group.count):
                with gated(model, [(group, gate_without(group, unit))]):
                    loss = F.cross_entropy(model(images), labels, reduction="none")
                effects.append((loss - dense_loss).abs().mean().item())
    return np.array(effects)


def gate_without(group: UnitGroup, unit: int) -> Tensor:
    """The gate that silences one unit."""
    return unit_gate(group, tuple(other for other in range(group.count) if other != unit))


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "kl"])
def test_first_order_scores_rank_like_removal(trained: nn.Module, criterion: str) -> None:
    images, labels = task(64, seed=1)
    removed = removal_effects(trained, images, labels)
    assert stats.spearmanr(flat(score(trained, [(images, labels)], criterion)), removed).statistic > 0.8


def test_taylor_of_a_unit_is_the_slope_of_the_loss_along_its_gate() -> None:
    model, structure, step = build(depth=2), describe(build(depth=2)), 1e-5
    for batch in random_batches(num_images=3, batch_size=1):
        scores = score(model, [batch], "taylor")
        for index, block in enumerate(structure.blocks):
            for kind in UNIT_KINDS:
                group = block.group(kind)
                for unit in range(0, group.count, 5):
                    change = step * (1 - gate_without(group, unit).double())
                    with gated(model, [(group, 1 + change)]):
                        above = mean_loss(model, [batch])
                    with gated(model, [(group, 1 - change)]):
                        below = mean_loss(model, [batch])
                    slope = abs(above - below) / (2 * step)
                    assert scores.group(kind, index)[unit] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_taylor_of_a_block_is_the_slope_of_the_loss_towards_skipping_it() -> None:
    model, (batch, *_), step = build(depth=2), random_batches(num_images=1), 1e-5

    def loss_with(block: nn.Module, factor: float) -> float:
        handle = block.register_forward_hook(lambda module, inputs, output: output + factor * (output - inputs[0]))
        try:
            return mean_loss(model, [batch])
        finally:
            handle.remove()

    scores = score(model, [batch], "taylor")
    for index, block in enumerate(model.blocks):
        slope = abs(loss_with(block, step) - loss_with(block, -step)) / (2 * step)
        assert scores.blocks[index] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_fisher_of_one_image_is_the_square_of_taylor() -> None:
    model, batches = build(), random_batches(num_images=1)
    taylor, fisher = score(model, batches, "taylor"), score(model, batches, "fisher")
    assert np.allclose(flat(fisher), flat(taylor) ** 2, rtol=1e-10)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "exact", "activation"])
def test_the_division_into_batches_does_not_matter(criterion: str) -> None:
    model = build(depth=2)
    one_batch = score(model, random_batches(num_images=6, batch_size=6), criterion)
    for batch_size in (1, 4):
        parts = score(model, random_batches(num_images=6, batch_size=batch_size), criterion)
        assert np.allclose(flat(parts), flat(one_batch), rtol=1e-8, atol=1e-12)
        assert np.allclose(parts.blocks, one_batch.blocks, rtol=1e-8, atol=1e-12)
        assert parts.num_images == one_batch.num_images == 6


def test_effects_of_images_do_not_cancel() -> None:
    """The score is the mean of the absolute effects, not the absolute value of the mean effect."""
    model, batches = build(depth=2), random_batches(num_images=4, batch_size=1)
    mean = np.mean([flat(score(model, [batch], "taylor")) for batch in batches], axis=0)
    assert np.allclose(flat(score(model, batches, "taylor")), mean, rtol=1e-10)


@torch.no_grad()
def test_exact_is_the_measured_change_of_the_loss() -> None:
    model, batches = build(depth=2), random_batches()
    scores, dense_loss = score(model, batches, "exact"), mean_loss(model, batches)
    width = model.blocks[0].attn.head_dim
    for index in range(2):
        without_head, without_neuron = copy.deepcopy(model), copy.deepcopy(model)
        without_head.blocks[index].attn.proj.weight[:, 2 * width : 3 * width] = 0
        without_neuron.blocks[index].mlp.fc2.weight[:, 5] = 0
        assert scores.heads[index][2] == pytest.approx(mean_loss(without_head, batches) - dense_loss, abs=1e-12)
        assert scores.neurons[index][5] == pytest.approx(mean_loss(without_neuron, batches) - dense_loss, abs=1e-12)


def test_kl_needs_no_labels() -> None:
    model, batches = build(), random_batches()
    unlabelled = [(images, torch.zeros_like(labels)) for images, labels in batches]
    assert_same_scores(score(model, batches, "kl"), score(model, unlabelled, "kl"))


def test_kl_is_the_second_order_change_of_the_output() -> None:
    """With many sampled labels, the score of a weak unit is close to the divergence that its removal causes."""
    model = build(depth=1, num_classes=3)
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight.mul_(0.05)
    images = random_batches(num_images=1)[0][0]
    many = images.expand(4000, -1, -1, -1)
    scores = score(model, [(many, torch.zeros(4000, dtype=torch.int64))], "kl")
    group = describe(model).blocks[0].neurons
    unit = int(np.argmax(scores.neurons[0]))
    with torch.no_grad():
        dense = F.log_softmax(model(images), dim=-1)
        with gated(model, [(group, gate_without(group, unit))]):
            cut = F.log_softmax(model(images), dim=-1)
    divergence = F.kl_div(cut, dense, reduction="sum", log_target=True).item()
    assert scores.neurons[0][unit] == pytest.approx(divergence, rel=0.2)


def test_soft_targets_are_accepted() -> None:
    model, batches = build(), random_batches()
    soft = [(images, F.one_hot(labels, 7).double()) for images, labels in batches]
    assert_same_scores(score(model, batches, "taylor"), score(model, soft, "taylor"), tolerance=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_changes_neither_the_model_nor_the_random_state(criterion: str) -> None:
    model, batches = build(depth=2).train(), random_batches()
    model.blocks[0].mlp.fc1.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, trainable = copy.deepcopy(model), [parameter.requires_grad for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    score(model, batches, criterion)
    assert same_tensors(model, before)
    assert model.training and all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not model.head.weight)
    assert not has_hooks(model)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_every_unit(criterion: str, dtype: torch.dtype) -> None:
    model = build("distilled token", depth=2, dtype=dtype)
    structure = describe(model)
    scores = score(model, random_batches(dtype=dtype), criterion)
    assert [len(heads) for heads in scores.heads] == [block.heads.count for block in structure.blocks]
    assert [len(neurons) for neurons in scores.neurons] == [block.neurons.count for block in structure.blocks]
    assert scores.blocks.shape == (2,)
    assert flat(scores).dtype == scores.blocks.dtype == np.float64
    assert np.isfinite(flat(scores)).all() and np.isfinite(scores.blocks).all()
    assert criterion == "exact" or (flat(scores) >= 0).all()
    assert len(np.unique(flat(scores))) > 1


@pytest.mark.parametrize("criterion", FROM_DATA)
def test_the_score_of_a_silent_unit_is_zero(criterion: str) -> None:
    model = build(depth=1)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[3] = 0
        model.blocks[0].mlp.fc1.bias[3] = 0
    scores = score(model, random_batches(), criterion)
    assert scores.neurons[0][3] == pytest.approx(0, abs=1e-12)
    assert np.count_nonzero(np.abs(scores.neurons[0]) > 1e-12) == len(scores.neurons[0]) - 1


def test_random_scores_depend_on_the_seed_only() -> None:
    model = build()
    assert_same_scores(score(model, [], "random", seed=1), score(model, [], "random", seed=1))
    assert (flat(score(model, [], "random", seed=1)) != flat(score(model, [], "random", seed=2))).all()


@pytest.mark.parametrize("criterion", FROM_DATA)
def test_scoring_without_images_is_refused(criterion: str) -> None:
    with pytest.raises(DataError, match="at least one batch"):
        score(build(depth=1), [], criterion)


@pytest.mark.parametrize("criterion", ["fisher", "exact"])
@pytest.mark.parametrize(
    "labels, found",
    [
        (torch.tensor([0, 7]), r"in 0\.\.7, but .* outputs 0\.\.6"),
        (torch.tensor([-1, 2]), r"in -1\.\.2"),
        (torch.ones(2), "float32"),
    ],
)
def test_labels_that_are_no_outputs_of_the_model_are_refused(criterion: str, labels: Tensor, found: str) -> None:
    images = random_images(2)
    with pytest.raises(DataError, match=found):
        score(build(depth=1), [(images, labels)], criterion)


def test_batches_may_be_a_generator() -> None:
    model = build(depth=1)
    for criterion in FROM_DATA:
        assert_same_scores(score(model, iter(random_batches()), criterion), score(model, random_batches(), criterion))


def test_unknown_criteria_and_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingError, match=r"'size'.*taylor"):
        score(build(depth=1), [], "size")
    with pytest.raises(SettingError, match=r"'size'.*taylor"):
        ImportanceSettings(criterion="size")
    for changes in ({"num_images": 0}, {"batch_size": 0}):
        with pytest.raises(SettingError, match="at least 1"):
            ImportanceSettings(**changes)
