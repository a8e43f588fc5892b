"""Modules that people put around a model: which of them vitrim takes off, and what it says about the others."""

from collections.abc import Callable
from typing import Any

from torch import nn

from vitrim.errors import UnsupportedModel, document

INNER_MODEL = {  # the attribute that holds the model, of wrappers that return what the model returns
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("timm.utils.model_ema", "ModelEmaV2"): "module",
    ("timm.utils.model_ema", "ModelEmaV3"): "module",
}
WEIGHTS = "These are weights without a model. Build the model and load them with `load_state_dict`."
ADVICE = {  # by the beginning of the full name of the class
    "peft.": "Merge the adapters first: `model.merge_and_unload()` returns the model.",
    "torch.distributed.fsdp.": "FSDP divides the weights among processes. Gather them into a model without FSDP first.",
    "torch.jit.": "It is a TorchScript program. Pass the Python model that it was made from.",
    "torch.fx.": "It is a traced graph. Pass the Python model that it was made from.",
    "torch.export.": "It is an exported program. Pass the Python model that it was made from.",
    "builtins.str": "Open it first, for example with `vitrim.load(folder)` or `timm.create_model(name)`.",
    "pathlib.": "Open it first, for example with `vitrim.load(folder)`.",
    "builtins.dict": WEIGHTS,
    "collections.OrderedDict": WEIGHTS,
    "timm.utils.model_ema.ModelEma": "Pass its attribute `ema`.",
}
MAX_NAMED = 3  # models inside a module that an error names


def unwrapped(model: Any) -> Any:
    """The model inside `DataParallel`, `DistributedDataParallel`, the result of `torch.compile`, or a moving average.

    Returns:
        The model itself where there is no such wrapper. The model shares its weights with the wrapper.
    """
    while (inner := _inner_attribute(model)) is not None:
        model = getattr(model, inner)
    return model


def _inner_attribute(model: Any) -> str | None:
    found = (INNER_MODEL.get((cls.__module__, cls.__qualname__)) for cls in type(model).__mro__)
    return next((name for name in found if name is not None), None)


def unknown_model_text(model: Any, supported: str, is_supported: Callable[[nn.Module], bool]) -> str:
    """The message about something that no adapter supports: what it is, and what to pass instead.

    Args:
        supported: the supported classes, in words.
        is_supported: whether an adapter supports a module.
    """
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    found = f"Found a {name.removeprefix('builtins.').removeprefix('__main__.')}"
    inside = inside_text(model, is_supported)
    advice = next((text for start, text in ADVICE.items() if name.startswith(start)), "")
    if inside or advice:
        return f"{found}; expected a model of timm, transformers or torchvision. {advice or inside}"
    return (
        f"{found}, which vitrim cannot prune. It looks for one of {supported}. "
        f"{document('models.md')} lists all model classes; {document('add-a-model.md')} shows how to add one."
    )


def inside_text(model: Any, is_supported: Callable[[nn.Module], bool]) -> str:
    """A sentence that names the supported models inside a module; empty if there is none."""
    if not isinstance(model, nn.Module):
        return ""
    paths: list[str] = []
    for path, module in model.named_modules():
        if path and is_supported(module) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    if not paths:
        return ""
    held = [f"{_name(model.get_submodule(path))} at `{path}`" for path in paths[:MAX_NAMED]]
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return f"It holds {', '.join(held)}{more}. Pass `{expression(paths[0])}`."


def expression(path: str, model: str = "model") -> str:
    """How Python code reaches the submodule with this path: `model.blocks[3].attn`."""
    steps = path.split(".") if path else []
    return model + "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps)


def _name(module: nn.Module) -> str:
    """Library and class of a model, such as `timm's VisionTransformer`."""
    names = [cls.__module__.partition(".")[0] for cls in type(module).__mro__]
    library = next(name for name in names if name in ("timm", "transformers", "torchvision"))
    return f"{library}'s {type(module).__name__}"


def check_wrapped_inside(model: nn.Module) -> None:
    """Refuse a model with a part that is wrapped by `torch.compile` or for several devices.

    Raises:
        UnsupportedModel: names the part.
    """
    for path, module in model.named_modules():
        inner = _inner_attribute(module)
        if path and inner is not None:
            raise UnsupportedModel(
                f"`{path}` is a {type(module).__name__} around one part of the model. Prune the model first and wrap "
                f"its parts afterwards, or take this wrapper off: `{expression(path)} = {expression(path)}.{inner}`."
            )
