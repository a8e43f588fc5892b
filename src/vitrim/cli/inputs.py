"""What the options name: the model and the images. torch is imported when a function is called."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitrim.cli.options import DataOptions, ModelOptions
from vitrim.cli.preprocessing import preprocessing_settings
from vitrim.cli.values import model_args, value_range
from vitrim.errors import SettingError

if TYPE_CHECKING:
    from torch import nn

    from vitrim.data.choice import Split
    from vitrim.data.images import ImageData
    from vitrim.recipe import Recipe
    from vitrim.training.settings import TrainingSettings

RGB_CHANNELS = 3


def check_data_named(options: DataOptions) -> None:
    """Refuse a command without `--data`, `--train-dir` and `--val-dir`, before a model is opened.

    Raises:
        SettingError: no images are named.
    """
    if options.data is None and not options.train_dir and options.val_dir is None:
        raise SettingError(
            "--data is missing: name the images, e.g. --data ./flowers (a folder with one folder per class), or "
            "--data digits for an example without downloads."
        )


def paths_read(model: str, data: DataOptions | None, *others: object) -> list[Path]:
    """The paths of what a command reads, as far as they may be files or folders.

    Args:
        model: as named.
        data: options of the images.
        others: further names, or lists of names; None is left out.
    """
    data = data or DataOptions()
    names: list[object] = [model, data.data, data.data_dir, data.train_dir, data.val_dir, data.class_names, *others]
    single = [name for found in names for name in (found if isinstance(found, list) else [found])]
    return [Path(name) for name in single if isinstance(name, str | Path) and str(name)]


def open_data(options: DataOptions, channels: int, *, split: "Split | None" = None) -> "ImageData":
    """Load the images, and print a summary on standard error.

    Args:
        options: which images.
        channels: of the images that the model takes.
        split: as in `load_data`, for a command that needs no training images.

    Raises:
        DataError: the images cannot be found or read. SettingError: an option is out of range, or no training images
            are named.
    """
    from vitrim.data.classes.class_names import read_class_names
    from vitrim.data.loading import load_data
    from vitrim.runs.progress import log

    names = read_class_names(options.class_names) if options.class_names else None  # before images are read
    check_data_named(options)
    if options.val_dir and not options.train_dir and split is None:
        raise SettingError("--val-dir names validation images only. Name the training images with --train-dir.")
    found = load_data(
        options.data,
        data_dir=options.data_dir,
        limit_per_class=options.limit_per_class,
        holdout=options.holdout,
        split=split,
        strict=options.strict,
        train_dir=options.train_dir,
        val_dir=options.val_dir,
        image_column=options.image_column,
        label_column=options.label_column,
        channels=channels,
        value_range=value_range(options.value_range) if options.value_range is not None else None,
    )
    found = found.with_class_names(names) if names else found
    found = found.with_num_workers(options.num_workers) if options.num_workers is not None else found
    for line in found.summary():
        log(line)
    return found


def warn_of_training_images(name: str, data: "ImageData") -> None:
    """Print a line on standard error if all images are evaluated, and the model of a run was trained on some of them.

    Args:
        name: of the model. The run is known by the `run.json` in or above its folder.
        data: what is evaluated.
    """
    from vitrim.errors import UserError
    from vitrim.runs.files import RUN
    from vitrim.runs.folder import identity_in
    from vitrim.runs.progress import log

    folders = (Path(name), Path(name).parent, Path(name).parent.parent)  # the last is that of a snapshot
    file = next((folder / RUN for folder in folders if (folder / RUN).is_file()), None)
    if data.only != "all" or file is None:
        return
    try:
        about = (identity_in(file.parent) or {}).get("data")
    except UserError as problem:
        log(f"{problem} It is not known which images {name} was trained on.")
        return
    if isinstance(about, dict) and about.get("name") == data.name:
        log(
            f"{name} was trained on images of this data set. --split val evaluates only those that were held out, if "
            "the other data options are those of the training."
        )


def open_named_model(name: str, options: ModelOptions) -> "nn.Module":
    """Build or load the model on the CPU.

    Raises:
        SettingError: the name is unknown, or the options do not fit it. CheckpointMismatch: the weights do not fit.
    """
    from vitrim.data.matching import preprocessing_of
    from vitrim.runs.progress import log

    model = _opened(name, options)
    if preprocessing_settings(options):
        log(f"{name}: images are prepared as stated: {preprocessing_of(model).text()}")
    if unused := _unused_pixels(model):
        log(f"{name}: {unused}")
    return model


def _opened(name: str, options: ModelOptions) -> "nn.Module":
    """As `open_named_model`, without lines on standard error."""
    from vitrim.saving.opening import open_model

    return open_model(
        name,
        arch=options.arch,
        pretrained=options.pretrained,
        num_classes=options.num_classes,
        img_size=options.img_size,
        patch_size=options.patch_size,
        model_args=model_args(options.model_arg or []),
        preprocessing=preprocessing_settings(options),
    )


def _unused_pixels(model: "nn.Module") -> str:
    """As `models.sizes.unused_pixels`; empty for a model that cannot be described, which is refused later."""
    from vitrim.errors import UnsupportedModel
    from vitrim.models import describe
    from vitrim.models.sizes import unused_pixels

    try:
        return unused_pixels(model, describe(model).img_size)
    except UnsupportedModel:
        return ""


def channels_of(model: "nn.Module") -> int:
    """Number of channels of the images that a model takes.

    Raises:
        UnsupportedModel: the model cannot be described.
    """
    from vitrim.models import describe

    return describe(model).in_chans


def channels_to_train_on(name: str, options: ModelOptions) -> int:
    """As `channels_of`, for a model that is built only when the classes of the images are known.

    Raises:
        SettingError, CheckpointMismatch: as `open_named_model`. UnsupportedModel: the model cannot be described.
    """
    arguments = model_args(options.model_arg or [])
    found = next((arguments[key] for key in ("in_chans", "num_channels") if key in arguments), None)
    if isinstance(found, int):
        return found
    is_repository = ":" in name and "/" in name
    if Path(name).exists() or is_repository:
        return channels_of(_opened(name, options))
    return RGB_CHANNELS


def open_trained_model(name: str, options: ModelOptions) -> "nn.Module":
    """As `open_named_model`, and warn on standard error if the weights are random."""
    from vitrim.runs.progress import log
    from vitrim.saving.opening import has_random_weights

    model = open_named_model(name, options)
    if has_random_weights(name, pretrained=options.pretrained):
        log(f"{name} has random weights: no --pretrained, folder or checkpoint was given")
    return model


def open_teachers(
    names: Sequence[str] | None, opened: "Mapping[str, nn.Module] | None" = None
) -> "list[nn.Module] | None":
    """As `open_models`, for `--teacher`."""
    return open_models("--teacher", names, opened)


def open_models(
    option: str, names: Sequence[str] | None, opened: "Mapping[str, nn.Module] | None" = None
) -> "list[nn.Module] | None":
    """Load the models of an option on the CPU; None if there are none. A name loads its pretrained weights.

    Args:
        option: that names them, for errors.
        names: of models.
        opened: folders that were opened before, with their models. These need not run twice.

    Raises:
        SettingError: the name is unknown, or has no pretrained weights. CheckpointMismatch: the weights do not fit.
    """
    from vitrim.errors import UserError
    from vitrim.saving.opening import has_random_weights, open_model

    models = []
    for name in names or ():
        path = Path(name)
        if opened and path.is_dir() and name in opened:
            models.append(opened[name])
            continue
        try:
            # a class of a library has no weights of its own, also where they are asked for
            is_class = not path.exists() and has_random_weights(name) and name.rpartition(":")[2][:1].isupper()
            if is_class:
                raise SettingError("a class has random weights; expected a name with weights, or a folder.")
            models.append(open_model(name, pretrained=not path.exists()))
        except UserError as problem:
            needs_arch = path.is_file() or "--arch" in str(problem)
            kind = "teacher" if option == "--teacher" else "model"
            hint = f" --arch belongs to MODEL: save the {kind} to a folder with vitrim.save." if needs_arch else ""
            raise type(problem)(f"{option} {name}: {problem}{hint}") from None
    return models or None


def ensemble_name(names: Sequence[str], *, flip: bool) -> str:
    """What is evaluated, such as `mean of runs/a and runs/b, with mirror images`.

    Args:
        names: of the models.
        flip: whether the mean is also over mirror images.
    """
    models = names[0] if len(names) == 1 else f"mean of {', '.join(names[:-1])} and {names[-1]}"
    return f"{models}, with mirror images" if flip else models


def log_batch_sizes(data: "ImageData", trainings: "Sequence[TrainingSettings]") -> None:
    """Print a line on standard error for each batch size that is larger than the training set."""
    from vitrim.data.batches import check_batch_size
    from vitrim.runs.processes import this_process
    from vitrim.runs.progress import log

    num_processes = this_process().num_processes
    sizes = {}
    for training in trainings:
        if training.epochs:
            size = training.batch_for(len(data.train), num_processes)
            sizes[size] = check_batch_size(data.train, size, num_processes * training.accumulate, len(data.classes))
    for size, used in sizes.items():
        if used < size:
            log(f"batch_size {size} is larger than the training set; {used} images are used for each update")


def open_model_to_train(name: str, options: ModelOptions, data: "ImageData", seed: int) -> "nn.Module":
    """Build or load a model with one output for each class of the data.

    A new model is built with this number of outputs. A loaded model with other classes gets a new classifier.

    Raises:
        SettingError, CheckpointMismatch: as `open_named_model`. UnsupportedModel: the model cannot be described.
    """
    import torch

    from vitrim.data.matching import fits_outputs, name_outputs
    from vitrim.models import describe, with_new_head
    from vitrim.runs.progress import log
    from vitrim.saving.opening import has_random_weights

    torch.manual_seed(seed)
    is_new = not Path(name).exists()
    if is_new and options.num_classes is None:
        options = dataclasses.replace(options, num_classes=len(data.classes))
    model = open_named_model(name, options)
    describe(model)
    if not is_new and not fits_outputs(data, model):
        log(f"{name} was trained on other classes; it gets a new classifier for {len(data.classes)} classes")
        model, has_new_head = with_new_head(model, len(data.classes)), True
    else:
        trained_outputs = (getattr(model, "pretrained_cfg", None) or {}).get("num_classes")
        has_new_head = is_new and trained_outputs not in (None, len(data.classes))
    has_learned = not has_new_head and not has_random_weights(name, pretrained=options.pretrained)
    if not has_learned and data.class_names is None and len(data.classes) == describe(model).num_classes:
        name_outputs(model, data.classes)  # it will learn the order of the data
    return model


def default_run_folder(data: "ImageData", model: str, recipe: "Recipe | None" = None) -> Path:
    """The folder of a run without `-o`, such as `runs/flowers-vit_small_patch16_224-70`; it is logged.

    Args:
        data: of the run.
        model: name or path of the model.
        recipe: of `compress`; its sizes are the end of the name.
    """
    from vitrim.runs.progress import log

    path = Path(model).parent if Path(model).name == "model" and Path(model).is_dir() else Path(model)
    name = (path.stem if path.is_file() else path.resolve().name if path.is_dir() else model.replace("/", "-")) or model
    parts = [data.name, name.removeprefix(f"{data.name}-")]  # a run that has its name from here begins with the data
    if recipe:
        parts.append(recipe.label.replace(" %", "").replace(",", "").replace(" ", "-"))
    folder = Path("runs") / re.sub(r"[^\w.-]+", "-", "-".join(parts))
    log(f"no -o given: the run is in {folder}")
    return folder


def channels_of_run(run: Path) -> int:
    """The channels of the images that the model of a run takes; 3 if it cannot be opened, which `verify` reports."""
    from vitrim.errors import UserError
    from vitrim.saving.checkpoint import load

    try:
        return channels_of(load(run / "model"))
    except UserError:
        return 3


def on_training_device(model: "nn.Module") -> "nn.Module":
    """Move a model to the device of this process: a GPU if there is one, else the CPU."""
    from vitrim.runs.processes import this_process

    return model.to(this_process().device)


def export_folder(name: str) -> Path:
    """The folder for an exported file: the folder of the model's `config.json`, else the current folder."""
    from vitrim.saving.checkpoint import is_model_folder

    return next((folder for folder in (Path(name), Path(name) / "model") if is_model_folder(folder)), Path())


def existing_file(path: Path) -> Path:
    """Return the path of a file.

    Raises:
        SettingError: there is no such file, or it is empty.
    """
    if not path.is_file():
        raise SettingError(f"There is no file {path}.")
    if not path.stat().st_size:  # also files of /proc, which may block
        raise SettingError(f"The file {path} is empty.")
    return path
