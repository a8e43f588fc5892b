"""Which model classes of transformers vitrim can prune, and how their images are prepared. Plain data."""

from dataclasses import dataclass

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


HEADS = ("classifier", "cls_classifier", "distillation_classifier")  # attributes of the classes with a head


@dataclass(frozen=True, kw_only=True)
class Family:
    """Model classes that have the same class of blocks.

    Attributes:
        prefix: beginning of the names of the model classes.
        block: name of the class of the blocks.
        models: endings of the names of the model classes.
        shared_bias: attribute of a module that holds one position bias for all blocks. If the attribute is set, no
            heads can be removed.
        norm: mean and standard deviation of the pixels for most published weights.
        interpolation: interpolation that resizes the images.
        crop_pct: fraction of the resized image that the center crop keeps; None if images are resized to a square.
        any_size: whether the models accept images of other sizes than that of their configuration.
    """

    prefix: str
    block: str
    models: tuple[str, ...] = ("Model", "ForImageClassification")
    shared_bias: str = ""
    norm: tuple[list[float], list[float]] = IMAGENET
    interpolation: str = "bicubic"
    crop_pct: float | None = None
    any_size: bool = False


FAMILIES = (
    Family(prefix="ViT", block="ViTLayer", norm=HALF, interpolation="bilinear"),
    Family(
        prefix="DeiT",
        block="DeiTLayer",
        models=("Model", "ForImageClassification", "ForImageClassificationWithTeacher"),
        crop_pct=0.875,
    ),
    Family(prefix="Dinov2", block="Dinov2Layer", crop_pct=0.875, any_size=True),
    Family(prefix="Dinov2WithRegisters", block="Dinov2WithRegistersLayer", crop_pct=0.875, any_size=True),
    Family(prefix="DINOv3ViT", block="DINOv3ViTLayer", interpolation="bilinear", any_size=True),
    Family(
        prefix="Beit",
        block="BeitLayer",
        shared_bias="shared_position_bias",
        norm=HALF,
        interpolation="bilinear",
        any_size=True,
    ),
    Family(prefix="Siglip", block="SiglipEncoderLayer", models=("VisionModel", "ForImageClassification"), norm=HALF),
    Family(
        prefix="CLIP",
        block="CLIPEncoderLayer",
        models=("VisionModel", "VisionModelWithProjection", "ForImageClassification"),
        norm=OPENAI,
        crop_pct=1.0,
    ),
    Family(prefix="ViTMAE", block="ViTMAELayer", models=("Model",)),
    Family(prefix="ViTMSN", block="ViTMSNLayer"),
    Family(prefix="IJepa", block="IJepaLayer"),
    Family(prefix="Swin", block="SwinLayer", any_size=True),
    Family(prefix="Swinv2", block="Swinv2Layer", any_size=True),
)
BY_CLASS = {family.prefix + ending: family for family in FAMILIES for ending in family.models}
