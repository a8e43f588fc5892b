"""Loads models of transformers from folders and repositories. No weight gets a random value without a word."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from torch import nn

from vitrim.asking import asking
from vitrim.errors import CheckpointMismatch, SettingError, UnsupportedModel
from vitrim.models.downloads import from_network, hub_url
from vitrim.models.sizes import check_sizes
from vitrim.models.transformers.auto import MODEL_TYPE
from vitrim.models.transformers.families import HEADS
from vitrim.models.transformers.stored_configs import LABELS, architecture_in, class_named, read_config
from vitrim.runs.files import shards_of
from vitrim.runs.number_formats import check_formats

ADAPTER = "adapter_config.json"  # written by peft
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
    with asking("transformers", f"find a model under {name!r}"):
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
    _check_files(name)
    config, keys = read_config(name)
    architecture = architecture_in(config)
    auto: Any = transformers.AutoModel
    if num_classes is not None or "ForImageClassification" in architecture:
        auto = transformers.AutoModelForImageClassification
    elif config.model_type != MODEL_TYPE:  # otherwise vitrim chooses the class
        auto = class_named(transformers, architecture, config) or auto
    sizes = {key: value for key, value in keys.items() if key not in LABELS}
    check_sizes(name, sizes, lambda: (getattr(auto, "from_config", None) or auto._from_config)(config))
    new_head = num_classes is not None
    if num_classes not in (None, config.num_labels):
        config.num_labels = num_classes
    return _complete(auto, name, new_head=new_head, config=config)


def _check_files(name: str) -> None:
    """Refuse a folder whose weights lie elsewhere, or that has an adapter beside the model.

    Raises:
        CheckpointMismatch: an index lists files outside the folder. SettingError: there is an adapter.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if (folder / ADAPTER).is_file():
        raise SettingError(
            f"{name} has an adapter of peft beside the model ({ADAPTER}), and vitrim does not know whether it belongs "
            "to the model. Merge them in Python with `model.merge_and_unload().save_pretrained(FOLDER)`, or remove it."
        )
    for index in sorted(folder.glob("*.index.json")):
        shards_of(index)
    check_formats(folder)


def _complete(auto: Any, name: str, *, new_head: bool, **arguments: Any) -> nn.Module:
    """Load a model, of which only the classifiers may get new weights, and those only with `new_head`.

    transformers gives random values to all weights that it does not find or that have another shape, with a warning. A
    pooler without weights is left out.

    Raises:
        CheckpointMismatch: other weights are missing or have another shape, or there are weights of further blocks.
    """
    with asking("transformers", f"load the model under {name!r}"):
        model, info = auto.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **arguments
        )
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
