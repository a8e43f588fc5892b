"""Reads the `config.json` of a model of transformers, from a folder or the Hub, and runs nothing that it names.

A configuration may name code of its own (`auto_map`), kernels of the Hub, another repository and any class of the
library. Here it is plain data: keys that lead elsewhere are left out or refused, and classes are looked up in
transformers' own tables.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from vitrim.asking import asking
from vitrim.errors import CheckpointMismatch, SettingError
from vitrim.models.sizes import check_numbers, short
from vitrim.models.timm.stored_arguments import check_stored_architecture, check_stored_arguments
from vitrim.runs.files import CONFIG, check_depth, read_json
from vitrim.runs.progress import log

LABELS = ("id2label", "label2id")  # numbers in them are no sizes
CODE = ("auto_map", "custom_pipelines", "custom_generate")  # keys that name code
ELSEWHERE = frozenset(  # keys that name another place, or a part of the library: never of the model's sizes
    (
        *("_name_or_path", "name_or_path", "_commit_hash", "configuration_files", "processor_class", "auto_class"),
        *("tokenizer_class", "attribute_map", "sub_configs", "sub_configs_defaults", "per_layer_config"),
        *("_attn_implementation_internal", "_experts_implementation_internal", "_configuration_file"),
    )
)
ATTENTIONS = (None, "eager", "sdpa")  # other names may be those of kernels on the Hub
IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
INIT = ("add_pooling_layer", "use_mask_token")  # constructor arguments that a folder may state
WRAPPER = "timm_wrapper"  # model type of models of timm inside transformers


def read_config(name: str) -> tuple[Any, dict[str, Any]]:
    """Read the configuration of a folder or of a repository of the Hub.

    Returns:
        The configuration as an object of transformers, and its keys as plain data.

    Raises:
        SettingError: there is no configuration, or transformers does not know its model type.
        CheckpointMismatch: it is damaged, or it states what vitrim does not accept.
    """
    transformers = import_module("transformers")
    source = str(Path(name) / CONFIG) if Path(name).is_dir() else f"{CONFIG} of {name}"
    if Path(name).is_dir():
        if not (Path(name) / CONFIG).is_file():
            raise SettingError(f"transformers found no model under {name!r}: it has no {CONFIG}.")
        found = read_json(Path(name) / CONFIG)
    else:
        with asking("transformers", f"find a model under {name!r}"):
            found = transformers.PreTrainedConfig.get_config_dict(name)[0]
        check_depth(found, source)
    keys = accepted(found, source)
    model_type = keys.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        own = " The model needs code of its own, and vitrim never runs code of a folder." if _code_in(found) else ""
        raise SettingError(
            f"transformers found no model under {name!r}: {source} has the model type {short(model_type)}, which "
            f"transformers {transformers.__version__} does not know.{own}"
        )
    check_numbers(source, {key: value for key, value in keys.items() if key not in LABELS})
    with asking("transformers", f"read {source}", error=CheckpointMismatch):
        config = transformers.CONFIG_MAPPING[model_type].from_dict(dict(keys))
    if names := _code_in(found):
        _log_once(f"{source} names code of its own ({names}), which is not run; transformers' own {model_type} is used")
    config._name_or_path = name
    return config, keys


def accepted(found: Any, source: str) -> dict[str, Any]:
    """The keys of a configuration without those that lead elsewhere, at any depth.

    Args:
        found: as read.
        source: file name for messages.

    Raises:
        CheckpointMismatch: it is no object, is for quantised weights, or a key or value is refused.
    """
    if not isinstance(found, dict):
        raise CheckpointMismatch(f"{source} is not a JSON object, but {short(found)}.")
    keys: dict[str, Any] = {}
    for key, value in found.items():
        if key in ELSEWHERE or key in CODE:
            continue
        if key in IMPLEMENTATIONS and value not in ATTENTIONS:
            _log_once(f"{source} states {key}={short(value)}, which is left out; transformers chooses")
            continue
        _refuse(key, value, source)
        keys[key] = accepted(value, source) if isinstance(value, dict) and key not in LABELS else value
    if keys.get("model_type") == WRAPPER:
        check_stored_architecture(keys.get("architecture"), source)
        check_stored_arguments(keys.get("model_args") or {}, source)
    if keys.get("model_type") == "vitrim" and isinstance(keys.get("dense"), dict):
        init_arguments(keys["dense"].get("init", {}), source)
    return keys


def init_arguments(stated: Any, source: str) -> dict[str, bool]:
    """The constructor's arguments that a folder states besides the configuration.

    Raises:
        CheckpointMismatch: there are others than `INIT`.
    """
    if not isinstance(stated, Mapping) or not all(key in INIT and type(stated[key]) is bool for key in stated):
        raise CheckpointMismatch(f"{source} states init={short(stated)}; expected {' and '.join(INIT)}, true or false.")
    return dict(stated)


def architecture_in(config: Any) -> str:
    """The name of the class that was saved; empty if the configuration states none."""
    names = getattr(config, "architectures", None)
    first = names[0] if isinstance(names, list | tuple) and names else ""
    return first if isinstance(first, str) else ""


def class_named(transformers: Any, architecture: str, config: Any) -> Any:
    """transformers' model class of this name for this configuration; None if it has none.

    Anything else that the library holds under this name, such as a function, is no such class.
    """
    found = (
        getattr(transformers, architecture, None) if architecture.isidentifier() and architecture[0] != "_" else None
    )
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and getattr(found, "config_class", None) is type(config) else None


def _refuse(key: str, value: Any, source: str) -> None:
    """Raise CheckpointMismatch for a key of a configuration that no saved model needs, and that could do harm."""
    if key in _methods() or key.startswith("__"):
        raise CheckpointMismatch(f"{source} states {key}, which is a part of transformers' class and no setting.")
    if key == "quantization_config" and value:
        raise CheckpointMismatch(
            f"{source} states a quantization_config, and vitrim reads no quantised weights. Save the model in float32."
        )
    if key in ("dtype", "torch_dtype") and value is not None and str(value).removeprefix("torch.") not in DTYPES:
        raise CheckpointMismatch(f"{source} states {key}={short(value)}; expected one of {', '.join(DTYPES)}.")


@cache
def _methods() -> frozenset[str]:
    """Names of the methods of transformers' configurations, which a key of the same name would replace."""
    base = import_module("transformers").PreTrainedConfig
    return frozenset(name for name in dir(base) if callable(getattr(base, name, None)))


def _code_in(found: Any) -> str:
    return ", ".join(key for key in CODE if isinstance(found, dict) and found.get(key))


@cache
def _log_once(line: str) -> None:
    log(line)
