"""First-order effects of units and blocks on the loss of each image, from hooks on one forward and backward pass.

Also helpers of all criteria: the names of groups in sums, and columns of an output projection's input.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from vitrim.errors import UnsupportedModel
from vitrim.hooks import columns_dim, forward_hooks, forward_pre_hooks, input_state, output_state, with_input_state
from vitrim.structure import BlockStructure, UnitGroup, ViTStructure

AddEffect = Callable[[str, Tensor], None]


def prunable_groups(block: BlockStructure) -> list[UnitGroup]:
    """The groups of a block that may lose units."""
    return [group for group in block.groups if not group.not_prunable]


def group_name(block: BlockStructure, group: UnitGroup) -> str:
    """The name of a group in sums. The name of its output projection would not do: two groups may have one."""
    return f"{block.name} {group.key}"


def columns_of(values: Tensor, group: UnitGroup, dim: int, num_images: int) -> Tensor:
    """A group's columns of its output projection's input, image by image.

    Windows are counted inside their image: in every model here, the image is the slowest index.

    Args:
        values: `(B, N, columns)`, `(B * windows, N, columns)` or `(B, columns, h, w)`.
        dim: dimension of the columns.
        num_images: B.

    Returns:
        `(B, tokens, units, width)`.
    """
    columns = values.movedim(dim, -1)[..., group.first : group.first + group.count * group.width]
    return columns.reshape(num_images, -1, group.count, group.width)


@contextmanager
def without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """A context in which no weight of the model needs a gradient."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def effect_hooks(model: nn.Module, structure: ViTStructure, add: AddEffect) -> Iterator[Callable[[int], None]]:
    """A context in which each backward pass calls `add(name, effect)` for every group and every block.

    `effect` is `<o, dL/do>` of each image, `(B, units)`, summed over its tokens.

    Yields:
        A function that must be called with the number of images before each forward pass.
    """
    num_images = 0

    def start(count: int) -> None:
        nonlocal num_images
        num_images = count

    def watch_units(name: str, group: UnitGroup, dim: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            output = inputs[0]
            value = output.detach()
            output.register_hook(
                lambda gradient: add(name, columns_of(value * gradient, group, dim, num_images).sum(dim=(1, 3)))
            )

        return hook

    blocks = [(model.get_submodule(block.name), block) for block in structure.blocks]
    with (
        forward_pre_hooks([(module, _start_graph(block)) for module, block in blocks], with_kwargs=True),
        forward_hooks([(module, _watch_block(block, add)) for module, block in blocks if not block.not_prunable]),
        unit_hooks(model, structure, watch_units),
    ):
        yield start


def unit_hooks(
    model: nn.Module, structure: ViTStructure, watch: Callable[[str, UnitGroup, int], Callable[..., None]]
) -> AbstractContextManager[None]:
    """A context in which a hook runs before the output projection of every group that may lose units.

    Args:
        watch: makes the hook from the `group_name`, the group, and the dimension of the projection's input columns.
    """
    hooks = []
    for block in structure.blocks:
        for group in prunable_groups(block):
            output_proj = model.get_submodule(group.output_proj)
            hooks.append((output_proj, watch(group_name(block, group), group, columns_dim(output_proj))))
    return forward_pre_hooks(hooks)


def _watch_block(block: BlockStructure, add: AddEffect) -> Callable[..., None]:
    """A forward hook that adds the effect of a block: of what it adds to the residual stream."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        state = output_state(output)
        if not state.requires_grad:
            raise UnsupportedModel(
                f"No gradient passes `{block.name}`: it computes without gradients, as quantised layers do. Score the "
                "float model, or use the criterion activation."
            )
        before, after = input_state(args, kwargs, block.state).detach(), state.detach()

        def add_effect(gradient: Tensor) -> None:
            add(block.name, ((after - before) * gradient).flatten(1).sum(1, keepdim=True))

        state.register_hook(add_effect)

    return hook


def _start_graph(block: BlockStructure) -> Callable[..., Any]:
    """A forward pre-hook that lets gradients begin at a block's input. Some models have several hidden states."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        state = input_state(args, kwargs, block.state)
        if state.requires_grad:
            return None
        return with_input_state(args, kwargs, state.detach().requires_grad_(), block.state)

    return hook
