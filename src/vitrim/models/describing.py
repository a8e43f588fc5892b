"""Build a `ViTStructure` from what an adapter says about the blocks of a model.

The adapter names the blocks and the unit groups in them. What holds for every library is decided here: the cost of a
unit, that shared tensors are not cut, and that a block that changes the shape of the hidden state cannot be removed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from vitrim.errors import UnsupportedModel
from vitrim.models.layers import check_blocks_differ, columns_problem, cut_problem, hook_problem, part_problem
from vitrim.models.measuring import Measurement, measure
from vitrim.models.origin import ORIGIN_ATTRIBUTE, Origin
from vitrim.structure import BlockStructure, Directions, TensorCut, UnitGroup, UnitKind, ViTStructure

Macs = Mapping[str, int]
"""Multiply-adds of every module for one image, by module name."""
NO_NARROW_FORM = "vitrim knows no narrow form of this attention"
MAX_REASONS = 5  # that an error lists


class UnknownLayer(Exception):
    """A part has a layer of another kind than its class in the library; the message says which."""


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """What an adapter says about one block.

    Attributes:
        name, state, cuts, not_prunable: as in `BlockStructure`.
        find_groups: returns the unit groups of the block; their keys, parameters and residual scales are added later.
            A group of 0 units stands for a part that is not pruned and whose units are not known.
        residual_scales: paths in the block, as `resolve_residual_scale` needs them; empty where nothing is known.
    """

    name: str
    find_groups: Callable[[Macs], list[UnitGroup]]
    state: int = 0
    cuts: tuple[TensorCut, ...] = ()
    residual_scales: Mapping[UnitKind, str] = field(default_factory=dict)
    not_prunable: str = ""


def structure_of(
    model: nn.Module,
    blocks: Sequence[BlockParts],
    *,
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    embed_dim: int,
    skipped_parts: Iterable[str] = (),
) -> ViTStructure:
    """Measure the model and build its structure.

    Args:
        blocks: the blocks in any order; the structure lists those that run, in the order in which they run.
        image_shape: `(C, h, w)` of the images that the model was built for.

    Raises:
        UnsupportedModel: the model does not run on such images, uses one block in several places, or has nothing that
            can be pruned.
    """
    check_blocks_differ(model, [block.name for block in blocks])
    measured = measure(model, image_shape, {block.name: block.state for block in blocks})
    if measured.repeated:
        raise UnsupportedModel(
            f"`{measured.repeated[0]}` runs several times in one forward pass; expected blocks that run once. vitrim "
            "cannot prune a part of it for one of these times only."
        )
    owners = _owners(model)
    ran = [block for block in blocks if block.name in measured.order]
    ran.sort(key=lambda block: measured.order.index(block.name))
    described = tuple(_describe_block(model, block, measured, owners) for block in ran)
    skipped = [
        *skipped_parts,
        *(group.not_prunable for block in described for group in block.groups if not group.count),
    ]
    described = tuple(replace(block, groups=tuple(g for g in block.groups if g.count)) for block in described)
    _check_prunable(model, described, skipped)
    last_shape = measured.output_shapes[ran[-1].name] if ran else (embed_dim,)
    return ViTStructure(
        model=name,
        family=type(model).__name__,
        img_size=image_shape[1:],
        in_chans=image_shape[0],
        num_classes=num_classes,
        embed_dim=_width(last_shape, embed_dim),
        num_tokens=math.prod(last_shape) // _width(last_shape, embed_dim) if ran else 0,
        blocks=described,
        params=_num_params(model) - sum(block.params + _cost_of_units(block, "params") for block in described),
        macs=measured.macs[""] - sum(block.macs + _cost_of_units(block, "macs") for block in described),
        skipped_parts=tuple(skipped),
    )


def _check_prunable(model: nn.Module, blocks: Sequence[BlockStructure], skipped: Sequence[str]) -> None:
    """Raise `UnsupportedModel` if no unit and no block can be removed and no head narrowed, with the reasons."""
    groups = [group for block in blocks for group in block.groups]
    if any(not group.not_prunable or group.directions for group in groups):
        return
    recorded = getattr(model, ORIGIN_ATTRIBUTE, None)
    was_pruned = isinstance(recorded, Origin) and recorded.plan is not None  # then it must be possible to save it
    if was_pruned or (len(blocks) > 1 and any(not block.not_prunable for block in blocks)):
        return
    reasons = dict.fromkeys(
        [*(group.not_prunable for group in groups), *skipped, *(block.not_prunable for block in blocks)]
    )
    found = [reason for reason in reasons if reason][:MAX_REASONS] or [
        "its `forward` was replaced, and no block of a copy runs in it"
        if "forward" in vars(model)
        else "it has no attention, no MLP and no second block"
    ]
    raise UnsupportedModel(f"Nothing in this {type(model).__name__} can be pruned: {'; '.join(found)}.")


def heads(
    *,
    count: int,
    width: int,
    output_proj: str,
    cuts: Sequence[TensorCut],
    macs: int,
    first: int = 0,
    not_prunable: str = "",
    narrowing: Directions | str = NO_NARROW_FORM,
) -> UnitGroup:
    """The heads of one attention.

    Args:
        cuts: the tensors that compute the heads; the columns of the output projection are added.
        macs: multiply-adds of all heads together.
        narrowing: what narrowing the heads needs, or why they cannot be narrowed.
    """
    group = _units("heads", count, width, output_proj, cuts, macs, first, not_prunable)
    if isinstance(narrowing, str):
        return replace(group, not_narrowable=narrowing)
    return replace(group, directions=narrowing)


def neurons(
    *, count: int, output_proj: str, cuts: Sequence[TensorCut], macs: int, first: int = 0, not_prunable: str = ""
) -> UnitGroup:
    """The hidden neurons of one MLP; arguments as in `heads`."""
    return _units("neurons", count, 1, output_proj, cuts, macs, first, not_prunable)


def not_prunable_heads(count: int, reason: str, not_narrowable: str = "") -> UnitGroup:
    """The heads of an attention that is not pruned, with the reason; by default, it is also why they stay as wide."""
    return UnitGroup(
        kind="heads", key="heads", count=count, not_prunable=reason, not_narrowable=not_narrowable or reason
    )


def not_pruned(group: UnitGroup, reason: str) -> UnitGroup:
    """The same group without its tensors, for a part that nothing is removed from and that is not refitted."""
    why_wide = reason if group.kind == "heads" else ""
    return UnitGroup(kind=group.kind, key=group.key, count=group.count, not_prunable=reason, not_narrowable=why_wide)


def not_prunable_neurons(count: int, reason: str) -> UnitGroup:
    """The neurons of an MLP that is not pruned, with the reason."""
    return UnitGroup(kind="neurons", key="neurons", count=count, not_prunable=reason)


def rows(name: str, layer: nn.Module | None, width: int = 1, *, repeats: int = 1, first: int = 0) -> list[TensorCut]:
    """Cuts along dimension 0 of every parameter and buffer of a layer; none if `layer` is None.

    Raises:
        UnknownLayer: its tensors are in modules inside it.
    """
    tensors = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False)) if layer else {}
    if layer is not None and not tensors and any(True for _ in layer.parameters()):
        raise UnknownLayer(f"`{name}` is a {type(layer).__name__} of several layers")
    return [
        TensorCut(name=f"{name}.{key}", dim=0, width=width, repeats=repeats, first=first)
        for key, tensor in tensors.items()
        if tensor.ndim > 0  # a batch norm counts its batches in a tensor without dimensions
    ]


def cut_of(name: str, tensor: object, dim: int = 0, *, width: int = 1, repeats: int = 1) -> list[TensorCut]:
    """The cut of one parameter or buffer; none if `tensor` is None."""
    return [] if tensor is None else [TensorCut(name=name, dim=dim, width=width, repeats=repeats)]


def resolve_residual_scale(block: nn.Module, name: str, path: str) -> str | None:
    """The value of `UnitGroup.residual_scale` for a known form of block.

    Args:
        name: name of the block in the model.
        path: path in the block of the parameter `(D,)` that multiplies the output; empty if there is none.

    Returns:
        The full name of the parameter. Empty if the block has no such parameter: it is None, the constant 1, or its
        module is an identity. None if the path leads to anything else.
    """
    if not path:
        return ""
    parent, _, key = path.rpartition(".")
    module = block.get_submodule(parent)
    scale = getattr(module, key, None)
    if isinstance(scale, nn.Parameter):
        return f"{name}.{path}" if scale.ndim == 1 else None
    is_absent = scale is None and (not parent or isinstance(module, nn.Identity))
    return "" if is_absent or scale == 1.0 else None


def _units(
    kind: UnitKind,
    count: int,
    width: int,
    output_proj: str,
    cuts: Sequence[TensorCut],
    macs: int,
    first: int,
    not_prunable: str,
) -> UnitGroup:
    assert not_prunable or macs % count == 0, (
        f"{macs} multiply-adds are not a multiple of the {count} {kind} of {output_proj}"
    )
    return UnitGroup(
        kind=kind,
        key=kind,
        count=count,
        output_proj=output_proj,
        width=width,
        first=first,
        cuts=(*cuts, TensorCut(name=f"{output_proj}.weight", dim=1, width=width, first=first)),
        macs=macs // count,
        not_prunable=not_prunable,
    )


def _describe_block(
    model: nn.Module, block: BlockParts, measured: Measurement, owners: Mapping[int, list[str]]
) -> BlockStructure:
    groups: list[UnitGroup] = []
    module, found = model.get_submodule(block.name), block.find_groups(measured.macs)
    if block.residual_scales and part_problem(block.name, module):  # nobody knows what such a block adds to its input
        block = replace(block, residual_scales={})
    for group in found:
        num_before = sum(other.kind == group.kind for other in groups if other.count)
        key = f"{group.kind}.{num_before}" if num_before else group.kind
        problem = cut_problem(model, group) or (columns_problem(model, group, found) if group.cuts else "")
        if problem:
            group = not_pruned(group, problem)
        groups.append(_complete(model, block, replace(group, key=key), measured, owners))
    if any(not group.output_proj for group in groups):  # its output is not recorded, so a sum would lack it
        groups = [replace(group, residual_scale=None) for group in groups]
    input_shape, output_shape = measured.input_shapes[block.name], measured.output_shapes[block.name]
    not_prunable = block.not_prunable or hook_problem(block.name, module)
    if input_shape != output_shape and not not_prunable:
        shapes = f"from {_shape_text(input_shape)} to {_shape_text(output_shape)}"
        not_prunable = f"`{block.name}` changes the shape of the hidden state {shapes}"
    params, macs = _own_params(model, block.name, owners), measured.macs.get(block.name, 0)
    for cut in block.cuts:  # the block's part of a tensor that serves all blocks
        tensor, owner = _tensor(model, cut.name), cut.name.rpartition(".")[0]
        params += tensor.numel() // tensor.shape[cut.dim]
        macs += measured.macs.get(owner, 0) // tensor.shape[cut.dim]
    return BlockStructure(
        name=block.name,
        groups=tuple(groups),
        params=params - sum(group.count * group.params for group in groups),
        macs=macs - sum(group.count * group.macs for group in groups),
        state=block.state,
        qkv=_qkv_of(groups),
        cuts=block.cuts,
        not_prunable=not_prunable,
    )


def _cost_of_units(block: BlockStructure, cost: Literal["params", "macs"]) -> int:
    return sum(group.count * getattr(group, cost) for group in block.groups)


def _complete(
    model: nn.Module, block: BlockParts, group: UnitGroup, measured: Measurement, owners: Mapping[int, list[str]]
) -> UnitGroup:
    """Add parameters, residual scale and general reasons: tensors that others use, or that do not run."""
    if not group.cuts:
        return group
    reason, params = "", 0
    for cut in group.cuts:
        tensor = _tensor(model, cut.name)
        if isinstance(tensor, nn.Parameter):
            params += tensor.numel() // tensor.shape[cut.dim] * cut.width * cut.repeats
            names = owners[id(tensor)]
            if len(names) > 1 and not reason:
                reason = f"`{names[0]}` and `{names[1]}` are the same tensor"
    if group.output_proj and not measured.macs.get(group.output_proj) and not reason:
        reason = f"`{group.output_proj}` does not run when the model classifies an image"
    if reason:
        return not_pruned(group, group.not_prunable or reason)
    directions = group.directions
    if directions:
        directions = replace(directions, params=_params_of_direction(model, group, directions))
    scale = group.residual_scale
    if group.output_proj and group.kind in block.residual_scales:
        path = block.residual_scales[group.kind]
        scale = resolve_residual_scale(model.get_submodule(block.name), block.name, path)
    return replace(group, params=params, residual_scale=scale, directions=directions)


def _params_of_direction(model: nn.Module, group: UnitGroup, directions: Directions) -> int:
    """Parameters of one direction of one head: rows of queries, keys and values, and an output column."""
    rows = [_tensor(model, rows.name) for rows in (*directions.queries, *directions.keys, *directions.values)]
    output = _tensor(model, f"{group.output_proj}.weight")
    sizes = [tensor[0].numel() for tensor in rows if isinstance(tensor, nn.Parameter)]
    return sum(sizes) + output.numel() // output.shape[1]


def _qkv_of(groups: Sequence[UnitGroup]) -> str:
    """The layer of the first attention that computes queries, keys and values of one width in one product."""
    for group in groups:
        if group.kind == "heads":
            for cut in group.cuts:
                if cut.repeats == 3 and cut.name.endswith(".weight") and not cut.first:
                    return cut.name.removesuffix(".weight")
    return ""


def _tensor(model: nn.Module, name: str) -> Tensor:
    parent, _, key = name.rpartition(".")
    return getattr(model.get_submodule(parent), key)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter, by the parameter's `id`."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _own_params(model: nn.Module, name: str, owners: Mapping[int, list[str]]) -> int:
    """Number of parameters of a module that nothing outside it uses."""
    parameters = model.get_submodule(name).parameters()
    own = [p for p in parameters if all(owner.startswith(f"{name}.") for owner in owners[id(p)])]
    return sum(parameter.numel() for parameter in own)


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _width(shape: tuple[int, ...], expected: int) -> int:
    """The width of a hidden state `(N, D)`, `(h, w, D)` or `(D, h, w)`.

    It may differ from `expected`: some models widen the hidden state after their blocks.
    """
    if expected in shape or len(shape) < 3:
        return expected if expected in shape else shape[-1]
    if shape[0] == shape[1] or shape[1] == shape[2]:
        return shape[-1] if shape[0] == shape[1] else shape[0]
    return max(shape)


def _shape_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
