"""Loads models of transformers from folders and repositories. No weight gets a random value without a word."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from torch import nn

from vitrim.errors import CheckpointMismatch, SettingError, UnsupportedModel
from vitrim.models.downloads import from_network, hub_url
from vitrim.models.transformers.auto import MODEL_TYPE
from vitrim.models.transformers.families import HEADS

NUMBER = re.compile(r"\.\d+\.")  # of a block, in the name of a weight


def import_library() -> Any:
    """Import transformers, which is an optional dependency.

    Raises:
        UnsupportedModel: it is not installed; says how to install it.
    """
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise UnsupportedModel("This model needs transformers: pip install 'vitrim[hf]'.") from error


def from_pretrained(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Load the model of a folder or repository, with a new classifier if `num_classes` asks for other classes.

    Raises:
        SettingError: there is no such model, or an argument does not fit.
        CheckpointMismatch: weights do not fit the configuration.
    """
    transformers = import_library()
    num_classes = arguments.pop("num_classes", None)
    if arguments:
        raise SettingError(f"{name} is a saved model with its own settings. Leave out {', '.join(arguments)}.")
    if Path(name).is_dir():
        return _load(transformers, name, num_classes)
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    advice = (
        "Download model.safetensors and preprocessor_config.json from there too, into one folder, and pass this folder "
        f"in place of transformers:{name}. Or copy the folder {folder} of a machine that has it."
    )
    if "/" not in name:
        advice = f"If a folder was meant: there is no model under {name!r}. {advice}"
    with from_network(f"transformers:{name}", hub_url(name, "config.json"), advice):
        return _load(transformers, name, num_classes)


def _load(transformers: Any, name: str, num_classes: int | None) -> nn.Module:
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        architecture = (config.architectures or [""])[0]
        auto: Any = transformers.AutoModel
        if num_classes is not None or "ForImageClassification" in architecture:
            auto = transformers.AutoModelForImageClassification
        elif config.model_type != MODEL_TYPE:  # otherwise vitrim chooses the class
            auto = getattr(transformers, architecture, auto)
        if num_classes in (None, config.num_labels):
            return _complete(auto, name, new_head=num_classes is not None)
        config.num_labels = num_classes
        return _complete(auto, name, new_head=True, config=config)
    except CheckpointMismatch:
        raise
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise SettingError(f"transformers found no model under {name!r}: {first_line}") from error


def _complete(auto: Any, name: str, *, new_head: bool, **arguments: Any) -> nn.Module:
    """Load a model, of which only the classifiers may get new weights, and those only with `new_head`.

    transformers gives random values to all weights that it does not find or that have another shape, with a warning. A
    pooler without weights is left out.

    Raises:
        CheckpointMismatch: other weights are missing or have another shape, or there are weights of further blocks.
    """
    model, info = auto.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **arguments)
    wrong = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    wrong = {key for key in wrong if not (new_head and key.partition(".")[0] in HEADS)}
    if wrong and all(key.startswith("pooler.") for key in wrong) and arguments.get("add_pooling_layer", True):
        return _complete(auto, name, new_head=new_head, **arguments, add_pooling_layer=False)
    own = {NUMBER.sub(".*.", key) for key in model.state_dict()}
    wrong |= {key for key in info["unexpected_keys"] if NUMBER.search(key) and NUMBER.sub(".*.", key) in own}
    if wrong:
        raise CheckpointMismatch(
            f"The weights in {name} do not fit its config.json, which describes a {type(model).__name__}: {len(wrong)} "
            f"are missing, have another shape or belong to further blocks, such as {', '.join(sorted(wrong)[:3])}."
        )
    loaded: nn.Module = model
    return loaded
