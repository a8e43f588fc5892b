"""Tiny models of each library, and changes that people make on a model after it was created."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import timm
import torch
import torchvision
from torch import nn

Change = Callable[[Any], Any]


def timm_vit() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 7}
    return timm.create_model("vit_tiny_patch16_224", **sizes)


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=7
    )


def transformers_vit() -> nn.Module:
    import transformers

    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=24, num_labels=7)
    return transformers.ViTForImageClassification(config)


MODELS = {"timm": timm_vit, "torchvision": torchvision_vit, "transformers": transformers_vit}


def set_everywhere(model: nn.Module, kind: type | str, key: str, value: Any) -> None:
    """Set an attribute, or a module, in every module of this class or name."""
    for name, module in list(model.named_modules()):
        if name.endswith(kind) if isinstance(kind, str) else isinstance(module, kind):
            setattr(module, key, value() if isinstance(value, type) else value)


def deep_head() -> nn.Module:
    layers = nn.LayerNorm(16, eps=0.1), nn.Dropout(0.3), nn.Linear(16, 9), nn.GELU("tanh"), nn.Linear(9, 3)
    return nn.Sequential(*layers)


def normed_head() -> nn.Module:
    head = nn.Sequential(nn.BatchNorm1d(16, momentum=0.3), nn.Linear(16, 3, bias=False), nn.Identity())
    head[0].running_mean.normal_()
    return head


def other_colours(model: Any) -> None:
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "crop_pct": 0.7}


def larger_by_hand(model: Any) -> None:
    """As scripts do that interpolate the position embedding themselves."""
    model.config.image_size = 48
    for module in model.vit.embeddings.modules():
        if hasattr(module, "image_size"):
            module.image_size = (48, 48)
    model.vit.embeddings.position_embeddings = nn.Parameter(torch.randn(1, 37, 16))


def with_registers(model: Any) -> None:
    model.reg_token, model.pos_embed = (nn.Parameter(torch.randn(1, count, 16)) for count in (2, 19))
    model.num_prefix_tokens = 3


KEPT: dict[str, tuple[str, Change]] = {
    "pooling": ("timm", lambda m: m.reset_classifier(3, global_pool="avg")),
    "a linear head": ("timm", lambda m: setattr(m, "head", nn.Linear(16, 3))),
    "a head of several layers": ("timm", lambda m: setattr(m, "head", deep_head())),
    "a head with a batch norm": ("timm", lambda m: setattr(m, "head", normed_head())),
    "no head": ("timm", lambda m: setattr(m, "head", nn.Identity())),
    "an activation": ("timm", lambda m: set_everywhere(m, ".mlp", "act", nn.ReLU)),
    "the scale of attention": ("timm", lambda m: set_everywhere(m, ".attn", "scale", 0.9)),
    "eps of the norms": ("timm", lambda m: set_everywhere(m, nn.LayerNorm, "eps", 0.5)),
    "a dropout": ("timm", lambda m: set_everywhere(m, nn.Dropout, "p", 0.25)),
    "the input size": ("timm", lambda m: m.set_input_size(img_size=48)),
    "an input that is no square": ("timm", lambda m: m.set_input_size(img_size=(24, 40))),
    "the colours": ("timm", other_colours),
    "no norm": ("timm", lambda m: setattr(m.blocks[1], "norm2", nn.Identity())),
    "no bias": ("timm", lambda m: setattr(m.blocks[0].mlp.fc2, "bias", None)),
    "the unfused path": ("timm", lambda m: set_everywhere(m, ".attn", "fused_attn", False)),
    "fewer blocks": ("timm", lambda m: setattr(m, "blocks", m.blocks[:1])),
    "registers": ("timm", with_registers),
    "half precision": ("timm", lambda m: m.half() and m.bfloat16()),
    "torchvision: linear heads": ("torchvision", lambda m: setattr(m, "heads", nn.Linear(16, 3))),
    "torchvision: heads of several layers": ("torchvision", lambda m: setattr(m, "heads", deep_head())),
    "torchvision: a head of several layers": ("torchvision", lambda m: setattr(m.heads, "head", deep_head())),
    "torchvision: no head": ("torchvision", lambda m: setattr(m, "heads", nn.Identity())),
    "torchvision: a dropout": ("torchvision", lambda m: set_everywhere(m, nn.Dropout, "p", 0.25)),
    "torchvision: eps of the norms": ("torchvision", lambda m: set_everywhere(m, nn.LayerNorm, "eps", 0.5)),
    "torchvision: an activation": ("torchvision", lambda m: set_everywhere(m, ".mlp", "1", nn.SiLU)),
    "transformers: a linear head": ("transformers", lambda m: setattr(m, "classifier", nn.Linear(16, 3))),
    "transformers: a head of several layers": ("transformers", lambda m: setattr(m, "classifier", deep_head())),
    "transformers: no head": ("transformers", lambda m: setattr(m, "classifier", nn.Identity())),
    "transformers: eps of the norms": ("transformers", lambda m: set_everywhere(m, nn.LayerNorm, "eps", 0.5)),
    "transformers: a dropout": ("transformers", lambda m: set_everywhere(m, nn.Dropout, "p", 0.25)),
    "transformers: the unfused path": ("transformers", lambda m: m.set_attn_implementation("eager")),
    "transformers: the input size": ("transformers", larger_by_hand),
}


class LowRank(nn.Linear):
    """A linear layer with an addition of low rank, as scripts for fine-tuning define it."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__(old.in_features, old.out_features)
        self.load_state_dict(old.state_dict())
        self.low_rank = nn.Parameter(torch.randn(old.out_features, 1) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.mean(-1, keepdim=True) @ self.low_rank.T


class OwnHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).softmax(-1)


def with_other_forward(module: Any) -> None:
    plain = module.forward
    module.forward = MethodType(lambda self, *args, **kwargs: plain(*args, **kwargs) * 1.5, module)


def own_class(model: Any) -> None:
    base = type(model)
    model.__class__ = type("MyViT", (base,), {"forward": lambda self, x: base.forward(self, x) * 2, "__module__": "me"})


def doubled(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 2


REFUSED: dict[str, tuple[str, Change, str]] = {
    "a layer of an own class": (
        "timm",
        lambda m: setattr(m, "head", LowRank(m.head)),
        "`head` is a .*LowRank, and a Linear",
    ),
    "a head of an own class": ("timm", lambda m: setattr(m, "head", OwnHead()), "`head` is a .*OwnHead, and a Linear"),
    "an own layer in a head": (
        "timm",
        lambda m: setattr(m, "head", nn.Sequential(nn.Dropout(0.1), OwnHead())),
        "`head` is a Sequential.*OwnHead",
    ),
    "forward of the model": ("timm", with_other_forward, "`forward` was replaced"),
    "forward of a block": ("timm", lambda m: with_other_forward(m.blocks[0]), r"`blocks\.0\.forward` was replaced"),
    "a hook": (
        "timm",
        lambda m: m.blocks[1].register_forward_hook(doubled),
        r"`blocks\.1` would.*hooks on `blocks\.1`",
    ),
    "a hook on the head": ("timm", lambda m: m.head.register_forward_hook(doubled), "the model would.*hooks on `head`"),
    "a scale that is a tensor": (
        "timm",
        lambda m: set_everywhere(m, ".attn", "scale", torch.tensor(0.9)),
        r"`blocks\.0\.attn\.scale` is tensor\(0\.9",
    ),
    "an own class": ("timm", own_class, "the model is a me.MyViT, and a VisionTransformer would be loaded"),
    "a parametrised layer": (
        "timm",
        lambda m: nn.utils.parametrizations.weight_norm(m.head),
        "`head` is a ParametrizedLinear",
    ),
    "torchvision: forward": ("torchvision", with_other_forward, "`forward` was replaced"),
    "torchvision: an own head": ("torchvision", lambda m: setattr(m.heads, "head", OwnHead()), "`heads.head` is a"),
    "transformers: forward": ("transformers", lambda m: with_other_forward(m.vit), "`vit.forward` was replaced"),
    "transformers: an own head": ("transformers", lambda m: setattr(m, "classifier", OwnHead()), "`classifier` is a"),
}


def changed(change: Change, library: str) -> nn.Module:
    """The tiny model of a library after a change, in eval mode."""
    torch.manual_seed(0)
    model = MODELS[library]().eval()
    change(model)
    return model.eval()
