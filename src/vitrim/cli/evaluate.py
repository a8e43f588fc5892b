"""The command `evaluate`. torch is imported when it runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vitrim.cli import inputs
from vitrim.cli.options import DATA, MODEL, DataOptions, ModelName, ModelOptions
from vitrim.cli.tables import print_evaluations, print_line
from vitrim.cli.values import WHOLE

if TYPE_CHECKING:
    from torch import nn

    from vitrim.data.images import ImageData
    from vitrim.evaluation import Evaluation


Others = Annotated[
    list[str] | None,
    Parameter(
        group=MODEL,
        help="further model; the mean of the softmax outputs of all models is evaluated; repeatable (default: none)",
    ),
]
Split = Annotated[
    Literal["train", "val", "test"] | None,
    Parameter(
        group=DATA,
        show_choices=False,
        help="images to evaluate: val, on which train and compress validate; train, on which they train; or test "
        "(default: val; all images of a data set without splits)",
    ),
]


def evaluate(
    model: ModelName,
    *,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    against: Annotated[
        str | None, Parameter(group=MODEL, help="second model, compared on the same images (default: none)")
    ] = None,
    ensemble: Others = None,
    flip: Annotated[
        bool, Parameter(group=MODEL, help="evaluate the mean over an image and its mirror image (default: no)")
    ] = False,
    split: Split = None,
    eval_batch: Annotated[int, WHOLE, Parameter(group=DATA, help="images of one forward pass (default: 256)")] = 256,
) -> None:
    """Measure top-1 with its 95 % confidence interval, top-5 and loss.

    Example: `vitrim evaluate runs/flowers-small --data ./flowers --against runs/flowers`

    With --against, the paired difference of two models is also tested. --ensemble and --flip change only the first.
    """
    from vitrim.models import origin_of

    data_options = data_options or DataOptions()
    inputs.check_data_named(data_options)
    loaded: dict[int, ImageData] = {}  # by the number of channels

    def images_for(name: str, opened: "nn.Module") -> "ImageData":
        channels = inputs.channels_of(opened)
        if channels not in loaded:
            loaded[channels] = inputs.open_data(data_options, channels, split=split or "auto")
        inputs.warn_of_training_images(name, loaded[channels])
        return loaded[channels]

    others = inputs.open_models("--ensemble", ensemble) or []
    first = inputs.on_training_device(inputs.open_trained_model(model, model_options or ModelOptions()))
    data = images_for(model, first)
    for name in ensemble or ():
        inputs.warn_of_training_images(name, data)
    found = _measured([first, *map(inputs.on_training_device, others)], data, eval_batch, flip=flip)
    rows = [(inputs.ensemble_name([model, *(ensemble or ())], flip=flip), found, data)]
    if against is not None:
        are_files = Path(model).is_file() and Path(against).is_file()  # two checkpoints of one architecture
        options = model_options if model_options and are_files else ModelOptions()
        second = inputs.on_training_device(inputs.open_trained_model(against, options))
        images = images_for(against, second)
        # --class-names is for MODEL; the second model's own names, if it has some, may be in another order
        own = replace(images, class_names=None) if origin_of(second).classes else images
        rows.append((against, _measured([second], own, eval_batch), images))
    _print(rows)


def _measured(models: "Sequence[nn.Module]", data: "ImageData", batch_size: int, *, flip: bool = False) -> "Evaluation":
    """The evaluation of one model, or of the mean of the softmax outputs of several."""
    from vitrim.ensembles import evaluate_ensemble
    from vitrim.evaluation import evaluate as evaluate_model

    if len(models) == 1 and not flip:
        return evaluate_model(models[0], data, batch_size=batch_size)
    return evaluate_ensemble(models, data, flip=flip, batch_size=batch_size)


def _print(rows: "Sequence[tuple[str, Evaluation, ImageData]]") -> None:
    """Print what was evaluated, and the classes that are never recognised."""
    from vitrim.class_accuracy import classes_at_zero

    print_evaluations([(name, found) for name, found, _ in rows], rows[0][2].only)
    for name, found, data in rows:
        if sentence := classes_at_zero(found, data).sentence():
            print_line(f"{name}: {sentence}")
