"""Which classes of Hugging Face's transformers can be cut, and how their images are usually prepared. Plain data."""

from dataclasses import dataclass

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
RUNTIME_KEYS = ("transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype")
GENERATED_LABEL = "LABEL_"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that are made of one class of blocks.

    Attributes:
        prefix: what the names of its classes begin with.
        block: name of the class of its blocks.
        models: what the names of its models end with.
        shared_bias: attribute of a module that, where it is set, gives one position bias for each head to all blocks.
        norm: mean and standard deviation of the pixels that most of its checkpoints were trained with.
        crop_pct: how much of the resized image they see; None where images are squashed into a square.
    """

    prefix: str
    block: str
    models: tuple[str, ...] = ("Model", "ForImageClassification")
    shared_bias: str = ""
    norm: tuple[list[float], list[float]] = IMAGENET
    interpolation: str = "bicubic"
    crop_pct: float | None = None


FAMILIES = (
    Family(prefix="ViT", block="ViTLayer", norm=HALF, interpolation="bilinear"),
    Family(
        prefix="DeiT",
        block="DeiTLayer",
        models=("Model", "ForImageClassification", "ForImageClassificationWithTeacher"),
        crop_pct=0.875,
    ),
    Family(prefix="Dinov2", block="Dinov2Layer", crop_pct=0.875),
    Family(prefix="Dinov2WithRegisters", block="Dinov2WithRegistersLayer", crop_pct=0.875),
    Family(prefix="DINOv3ViT", block="DINOv3ViTLayer", interpolation="bilinear"),
    Family(prefix="Beit", block="BeitLayer", shared_bias="shared_position_bias", norm=HALF, interpolation="bilinear"),
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
    Family(prefix="Swin", block="SwinLayer"),
    Family(prefix="Swinv2", block="Swinv2Layer"),
)
BY_CLASS = {family.prefix + ending: family for family in FAMILIES for ending in family.models}
