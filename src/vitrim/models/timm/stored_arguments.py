"""Which arguments a folder or a file may state for timm. They size a model; they may not name files or addresses.

timm's factory also takes names of files and addresses, from which it loads. A user may pass them; a folder may not.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import _hub

from vitrim.errors import CheckpointMismatch
from vitrim.models.sizes import check_numbers, short
from vitrim.runs.files import read_json
from vitrim.runs.number_formats import check_formats

# Arguments of timm's factory that load, or that change what is built into something that vitrim does not save.
OF_THE_FACTORY = frozenset(
    (
        *("pretrained", "pretrained_cfg", "pretrained_strict", "pretrained_filter_fn", "pretrained_custom_load"),
        *("pretrained_model_args", "checkpoint_path", "cache_dir", "model_cfg", "feature_cfg", "features_only"),
        *("feature_cls", "out_indices", "kwargs_filter", "pruned", "scriptable", "exportable", "no_jit", "device"),
        *("dtype", "model_cls", "variant", "default_cfg"),
    )
)
OVERLAY = "pretrained_cfg_overlay"  # its sizes and preprocessing are stored for models without `img_size`
SOURCES = frozenset(  # keys of timm's configuration of weights that say where these are, or how they are loaded
    ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
)
WORD = re.compile(r"[A-Za-z0-9_.+-]{0,100}")  # such as `avg`, `gelu`, `layernorm2d`
FILE = re.compile(r"^[.~]|\.\.|\.(pth?|bin|safetensors|npz|npy|pkl|pickle|json|py|ckpt|tar|zip|gz)$", re.IGNORECASE)
CUT = ("vitrim_cut", "vitrim_dense")  # registered by vitrim
KINDS: dict[str, Callable[[Any], bool]] = {}
"""Whether a value in timm's `config.json` is of the right kind, by its name."""
STORED = ("hf-hub:", "hf_hub:", "local-dir:", "local_dir:")  # prefixes of timm


def check_stored_model(name: str) -> dict[str, Any]:
    """Refuse a folder or a repository of the Hub whose `config.json` names files, addresses or unknown architectures.

    Args:
        name: after a prefix of `STORED`. The configuration of a repository is downloaded.

    Returns:
        The arguments that it states, with the architecture under `architecture`.

    Raises:
        CheckpointMismatch: names what was found. Other exceptions are timm's.
    """
    prefix, _, place = name.partition(":")
    source = str(Path(place) / "config.json") if prefix.startswith("local") else f"config.json of {place}"
    if prefix.startswith("local") and (Path(place) / "config.json").is_file():
        check_kinds(read_json(Path(place) / "config.json"), source)
        check_formats(Path(place))
    read = _hub.load_model_config_from_path if prefix.startswith("local") else _hub.load_model_config_from_hf
    config, architecture, arguments = read(place)
    check_stored_architecture(architecture, source, may_be_cut=True)
    own = {key: value for key, value in config.items() if key not in ("file", "source")}  # timm set them
    check_stored_weights(own, source)
    if architecture == CUT[0]:
        check_cut(arguments, source)
    else:
        check_stored_arguments(arguments or {}, source)
    return {"architecture": architecture, **(arguments or {})}


def check_kinds(config: Any, source: str) -> None:
    """Refuse a `config.json` of timm whose values are of other kinds than timm and vitrim read.

    Raises:
        CheckpointMismatch: names the value.
    """
    values = config if isinstance(config, dict) else {"the content": config}
    stated = values.get("pretrained_cfg", values)
    found = [*((values, name) for name in values), *((stated, name) for name in stated if isinstance(stated, dict))]
    for place, name in found:
        if name in KINDS and place[name] is not None and not KINDS[name](place[name]):
            raise CheckpointMismatch(f"{source} states {name}={short(place[name])}, which is no {name} of timm.")
    if not isinstance(config, dict):
        raise CheckpointMismatch(f"{source} is not a JSON object, but {short(config)}.")


def _is_numbers(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(isinstance(item, int | float) and not isinstance(item, bool) for item in values)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(item) is int and item > 0 for item in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def check_cut(arguments: Any, source: str) -> None:
    """As `check_stored_arguments`, for the arguments of the architecture that vitrim registers for pruned models.

    Raises:
        CheckpointMismatch: as `check_stored_arguments` and `check_stored_architecture`; or a value is no text.
    """
    stated = dict(arguments) if isinstance(arguments, Mapping) else {}
    check_stored_architecture(stated.pop("base", None), source)
    check_stored_arguments(stated.pop("base_args", None), source)
    for name in ("plan", "changes"):
        if not isinstance(stated.pop(name, ""), str):
            raise CheckpointMismatch(f"{source} has a {name} that is no text. It is damaged.")
    check_stored_arguments(stated, source)


def check_stored_architecture(architecture: Any, source: str, *, may_be_cut: bool = False) -> None:
    """Refuse what is not the name of an architecture that is registered with timm.

    Args:
        architecture: from a folder.
        source: file name for messages.
        may_be_cut: whether it may be one that vitrim registers for pruned models.

    Raises:
        CheckpointMismatch: it is no name, an address, a folder, or not known.
    """
    known = isinstance(architecture, str) and WORD.fullmatch(architecture) and timm.is_model(architecture)
    if not known or (architecture in CUT and not may_be_cut):
        raise CheckpointMismatch(
            f"{source} names the architecture {short(architecture)}, which is none of timm {timm.__version__}. It is "
            "damaged, or another release of timm made it."
        )


def check_stored_arguments(arguments: Any, source: str) -> None:
    """Refuse arguments that name files or addresses, or that are not for an architecture.

    Args:
        arguments: from a folder.
        source: file name for messages.

    Raises:
        CheckpointMismatch: names the argument.
    """
    if not isinstance(arguments, Mapping):
        raise CheckpointMismatch(f"{source} has no arguments of an architecture, but {short(arguments)}.")
    for name, value in arguments.items():
        if refused := refused_argument(name, value):
            raise CheckpointMismatch(f"{source} {refused}. Remove it from the file if you trust the rest.")
    check_numbers(source, arguments)


def refused_argument(name: Any, value: Any) -> str:
    """Why a folder may not state this argument, to follow the name of its file; empty if it may."""
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        return f"states an argument {short(name)}, which is no name of an argument"
    if name in OF_THE_FACTORY and value is not None:
        return f"states {name}={short(value)}, which is no size of an architecture"
    if name == OVERLAY:  # its other texts are names of layers and classes
        bad = next((key for key in value if key in SOURCES and value[key]), None) if isinstance(value, dict) else name
        if bad:
            return f"states {OVERLAY} with {bad}; expected image sizes and preprocessing only"
    elif (text := _text_of_file(value)) is not None:
        return f"states {name}={short(text)}; an argument may not name a file or an address"
    return ""


def check_stored_weights(config: Any, source: str) -> None:
    """Refuse a configuration of weights (`pretrained_cfg`) that names other weights than those beside it.

    Raises:
        CheckpointMismatch: names the key.
    """
    if not isinstance(config, Mapping):
        raise CheckpointMismatch(f"{source} has a pretrained_cfg that is no object, but {short(config)}.")
    for key in ("url", "file", "state_dict", "custom_load", "hf_hub_filename"):
        if config.get(key):
            raise CheckpointMismatch(
                f"{source} states {key}={short(config[key])} in its pretrained_cfg, and vitrim reads only the weights "
                "beside it. Remove it from the file if you trust the rest."
            )


KINDS.update(dict.fromkeys(("pretrained_cfg", "model_args"), _is_object))
KINDS.update(dict.fromkeys(("mean", "std", "crop_pct", "test_crop_pct"), _is_numbers))
KINDS.update(dict.fromkeys(("input_size", "test_input_size", "min_input_size", "pool_size"), _is_sizes))
KINDS.update(
    dict.fromkeys(("classifier", "first_conv", "interpolation", "crop_mode", "label_names", "labels"), _is_names)
)
KINDS["num_classes"] = lambda value: type(value) is int


def _text_of_file(value: Any) -> str | None:
    """The first text in a value that may be the name of a file or an address; None if there is none."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str) and (not WORD.fullmatch(value) or FILE.search(value)):
            return value
        if isinstance(value, Mapping):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
    return None
