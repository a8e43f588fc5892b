"""Whether a layer computes what its class in the library computes, from the tensors that its class has.

People change layers: masks, weight norm, LoRA, hooks, quantised weights, classes of their own. A cut of such a layer
could be wrong, so each attention and MLP is checked before it is described. A problem is a clause that names the
module, and says what to do where that is known.
"""

import re
from collections.abc import Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from vitrim.errors import UnsupportedModel
from vitrim.hooks import hooks_of_others, is_own_forward
from vitrim.models.wrappers import expression
from vitrim.structure import UnitGroup

LIBRARIES = ("torch.nn.modules.", "torchvision.", "timm.", "transformers.", "vitrim.models.")
MIXING = (nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax, nn.GLU, nn.MultiheadAttention)  # across channels
MIXING_NAMES = re.compile("Norm|[Ss]oftmax|Pool|G[Ll][Uu]|Attention|Conv|Linear|Mlp")
UNIT_BY_UNIT = re.compile(r"act\d*|\w*_act|\w*act_fn|activation\w*|drop\d*|\w*_drop|drop_\w+|dropout")  # by their place
HEAD_NORM = re.compile("[qk]_norm|norm_[qk]")
# layers whose output is the product of weight and input, plus the bias
PRODUCTS = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
REMOVED_BY = {
    "WeightNorm": "`torch.nn.utils.remove_weight_norm(layer)`",
    "SpectralNorm": "`torch.nn.utils.remove_spectral_norm(layer)`",
}


def part_problem(name: str, part: nn.Module) -> str:
    """Why an attention or MLP must not be pruned, or why a block cannot be trusted to be as its class says.

    Returns:
        The first problem of the part and the modules in it; empty if there is none.
    """
    for path, module in part.named_modules():
        problem = module_problem(f"{name}.{path}".removesuffix("."), module)
        if problem:
            return problem
    return ""


def module_problem(name: str, module: nn.Module) -> str:
    """What makes this module, without the modules in it, differ from what its class in the library computes."""
    if parametrize.is_parametrized(module):
        parametrized: Any = module.parametrizations
        tensors = ", ".join(f"'{key}'" for key in parametrized)
        return (
            f"`{name}` has a parametrisation of {tensors}; fix its value with "
            "`torch.nn.utils.parametrize.remove_parametrizations(layer, ...)`"
        )
    cls = type(module)
    if not cls.__module__.startswith(LIBRARIES):
        return f"`{name}` is a {_full_name(cls)}, which vitrim does not know{_advice(cls)}"
    if not is_of_library(cls.forward) or not is_of_library(vars(module).get("forward")):
        return f"`{name}` ({cls.__name__}) has a forward that is not the one of its class in the library"
    return hook_problem(name, module) or _tensor_problem(name, module) or _role_problem(name, module)


def cut_problem(model: nn.Module, group: UnitGroup) -> str:
    """Why a cut of these tensors would not remove whole units; empty if it would."""
    for cut in group.cuts:
        owner, _, key = cut.name.rpartition(".")
        layer = model.get_submodule(owner)
        tensor = getattr(layer, key, None)
        if not isinstance(tensor, Tensor):
            return f"`{owner}` ({type(layer).__name__}) has no tensor `{key}`"
        if key == "weight" and tensor.ndim > 1 and type(layer) not in PRODUCTS:
            return f"`{owner}` is a {_full_name(type(layer))}, which is more than a product with its weight"
        if cut.first + cut.repeats * group.count * cut.width > tensor.shape[cut.dim]:
            found, expected = tuple(tensor.shape), f"{group.count} {group.kind} of {cut.width * cut.repeats} entries"
            return f"`{cut.name}` has shape {found}, too small for {expected}"
    return ""


def columns_problem(model: nn.Module, group: UnitGroup, groups: Sequence[UnitGroup]) -> str:
    """Why the groups of a block do not make up the input columns of this group's output projection; else empty."""
    weight = model.get_submodule(group.output_proj).weight
    assert isinstance(weight, Tensor)
    columns = sum(other.count * other.width for other in groups if other.output_proj == group.output_proj)
    if columns == weight.shape[1]:
        return ""
    return f"`{group.output_proj}` has {weight.shape[1]} input columns, but its units have {columns}"


def is_of_torch(hook: Any) -> bool:
    """Whether a hook is one with which torch.nn.utils computes a tensor of the layer, such as a mask."""
    return type(hook).__module__.startswith("torch.nn.utils.") or isinstance(hook, BasePruningMethod)


def check_blocks_differ(model: nn.Module, blocks: Sequence[str]) -> None:
    """Refuse a model that uses one module as several blocks.

    Args:
        blocks: names of the blocks.

    Raises:
        UnsupportedModel: names two blocks that are one module.
    """
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for block in blocks:
        first, *others = names[id(model.get_submodule(block))]
        if others:
            one, two = expression(first), expression(others[0])
            raise UnsupportedModel(
                f"`{first}` and `{others[0]}` are one module, which runs several times with the same weights. vitrim "
                f"cannot prune a part of it for one place only. If the places need not share weights, give the second "
                f"one its own: `{two} = copy.deepcopy({one})`."
            )


def check_modules(model: nn.Module) -> None:
    """Refuse modules that make a copy of the model, or its gradient, wrong.

    A replaced `forward` may still run the layers of the original in a copy. No gradient passes a quantised layer of
    torch.

    Raises:
        UnsupportedModel: names the module.
    """
    for name, module in model.named_modules():
        cls = type(module)
        if cls.__module__.startswith("torch.ao.nn.") and "quantized" in cls.__module__:
            raise UnsupportedModel(
                f"The model is quantised: `{name}` is a {_full_name(cls)}, through which no gradient passes. Prune the "
                "float model, and quantise the result."
            )
        forward = vars(module).get("forward")
        if forward is not None and not is_own_forward(forward) and _refers_to_modules(forward, set()):
            raise UnsupportedModel(
                f"`{name or type(model).__name__}` has another `forward`, set as an attribute, which refers to the "
                "original layers. A copy of the model would still use them, and vitrim works on copies. Take it off "
                f"(`del {expression(name)}.forward`), or set it as `types.MethodType(function, module)`."
            )


def is_of_library(function: Any) -> bool:
    """Whether a function is of a library or of vitrim, or None."""
    if function is None or is_own_forward(function):
        return True
    function = _innermost(function)
    # not `__module__`, which `functools.wraps` copies from the function that is replaced
    module = function.__globals__["__name__"] if isinstance(function, FunctionType) else function.__module__
    return str(module).startswith(LIBRARIES)


def _innermost(function: Any) -> Any:
    """The function inside partial functions, methods and decorators of torch; the class of any other object."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, FunctionType):
            name = str(function.__globals__["__name__"])
            if not hasattr(function, "__wrapped__") or not name.startswith("torch.") or name.startswith(LIBRARIES):
                return function
            function = function.__wrapped__
        else:
            return type(function)


def _refers_to_modules(function: Any, seen: set[int]) -> bool:
    """Whether a function holds a module or a tensor. `copy.deepcopy` does not copy a function, so it holds them still.

    Args:
        seen: ids of the functions that were looked at.
    """
    if not isinstance(function, FunctionType) or id(function) in seen:
        return False  # copies are made of other objects, such as a method with the object that it is bound to
    seen.add(id(function))
    values = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for value in values:
        for item in value if type(value) in (list, tuple) else [value]:
            owner = item.__self__ if isinstance(item, MethodType) else item
            if isinstance(owner, nn.Module | Tensor) or _refers_to_modules(item, seen):
                return True
    return False


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # nothing was assigned yet
        return False


def _full_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "__main__" else f"{cls.__module__}.{cls.__qualname__}"


def _advice(cls: type) -> str:
    """What to do about a layer of this class, by its name; empty if that is not known."""
    name = _full_name(cls).lower()
    if name.startswith("peft."):
        return "; merge it first with `merge_and_unload()` of the PEFT model"
    if "lora" in name or "dora" in name:
        return "; merge it into a plain layer first"
    if re.search(r"quant|int8|8bit|4bit|bitsandbytes|qat", name):
        return "; prune the float model, and quantise it afterwards"
    return ""


def hook_problem(name: str, module: nn.Module) -> str:
    """The first forward hook of a module that is neither vitrim's nor its library's, as a problem; else empty."""
    for hook in hooks_of_others(module):
        kind = type(hook)
        if isinstance(hook, BasePruningMethod):
            tensor = getattr(hook, "_tensor_name", "weight")
            return (
                f"`{name}` has a mask of torch.nn.utils.prune; make it permanent with "
                f"`torch.nn.utils.prune.remove(layer, '{tensor}')`"
            )
        if kind.__module__.startswith("torch.nn.utils.") and kind.__name__ in REMOVED_BY:
            return f"`{name}` has a {kind.__name__} of torch.nn.utils; remove it with {REMOVED_BY[kind.__name__]}"
        if not is_of_library(hook):
            return f"`{name}` has a forward hook; remove it first (`handle.remove()`)"
    return ""


def _tensor_problem(name: str, module: nn.Module) -> str:
    """Tensors that the class does not have, or that hold no plain numbers."""
    known = _known_tensors(module)
    tensors = {**module._parameters, **module._buffers}
    for key, tensor in tensors.items():
        if known is not None and key not in known:
            return (
                f"`{name}` ({type(module).__name__}) also holds `{key}`, which its class in the library does not have"
            )
        if tensor is None:
            continue
        kind = "buffer" if key in module._buffers else "parameter"
        plain = Tensor if kind == "buffer" else nn.Parameter
        if type(tensor) not in (plain, Tensor, nn.Buffer) or tensor.layout != torch.strided or tensor.is_quantized:
            return f"`{name}.{key}` is a {_full_name(type(tensor))}, not a plain {kind}{_advice(type(tensor))}"
        if kind == "parameter" and not tensor.is_floating_point():
            return f"`{name}.{key}` holds {tensor.dtype}; prune the float model, and quantise it afterwards"
    if known is not None and module._modules and type(module).__module__.startswith("torch."):
        return f"`{name}` ({type(module).__name__}) has modules in it, which its class in the library does not have"
    missing = [key for key in ("weight", "bias") if key in vars(module)]
    if known is not None and missing:
        return f"`{name}.{missing[0]}` is neither a parameter nor a buffer"
    return ""


def _known_tensors(module: nn.Module) -> set[str] | None:
    """Names of the parameters and buffers of a layer of torch; None for other modules."""
    if isinstance(module, _BatchNorm):
        return {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    if isinstance(module, nn.Linear | _ConvNd | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return {"weight", "bias"}
    return None


def _role_problem(name: str, module: nn.Module) -> str:
    """A module in the place of an activation or dropout must treat each unit by itself, a head's norm each head."""
    place, cls = name.rpartition(".")[2], type(module)
    if UNIT_BY_UNIT.fullmatch(place) and not is_unit_by_unit(module):
        return f"`{name}` is a {_full_name(cls)}, which may mix the units"
    if HEAD_NORM.fullmatch(place) and re.search("Batch|Group|Instance", cls.__name__):
        return f"`{name}` is a {_full_name(cls)}, which normalises across heads"
    return ""


def is_unit_by_unit(module: nn.Module) -> bool:
    """Whether a module of a library maps each number by itself, such as an activation or dropout."""
    if isinstance(module, nn.Sequential):
        return all(is_unit_by_unit(child) for child in module)
    if isinstance(module, nn.Identity | _DropoutNd):
        return True
    cls = type(module)
    if cls.__module__.startswith("torch."):
        if isinstance(module, nn.PReLU):
            return module.num_parameters == 1
        return cls.__module__ == activation.__name__ and not isinstance(module, MIXING)
    tensors = [*module.parameters(), *module.buffers()]
    return all(tensor.numel() == 1 for tensor in tensors) and not MIXING_NAMES.search(cls.__name__)
