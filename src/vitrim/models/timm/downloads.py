"""Where timm downloads the weights of a model from, and what to do without a network."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from vitrim.asking import asking
from vitrim.models.downloads import from_network, hub_url

WEIGHTS = "model.safetensors"


def downloading(name: str, *, pretrained: bool) -> AbstractContextManager[None]:
    """A context in which timm may download the weights of a model; see `vitrim.models.downloads`.

    Args:
        name: an architecture, or a repository after `hf-hub:`.
        pretrained: whether the weights are loaded.
    """
    if name.startswith(("hf-hub:", "hf_hub:")):
        repository = name.partition(":")[2].partition("@")[0]
        advice = (
            f"Download {WEIGHTS} from there too, into one folder, and pass this folder in place of timm:{name}. "
            f"{_copied(repository)}"
        )
        return from_network(f"timm:{name}", hub_url(repository, "config.json"), advice)
    is_folder = name.startswith(("local-dir:", "local_dir:"))
    config = timm.get_pretrained_cfg(name) if pretrained and not is_folder else None
    if config is None or not (config.hf_hub_id or config.url):
        return nullcontext()  # timm says that it has no weights
    if config.hf_hub_id:
        file = config.hf_hub_filename or WEIGHTS
        advice = f"{_passed(name)}. {_copied(config.hf_hub_id)}"
        return from_network(name, hub_url(config.hf_hub_id, file), advice)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
    advice = (
        f"Pass this file in place of the name, with --arch {name} and without --pretrained, or copy it to {cached}."
    )
    return from_network(name, config.url, advice, cached=cached)


def published_weights(name: str) -> tuple[str, str]:
    """The repository on the Hub and the license of timm's weights of an architecture; empty where timm does not say."""
    with asking("timm", f"find {name!r}"):
        found = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    return ((found.hf_hub_id or "", (found.license or "").lower())) if found else ("", "")


def _passed(name: str) -> str:
    return f"Pass this file in place of the name, with --arch {name} and without --pretrained"


def _copied(repository: str) -> str:
    with asking("timm", f"find {repository!r} on the Hub"):
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    return f"Or copy the folder {folder} of a machine that has it."
