"""Builds a model again from what a model folder holds, and finds what the folder would lose.

`load` builds models with `rebuild`. Before a folder is written, `find_changes` builds the model in the same way. It
notes what was changed by hand, and refuses a model that would compute something else after loading.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitrim.errors import CheckpointMismatch, PlanMismatch, SaveMismatch, SettingError
from vitrim.hooks import eval_mode, logits_of, recorded_states
from vitrim.models import adapter_of_library, origin_of, record_origin
from vitrim.models.changes import Changes, differences, other_values
from vitrim.models.origin import Origin
from vitrim.models.restoring import restore
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

NUM_IMAGES = 2
MAX_LISTED = 6
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest value; other formats have fewer digits
LOW_PRECISION = 5e-2
TF32 = 1e-2  # what a GPU computes with float32, unless it was told not to


def rebuild(origin: Origin, plan: PruningPlan | None) -> nn.Module:
    """Build the dense model of an origin, and prune it by a plan. The weights are random.

    Args:
        origin: of the dense model; its own plan must be None.
        plan: None for a dense model.
    """
    model = adapter_of_library(origin.library).build(origin)
    record_origin(model, origin)
    return prune(model, plan) if plan is not None else model


@torch.no_grad()
def find_changes(model: nn.Module, origin: Origin, structure: ViTStructure) -> tuple[Changes, Origin]:
    """Build the model again from its origin and plan, and find what else must be noted in its folder.

    The rebuilt model gets the changes and the weights. Then names, shapes, number formats, attributes, classes of
    modules and buffers are compared, and the outputs of the blocks and of the model for a batch of two images. The
    model, its mode and the state of torch's random generators do not change.

    Args:
        model: on any device.
        origin: of this model.
        structure: of this model.

    Returns:
        The changes as plain data for JSON, empty if there are none; and the origin with the names of the blocks that
        the arguments build, which may be more than the model had when it was pruned.

    Raises:
        SaveMismatch: the rebuilt model would differ; the message names what differs.
    """
    plan = PruningPlan.from_dict(origin.plan.to_dict()) if origin.plan else None
    stored = json.loads(json.dumps({"model_args": origin.model_args, "preprocessing": origin.preprocessing}))
    with _own_random_state(model):
        try:
            with torch.device("cpu"):
                built = rebuild(replace(origin, plan=None, block_names=(), **stored), plan)
        except (SettingError, PlanMismatch, CheckpointMismatch) as problem:
            raise SaveMismatch(
                f"This {type(model).__name__} cannot be saved, because it cannot be built again: {problem}"
            ) from problem
        found = differences(built, model)
        problems = found.others
        if not problems:
            restore(built, found.changes)
            left = differences(built, model)
            problems = [*left.others, *(f"{key} of {name}" for key in left.changes for name in left.changes[key])]
        problems = problems or _other_tensors(built, model)
        problems = problems or [*_other_outputs(built, model, structure), *other_values(built, model)]
    if problems:
        more = f", and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise SaveMismatch(
            f"This {type(model).__name__} was changed after it was created, and a model folder cannot hold that: "
            f"{'; '.join(problems[:MAX_LISTED])}{more}. A folder holds the arguments, the plan, the weights, plain "
            "attributes, and heads made of torch's layers. Undo the change before saving."
        )
    return found.changes, replace(origin, block_names=origin_of(built).block_names)


def _other_tensors(built: nn.Module, model: nn.Module) -> list[str]:
    """Give the rebuilt model the weights, and return the names of tensors that only one of the two has."""
    own, expected = model.state_dict(), built.state_dict()
    if own.keys() != expected.keys():
        lost, missing = own.keys() - expected.keys(), expected.keys() - own.keys()
        return [f"`{name}` would be lost" for name in sorted(lost)] + [
            f"`{name}` is missing" for name in sorted(missing)
        ]
    floats = {tensor.dtype for tensor in own.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        built.to(floats.pop())
    built.to(next((tensor.device for tensor in own.values()), torch.device("cpu")))
    built.load_state_dict(own, assign=True)  # no copy: the rebuilt model is thrown away
    return []


def _other_outputs(built: nn.Module, model: nn.Module, structure: ViTStructure) -> list[str]:
    """Run both models on the same images, and return which outputs differ by more than rounding."""
    first = next(model.parameters())
    if first.is_meta:
        return []
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    shape = (NUM_IMAGES, structure.in_chans, *structure.img_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(first.device, dtype)
    names = [block.name for block in structure.blocks]
    try:
        expected = _outputs(model, images, names)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if "not implemented for" in str(error):  # some processors lack operations in half precision
            return []
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return [f"the model does not run on images of {' x '.join(map(str, shape[1:]))}: {first_line}"]
    try:
        outputs = _outputs(built, images, names)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        return [f"the loaded model would not run: {str(error).strip().splitlines()[0]}"]
    tolerance = TOLERANCES.get(dtype, LOW_PRECISION)
    if dtype == torch.float32 and first.device.type != "cpu":
        tolerance = TF32
    differing = [
        name for name in expected if name not in outputs or not _close(outputs[name], expected[name], tolerance)
    ]
    if not differing:
        return []
    hooked = [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    hooks = (
        f" (there are hooks on {', '.join(f'`{name}`' if name else 'the model' for name in hooked[:3])})"
        if hooked
        else ""
    )
    return [f"the output of {differing[0]} would be another one{hooks}"]


def _outputs(model: nn.Module, images: Tensor, blocks: list[str]) -> dict[str, Tensor]:
    """The outputs of blocks and model, by the words for them."""
    _seed(images.device)  # some models draw random numbers even in eval mode
    with eval_mode(model), recorded_states(model, blocks) as states:
        logits = logits_of(model(images))
    return {**{f"`{name}`": state for name, state in states.items()}, "the model": logits}


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    scale = other.abs().nan_to_num(0.0, 0.0, 0.0).max().item() if other.numel() else 0.0
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0.0, atol=tolerance * scale, equal_nan=True)


@contextmanager
def _own_random_state(model: nn.Module) -> Iterator[None]:
    """A context after which torch's random generators are as before."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(index for index in devices if index is not None)):
        yield


def _seed(device: torch.device) -> None:
    torch.random.default_generator.manual_seed(0)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)
