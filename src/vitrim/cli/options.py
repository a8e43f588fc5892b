"""The options of the commands, in groups. The recipe that they describe is made in `recipes`.

A help text is a noun phrase that states the default. This file imports no torch: `vitrim --help` must be fast.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from vitrim.cli.completion import complete_data, complete_model, complete_recipe, complete_setting
from vitrim.cli.preprocessing import PreprocessingOptions
from vitrim.cli.values import NUMBER, NUMBERS, WHOLE, Numbers, refuse_empty

# The options that set a setting. Of several, the message names the one that was given.
OPTIONS_OF_SETTING = {
    "budget.params": ("--keep", "--keep-params"),
    "budget.macs": ("--keep", "--keep-macs"),
    "budget.latency_ms": ("--latency",),
    "sizes.keeps": ("--keep", "--keep-params", "--keep-macs"),
    "sizes.latencies_ms": ("--latency",),
    "search.max_drop": ("--max-drop",),
    "search.largest": ("--keep",),
    "budget.multiple_of": ("--multiple-of",),
    "heads.width": ("--head-width",),
    "heads.multiple_of": ("--head-multiple-of",),
    "latency.on": ("--on",),
    "latency.batch_size": ("--latency-batch",),
    "depth.blocks": ("--depth",),
    "width_training.batch_size": ("--batch-size",),
    "depth_training.batch_size": ("--batch-size",),
    "training.batch_size": ("--batch-size",),
    "training.epochs": ("--epochs",),
    **{f"{name}.distillation.flip": ("--teacher-flip",) for name in ("width_training", "depth_training", "training")},
    "training.learning_rate": ("--learning-rate",),
    "seed": ("--seed",),
    "snapshots": ("--snapshots",),
    "batch_size": ("--batch-size", "--eval-batch"),
    "limit_per_class": ("--limit-per-class",),
    "holdout": ("--holdout",),
    "split": ("--split",),
    "data_dir": ("--data-dir",),
    "image_column": ("--image-column",),
    "label_column": ("--label-column",),
    "value_range": ("--value-range",),
    "num_workers": ("--num-workers",),
    "width_training.num_workers": ("--num-workers",),
    "depth_training.num_workers": ("--num-workers",),
    "training.num_workers": ("--num-workers",),
    **{name: (f"--{name.replace('_', '-')}",) for name in ("mean", "std", "crop_pct", "interpolation")},
}

MODEL, DATA, BUDGET, TRAINING, OUTPUT = (
    Group(name, sort_key=position) for position, name in enumerate(("Model", "Data", "Budget", "Training", "Output"))
)
ModelName = Annotated[
    str,
    Parameter(
        group=MODEL,
        completer=complete_model,
        help="timm name, folder of a model or run, or checkpoint file; `vitrim models` lists names",
    ),
]


TrainingBatch = Annotated[
    Literal["auto"] | int | None,
    WHOLE,
    Parameter(
        show_choices=False,
        help="images of one training update, over all processes; auto is 128 to 1024, by the number of training images "
        "(default: 128, from the recipe)",
    ),
]
TeacherFlip = Annotated[
    bool,
    Parameter(help="learn a teacher's mean output for an image and its mirror image (default: no, from the recipe)"),
]
TEACHER_HELP = (
    "trained model whose outputs are learned, written like MODEL; a name loads its pretrained weights; repeatable, the "
    "mean of several is learned"
)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class ModelOptions(PreprocessingOptions):
    """How to build or load the model, besides its name."""

    arch: Annotated[str | None, Parameter(help="architecture of a checkpoint file (default: as the file states)")] = (
        None
    )
    pretrained: Annotated[bool, Parameter(help="load the pretrained weights (default: random weights)")] = False
    num_classes: Annotated[
        int | None, WHOLE, Parameter(help="number of outputs (default: as in the checkpoint or the library)")
    ] = None
    img_size: Annotated[
        int | None,
        WHOLE,
        Parameter(help="height and width of the input in pixels (default: as in the checkpoint or the architecture)"),
    ] = None
    patch_size: Annotated[
        int | None,
        WHOLE,
        Parameter(help="height and width of a patch in pixels (default: as in the checkpoint or the architecture)"),
    ] = None
    model_arg: Annotated[
        list[str] | None,
        Parameter(
            help="KEY=VALUE, another argument of the architecture, e.g. embed_dim=192; repeatable (default: none)"
        ),
    ] = None

    def __post_init__(self) -> None:
        refuse_empty(self)


@Parameter(name="*", group=DATA)
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images to use."""

    data: Annotated[
        str | None,
        Parameter(
            completer=complete_data,
            help="folder with one folder per class, or with train/ and val/ that have these; a zip or tar of it; a "
            "table of files and labels; hf:PATH, a Hugging Face data set; or digits, cifar10, cifar100, tiny-imagenet "
            "(default: none; needed unless folders of splits are named)",
        ),
    ] = None
    train_dir: Annotated[
        list[Path] | None,
        Parameter(help="folder with one folder per class, to train on; repeatable (default: found by its name)"),
    ] = None
    val_dir: Annotated[
        Path | None, Parameter(help="folder with one folder per class, to validate on (default: found by its name)")
    ] = None
    image_column: Annotated[
        str | None, Parameter(help="column of a table that names the images (default: found by its values)")
    ] = None
    label_column: Annotated[
        str | None, Parameter(help="column of a table that has the classes (default: found by its name)")
    ] = None
    data_dir: Annotated[
        Path | None, Parameter(help="folder that already has the named data set (default: download it)")
    ] = None
    limit_per_class: Annotated[
        int | None, WHOLE, Parameter(help="max number of training images of each class (default: all)")
    ] = None
    holdout: Annotated[
        float,
        NUMBER,
        Parameter(
            help="fraction of the training images to validate on, for tuning (default: 0, the official validation "
            "images are used)"
        ),
    ] = 0.0
    strict: Annotated[bool, Parameter(help="refuse broken images (default: skip them)")] = False
    class_names: Annotated[
        Path | None,
        Parameter(
            help="file of class names, one a line, in the order of the model's outputs; or pairs of names, such as "
            "synset and words (default: the names in the model, else measured where the order is not certain)"
        ),
    ] = None
    value_range: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="values of black and white in images of more than 8 bits, e.g. 0,4095 (default: as the file states)",
        ),
    ] = None
    num_workers: Annotated[
        Literal["auto"] | int | None,
        WHOLE,
        Parameter(
            show_choices=False,
            help="processes that decode images that do not fit in memory; auto is one for each core, 0 decodes in the "
            "process of the command (default: auto, or as the recipe says)",
        ),
    ] = None

    def __post_init__(self) -> None:
        refuse_empty(self)


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run is, and where its epochs are also sent."""

    output: Annotated[
        Path | None,
        Parameter(
            name=["-o", "--output"],
            help="folder of the run; the same command continues an interrupted run (default: runs/DATA-MODEL, and for "
            "compress also the budget)",
        ),
    ] = None
    log: Annotated[
        list[str] | None,
        Parameter(
            help="tracker to which epochs and result are also sent: tensorboard, wandb, trackio or mlflow; repeatable, "
            "or with commas (default: none)"
        ),
    ] = None

    def __post_init__(self) -> None:
        refuse_empty(self)


@Parameter(name="*", group=BUDGET)
@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """Limits on the cost of the result, and how latency is measured."""

    keep: Annotated[
        Numbers | None,
        NUMBERS,
        Parameter(
            help="max fraction of parameters and multiply-adds to keep; several, e.g. 0.9,0.7,0.5, make several sizes "
            "in one run (default: 0.7, from the recipe)"
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        NUMBER,
        Parameter(
            help="max loss of top-1 on the validation images in points, e.g. 0.5; finds the smallest model within it, "
            "with 95 % confidence (default: no search)"
        ),
    ] = None
    keep_params: Annotated[
        Numbers | None,
        NUMBERS,
        Parameter(help="max fraction of parameters to keep; multiply-adds are not limited (default: as --keep)"),
    ] = None
    keep_macs: Annotated[
        Numbers | None,
        NUMBERS,
        Parameter(help="max fraction of multiply-adds to keep; parameters are not limited (default: as --keep)"),
    ] = None
    latency: Annotated[
        str | None,
        Parameter(
            help="latency limit for one forward pass, e.g. 12ms; several, e.g. 12ms,9ms, make several sizes in one run "
            "(default: no limit). Without --keep, nothing else is limited. With --max-drop, the fastest model within "
            "this limit is found, and min sets no limit."
        ),
    ] = None
    on: Annotated[
        Literal["cpu", "cuda", "onnxruntime"] | None,
        Parameter(help="runtime used to measure latency (default: PyTorch on the training device)"),
    ] = None
    latency_batch: Annotated[
        int | None, WHOLE, Parameter(help="images of one timed forward pass (default: 1, from the recipe)")
    ] = None
    multiple_of: Annotated[
        Literal["auto", "measured"] | int | None,
        WHOLE,
        Parameter(
            show_choices=False,
            help="number that divides the kept neurons of each block, e.g. 8; auto is 8 on a GPU that trains in bf16 "
            "and else 1; measured finds which is fast (default: auto, from the recipe)",
        ),
    ] = None
    head_width: Annotated[
        Literal["auto", "full"] | int | None,
        WHOLE,
        Parameter(
            show_choices=False,
            help="directions that each head keeps; auto compares several widths, full keeps all (default: auto, from "
            "the recipe)",
        ),
    ] = None
    head_multiple_of: Annotated[
        Literal["auto"] | int | None,
        WHOLE,
        Parameter(
            show_choices=False,
            help="number that divides the head widths that --head-width auto compares; auto is 8, or less if the "
            "model's head width is no multiple of 8 (default: auto, from the recipe)",
        ),
    ] = None
    depth: Annotated[
        Literal["auto"] | int | None,
        WHOLE,
        Parameter(
            show_choices=False, help="number of blocks to remove; auto finds it (default: auto, from the recipe)"
        ),
    ] = None

    def __post_init__(self) -> None:
        refuse_empty(self)


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True, kw_only=True)
class CompressTraining:
    """The recipe of `compress` and `plan`, and the settings of its training that have an option."""

    recipe: Annotated[
        str, Parameter(completer=complete_recipe, help="default, paper, demo, or a TOML file (default: default)")
    ] = "default"
    settings: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            completer=complete_setting,
            help="KEY=VALUE, any setting of the recipe, e.g. recovery.ridge=0.1; repeatable (default: none)",
        ),
    ] = None
    epochs: Annotated[
        int | None,
        WHOLE,
        Parameter(
            help="total distillation epochs, split evenly between the width and depth stages; all go to the width "
            "stage if no block is removed (default: 40, from the recipe)"
        ),
    ] = None
    batch_size: TrainingBatch = None
    teacher_flip: TeacherFlip = False
    seed: Annotated[
        int | None,
        WHOLE,
        Parameter(help="seed of calibration images, batches and augmentation (default: 0, from the recipe)"),
    ] = None

    def __post_init__(self) -> None:
        refuse_empty(self)


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True, kw_only=True)
class DenseTraining:
    """The recipe of `train`, and its settings that have an option."""

    recipe: Annotated[
        str, Parameter(completer=complete_recipe, help="train, demo-train, or a TOML file (default: train)")
    ] = "train"
    settings: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            completer=complete_setting,
            help="KEY=VALUE, any setting of the recipe, e.g. training.drop_path=0.1; repeatable (default: none)",
        ),
    ] = None
    epochs: Annotated[
        int | None, WHOLE, Parameter(help="passes over the training images (default: 100, from the recipe)")
    ] = None
    snapshots: Annotated[
        int | None,
        WHOLE,
        Parameter(
            help="number of cycles that the epochs are split into; the model of each cycle is kept as a teacher "
            "(default: 1, from the recipe)"
        ),
    ] = None
    batch_size: TrainingBatch = None
    teacher_flip: TeacherFlip = False
    learning_rate: Annotated[
        float | None, NUMBER, Parameter(help="peak of the learning rate (default: 0.001, from the recipe)")
    ] = None
    seed: Annotated[
        int | None,
        WHOLE,
        Parameter(help="seed of initial weights, batches and augmentation (default: 0, from the recipe)"),
    ] = None

    def __post_init__(self) -> None:
        refuse_empty(self)
