"""Limits for the cost of scoring, recovery and pruning in operations and bytes, which are the same on every machine."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.costs.ratios import count_operations
from builders.models import build, random_batches, random_plan
from vitrim.hooks import forward_pre_hooks
from vitrim.importance.blocks import rank_blocks_for_removal
from vitrim.importance.criteria import score
from vitrim.importance.effects import without_weight_gradients
from vitrim.models import describe
from vitrim.recovery.least_squares import Moments
from vitrim.recovery.recover import recover
from vitrim.surgery import prune

SIZES = {"patch_size": 8, "embed_dim": 64, "mlp_ratio": 4.0, "dtype": torch.float32}
BATCHES = random_batches(num_images=8, batch_size=8, dtype=torch.float32)
MAX_EXTRA_BYTES = 30_000  # for scores, indices and logits


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def plain_pass(model: nn.Module) -> None:
    for images, labels in BATCHES:
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad()


def pass_to_the_images(model: nn.Module) -> None:
    with without_weight_gradients(model):
        for images, labels in BATCHES:
            F.cross_entropy(model(images.clone().requires_grad_()), labels).backward()


def test_scoring_computes_no_more_than_a_pass_without_gradients_of_weights() -> None:
    model = build(**SIZES)
    describe(model)  # the first description runs the model
    scoring = flops(lambda: score(model, BATCHES))
    assert scoring <= flops(lambda: pass_to_the_images(model))
    assert scoring < 0.75 * flops(lambda: plain_pass(model))


def test_scoring_needs_no_more_memory_than_a_plain_pass() -> None:
    model = build(**SIZES)
    plain = count_operations(lambda: plain_pass(model)).peak_bytes
    assert count_operations(lambda: score(model, BATCHES)).peak_bytes <= plain


def test_scoring_keeps_only_the_activations_of_neurons_in_each_block() -> None:
    """The other activations are kept by the backward passes of attention and norms anyway."""

    def of_two_blocks(run: Callable[[nn.Module], object]) -> int:
        shorter, longer = (count_operations(partial(run, build(depth=depth, **SIZES))).peak_bytes for depth in (4, 6))
        return longer - shorter

    model, sizes = build(depth=2, **SIZES), []
    for block in describe(model).blocks:
        output_proj = model.get_submodule(block.neurons.output_proj)
        output_proj.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].nbytes))
    model(BATCHES[0][0])
    more = of_two_blocks(lambda model: score(model, BATCHES)) - of_two_blocks(pass_to_the_images)
    assert more <= sum(sizes) + MAX_EXTRA_BYTES


def test_ranking_blocks_for_removal_runs_only_the_blocks_after_each_removed_one() -> None:
    model = build(depth=6, **SIZES)
    forward = flops(lambda: [model(images) for images, _ in BATCHES])
    assert flops(lambda: rank_blocks_for_removal(model, BATCHES, 1)) < 0.6 * (6 + 1) * forward


def test_recovery_runs_no_part_more_often_than_needed() -> None:
    """Each block of the teacher and each attention of the student runs once. Each MLP of the student runs twice."""
    teacher = build(**SIZES)
    plan = random_plan(describe(teacher), seed=1)
    student, calls = prune(teacher, plan), Counter()
    describe(student)  # the first description runs the model

    def counting(model: nn.Module, name: str, index: int) -> tuple[nn.Module, Callable[..., None]]:
        def hook(module: nn.Module, inputs: object) -> None:
            calls[model, name, index] += 1

        return model.blocks[index].get_submodule(name), hook

    hooks = [
        counting(model, name, index)
        for model in (teacher, student)
        for name in ("attn.qkv", "mlp.fc1")
        for index in range(len(model.blocks))
    ]
    batches = random_batches(num_images=24, batch_size=8, dtype=torch.float32)
    with forward_pre_hooks(hooks):  # layers with hooks of a person would not be pruned
        recover(student, teacher, plan, batches)
    for index in range(len(student.blocks)):
        assert calls[teacher, "attn.qkv", index] == calls[teacher, "mlp.fc1", index] == len(batches)
        assert calls[student, "attn.qkv", index] == len(batches) + 1  # one more pass finds the classifier
        assert calls[student, "mlp.fc1", index] == 2 * len(batches) + 1


def test_products_of_the_inputs_of_an_output_projection_are_computed_once() -> None:
    num_tokens, width = 64, 1024
    moments, x, residual = Moments(nn.Linear(width, 1)), torch.randn(num_tokens, width), torch.randn(num_tokens, 1)
    assert flops(lambda: moments.add(x, residual)) < 0.65 * 2 * num_tokens * width**2


@pytest.mark.parametrize("blocks", [(0, 1, 2, 3), (0, 2)])
def test_pruning_allocates_no_more_than_the_student(blocks: tuple[int, ...]) -> None:
    model = build(**SIZES)
    plan = random_plan(describe(model), seed=1, blocks=blocks)
    size = sum(tensor.nbytes for tensor in prune(model, plan).state_dict().values())
    assert count_operations(lambda: prune(model, plan)).peak_bytes <= size + MAX_EXTRA_BYTES


@pytest.mark.slow
def test_the_table_of_scoring_can_be_made() -> None:
    pytest.importorskip("torch_pruning")
    from benchmarks.costs.scoring import measure_scoring

    lines = measure_scoring(smoke=True)
    assert {line.section for line in lines} == {"scoring"}
    assert sum(line.limit is not None for line in lines) == 5
    assert all(line.value > 0 and line.setting for line in lines)
