"""The command line: reads arguments, calls the library, prints tables. Exit status 0, 2 for what the user must change,
1 for a fault of ours. torch is imported only when a command runs.
"""

import errno
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from vitrim import __version__
from vitrim.cli.tables import print_line, print_plan, print_report, print_structure, print_table
from vitrim.errors import SettingError, UserError

if TYPE_CHECKING:
    from torch import nn

    from vitrim.data.images import ImageData
    from vitrim.evaluation import Difference
    from vitrim.recipe import Recipe
    from vitrim.structure import ViTStructure

PLACE_PROBLEMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
PLACE_PROBLEMS |= {errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}

app = App(
    name="vitrim",
    help="Make a trained Vision Transformer smaller and faster, and keep its accuracy.",
    version=f"vitrim {__version__}",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `_status` says how to go on
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What MODEL needs to be said about it, besides its name."""

    arch: Annotated[str | None, Parameter(help="timm architecture of a checkpoint file")] = None
    pretrained: Annotated[bool, Parameter(help="load timm's pretrained weights", negative="")] = False
    num_classes: Annotated[int | None, Parameter(help="number of outputs")] = None
    img_size: Annotated[int | None, Parameter(help="side of the input in pixels")] = None
    patch_size: Annotated[int | None, Parameter(help="side of a patch in pixels")] = None
    model_arg: Annotated[
        list[str] | None, Parameter(help="further argument of the architecture, KEY=VALUE; repeatable", negative="")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the images are and which of them are used."""

    data: Annotated[
        str,
        Parameter(help="digits, cifar10, cifar100, tiny-imagenet, or a folder with train/ and val/ of class folders"),
    ] = "digits"
    data_dir: Annotated[Path | None, Parameter(help="where a named data set lies already; else it is downloaded")] = (
        None
    )
    limit_per_class: Annotated[int | None, Parameter(help="use only so many training images of each class")] = None
    holdout: Annotated[
        float, Parameter(help="validate on this share cut from training instead of the official images, for tuning")
    ] = 0.0
    strict: Annotated[bool, Parameter(help="refuse broken images instead of skipping them", negative="")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """How the budget and the training are set; what is not given comes from the recipe."""

    keep: Annotated[float | None, Parameter(help="share of parameters and of multiply-adds that may stay")] = None
    keep_params: Annotated[float | None, Parameter(help="share of parameters, multiply-adds as they come")] = None
    keep_macs: Annotated[float | None, Parameter(help="share of multiply-adds, parameters as they come")] = None
    latency: Annotated[
        str | None,
        Parameter(help="what a forward pass may take, such as 12ms; bounds nothing else unless --keep is given"),
    ] = None
    on: Annotated[
        Literal["cpu", "cuda", "onnxruntime"] | None,
        Parameter(help="what runs the model whose latency is bounded and reported; else PyTorch where it is trained"),
    ] = None
    batch_size: Annotated[int | None, Parameter(help="images of a forward pass whose latency is bounded")] = None
    multiple_of: Annotated[
        Literal["auto"] | int | None,
        Parameter(help="round the kept neurons to a multiple, such as 8; auto measures which is fast"),
    ] = None
    depth: Annotated[Literal["auto"] | int | None, Parameter(help="blocks to remove; 0 none, auto finds out")] = None
    recipe: Annotated[str, Parameter(help="default, paper, or a TOML file")] = "default"
    set: Annotated[
        list[str] | None,
        Parameter(help="change any setting of the recipe, KEY=VALUE, such as width_training.epochs=10", negative=""),
    ] = None
    epochs: Annotated[int | None, Parameter(help="epochs of distillation, halved between width and depth")] = None
    train_batch_size: Annotated[int | None, Parameter(help="images for one update")] = None
    seed: Annotated[int | None, Parameter(help="decides images, batches and augmentation")] = None


@app.command
def demo(*, output: Annotated[Path, Parameter(name=["-o", "--output"])] = Path("runs/demo")) -> None:
    """Train, compress and report on handwritten digits; nothing is downloaded.

    Example: `vitrim demo`

    Parameters
    ----------
    output
        Folder of the run; called again, it goes on where it stopped.
    """
    from vitrim.cli.demo import run_demo

    report = run_demo(output)
    print_report(report, output)


@app.command
def train(
    model: str,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    recipe: Annotated[str, Parameter(help="train, or a TOML file")] = "train",
    set: Annotated[
        list[str] | None,
        Parameter(help="change any setting of the recipe, KEY=VALUE, such as training.drop_path=0.1", negative=""),
    ] = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
) -> None:
    """Train or fine-tune a dense Vision Transformer.

    Example: `vitrim train vit_tiny_patch16_224 --data ./flowers --pretrained -o runs/flowers`

    Parameters
    ----------
    model
        A timm name, a folder that vitrim wrote, or a checkpoint file with --arch.
    output
        Folder of the run; the same command goes on where it stopped.
    epochs
        Passes over the training images.
    batch_size
        Images for one update, over all processes.
    learning_rate
        Peak of the learning rate.
    seed
        Decides initial weights, batches and augmentation.
    """
    from vitrim.pipeline import fit
    from vitrim.recipe import TrainRecipe, load_recipe

    named = {"training.epochs": epochs, "training.batch_size": batch_size, "training.learning_rate": learning_rate}
    settings = load_recipe(TrainRecipe, recipe, [*_changes({**named, "seed": seed}), *(set or [])])
    data = _load_data(data_options or DataOptions())
    fit(_model_to_train(model, model_options or ModelOptions(), data, settings.seed), data, settings, output)


@app.command
def compress(
    model: str,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    recipe_options: RecipeOptions | None = None,
    scores: Annotated[Path | None, Parameter(help="scores.safetensors of an earlier run on the same model")] = None,
) -> None:
    """Make a model smaller and teach it back: width, recover, distil, depth, recover, distil, measure, save, report.

    Example: `vitrim compress runs/flowers --data ./flowers --keep 0.7 -o runs/flowers-small`

    Parameters
    ----------
    model
        A timm name, a folder that vitrim wrote, or a checkpoint file with --arch.
    output
        Folder of the run; the same command goes on where it stopped. The result is its subfolder `model`.
    """
    from vitrim import pipeline
    from vitrim.importance import Scores
    from vitrim.planning import check_budget

    recipe = _recipe(recipe_options or RecipeOptions())
    dense = _open_model(model, model_options or ModelOptions())
    check_budget(_describe(dense), recipe)
    data = _load_data(data_options or DataOptions())
    found = Scores.load(_existing(scores)) if scores else None
    result = pipeline.compress(dense, data, recipe, output, scores=found)
    print_report(result.report, output)


@app.command
def evaluate(
    model: str,
    *,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    against: Annotated[str | None, Parameter(help="a second model, compared on the same images")] = None,
    batch_size: Annotated[int, Parameter(help="images for one pass")] = 256,
) -> None:
    """Measure top-1, top-5 and loss with a 95 % interval; with --against also the paired difference.

    Example: `vitrim evaluate runs/flowers-small --data ./flowers --against runs/flowers`

    Parameters
    ----------
    model
        A timm name, a folder that vitrim wrote, or a checkpoint file with --arch.
    """
    from vitrim import evaluation
    from vitrim.data.matching import match_labels

    options, data = model_options or ModelOptions(), _load_data(data_options or DataOptions())
    names = [model, *([against] if against else [])]
    found = []
    for name in names:
        opened = _on_device(_open_model(name, options if name == model else ModelOptions()))
        found.append(evaluation.evaluate(opened, match_labels(data, opened), batch_size=batch_size))
    rows = [
        [
            name,
            f"{e.top1:.2f} % [{e.low:.2f}, {e.high:.2f}]",
            "-" if e.top5 is None else f"{e.top5:.2f} %",
            f"{e.loss:.4f}",
        ]
        for name, e in zip(names, found, strict=True)
    ]
    print_table(f"{found[0].num_images} validation images", ["model", "top-1 [95 %]", "top-5", "loss"], rows)
    if against:
        difference = evaluation.compare(found[1], found[0])
        print_line(f"{model} against {against}: {_points(difference)}")


@app.command
def inspect(model: str, *, model_options: ModelOptions | None = None) -> None:
    """Show block by block what a model is made of, what each part costs, and what can be pruned.

    Example: `vitrim inspect vit_small_patch16_224`

    Parameters
    ----------
    model
        A timm name, a folder that vitrim wrote, or a checkpoint file with --arch.
    """
    structure = _describe(_open_model(model, model_options or ModelOptions()))
    print_structure(structure)


@app.command
def plan(
    model: str,
    *,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    recipe_options: RecipeOptions | None = None,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
) -> None:
    """Score a model and print the plan for a budget, without cutting or training.

    Example: `vitrim plan runs/flowers --data ./flowers --keep 0.7`

    Parameters
    ----------
    model
        A timm name, a folder that vitrim wrote, or a checkpoint file with --arch.
    output
        File to write the plan to, as JSON.
    """
    from vitrim import pipeline
    from vitrim.planning import check_budget

    if output and output.is_dir():
        raise SettingError(f"{output} is a folder; -o names the JSON file to write the plan to.")
    recipe = _recipe(recipe_options or RecipeOptions())
    dense = _on_device(_open_model(model, model_options or ModelOptions()))
    structure = _describe(dense)
    check_budget(structure, recipe)
    found = pipeline.plan_only(dense, _load_data(data_options or DataOptions()), recipe)
    print_plan(structure, found)
    if output:
        from vitrim.runs.files import write_text

        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, found.plan.to_json())
        print_line(f"plan written to {output}")


@app.command
def export(
    model: str,
    *,
    format: Annotated[Literal["onnx", "torch-export"], Parameter(help="ONNX, or PyTorch's own .pt2")] = "onnx",
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    int8: Annotated[bool, Parameter(help="quantise to int8 and measure its accuracy on --data", negative="")] = False,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
) -> None:
    """Write a model as one file that runs without vitrim; it is read back, compared with the model, and timed.

    Example: `vitrim export runs/flowers-small --format onnx`

    Parameters
    ----------
    model
        A timm name, a folder that vitrim wrote, or a checkpoint file with --arch.
    output
        File to write; by default model.onnx, model.int8.onnx or model.pt2 beside the model's config.json, or here.
    """
    from vitrim import exporting

    path = output or _export_folder(model) / f"model{'.int8' if int8 else ''}{exporting.SUFFIXES[format]}"
    exporting.check_settings(path, format, int8=int8, has_data=data_options is not None)
    opened = _open_model(model, model_options or ModelOptions())
    data = _load_data(data_options) if data_options else None
    found = exporting.export(opened, path, format=format, int8=int8, data=data)
    header = ["", "size", *(f"difference, batch of {size}" for size in found.max_differences), "ms at batch 1"]
    rows = [
        [model, "", *("" for _ in found.max_differences), f"{found.eager.median_ms:.2f} (x 1.00)"],
        [
            str(path),
            f"{found.file_bytes / 1e6:.2f} MB",
            *(f"{difference:.1e}" for difference in found.max_differences.values()),
            f"{found.latency.median_ms:.2f} (x {found.latency.ratio:.2f})",
        ],
    ]
    if found.accuracy:
        header.append("top-1 [95 %]")
        for row, e in zip(rows, (found.accuracy.float32, found.accuracy.int8), strict=True):
            row.append(f"{e.top1:.2f} % [{e.low:.2f}, {e.high:.2f}]")
    print_table(f"{format}, {'int8' if int8 else 'float32'}", header, rows)
    print_line("difference: of a logit on random images, at most, as a share of the largest logit")
    print_line(f"ms: on the CPU, in turns; threads: {found.latency.threads}")
    if found.accuracy:
        images = f"{found.accuracy.int8.num_images} validation images, one by one"
        print_line(f"int8 against float32 on {images}: {_points(found.accuracy.difference)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit status."""
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except UserError as problem:
        return _complain(str(problem))
    except CycloptsError as problem:
        return _complain(" ".join(str(problem).split()) + " `vitrim COMMAND --help` shows an example.")
    except KeyboardInterrupt:
        return _complain("Interrupted. The same command goes on; a training from its last checkpoint.")
    except OSError as problem:
        if problem.errno in PLACE_PROBLEMS:
            return _complain(f"Cannot write or read {problem.filename or 'a file'}: {problem.strerror}.")
        traceback.print_exc()
        return 1
    except Exception:
        traceback.print_exc()
        print("This is a fault of vitrim, not of yours; please report it with the lines above.", file=sys.stderr)
        return 1


def _complain(message: str) -> int:
    print(f"vitrim: {message}", file=sys.stderr)
    return 2


def _changes(named: dict[str, Any]) -> list[str]:
    """`KEY=VALUE` for what was given on the command line, values as TOML writes them."""
    return [f"{key}={value}" for key, value in named.items() if value is not None]


def _recipe(options: RecipeOptions) -> "Recipe":
    from vitrim.recipe import Recipe, load_recipe

    if options.keep is not None and (options.keep_params is not None or options.keep_macs is not None):
        raise SettingError("Give either --keep for both, or --keep-params and --keep-macs, not all.")
    params, macs = options.keep_params, options.keep_macs
    if options.keep is not None:
        params = macs = options.keep
    elif (params is None) != (macs is None):  # one alone bounds that one alone
        params, macs = (1.0 if params is None else params), (1.0 if macs is None else macs)
    latency_ms = None if options.latency is None else _milliseconds(options.latency)
    if latency_ms is not None and params is None:
        params = macs = 1.0
    named = {
        "budget.params": params,
        "budget.macs": macs,
        "budget.latency_ms": latency_ms,
        "budget.multiple_of": options.multiple_of,
        "latency.on": options.on,
        "latency.batch_size": options.batch_size,
        "depth.blocks": options.depth,
        "width_training.batch_size": options.train_batch_size,
        "depth_training.batch_size": options.train_batch_size,
        "seed": options.seed,
    }
    if options.epochs is not None:
        named["width_training.epochs"] = options.epochs // 2
        named["depth_training.epochs"] = options.epochs - options.epochs // 2
    return load_recipe(Recipe, options.recipe, [*_changes(named), *(options.set or [])])


def _milliseconds(text: str) -> float:
    """What `12ms`, `12`, `0.5s` or `800us` are in milliseconds."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) *(us|ms|s)?", text.strip())
    if not found or not float(found[1]):
        raise SettingError(f"--latency is {text!r}; expected a time above 0, such as 12ms.")
    return float(found[1]) * {"us": 1e-3, "s": 1e3}.get(found[2], 1.0)


def _load_data(options: DataOptions) -> "ImageData":
    from vitrim.data.loading import load_data
    from vitrim.runs.progress import log

    found = load_data(
        options.data,
        data_dir=options.data_dir,
        limit_per_class=options.limit_per_class,
        holdout=options.holdout,
        strict=options.strict,
    )
    for line in found.summary():
        log(line)
    return found


def _open_model(name: str, options: ModelOptions) -> "nn.Module":
    from vitrim.saving.opening import open_model

    return open_model(
        name,
        arch=options.arch,
        pretrained=options.pretrained,
        num_classes=options.num_classes,
        img_size=options.img_size,
        patch_size=options.patch_size,
        model_args=_model_args(options.model_arg or []),
    )


def _model_to_train(name: str, options: ModelOptions, data: "ImageData", seed: int) -> "nn.Module":
    """The model with an output for each class of the data: built so, or given a fresh classifier."""
    import dataclasses

    import torch

    from vitrim.models import origin_of, with_new_head
    from vitrim.runs.progress import log

    torch.manual_seed(seed)
    is_new = not Path(name).exists()
    if is_new and options.num_classes is None:
        options = dataclasses.replace(options, num_classes=len(data.classes))
    model = _open_model(name, options)
    _describe(model)
    known, num_outputs = origin_of(model).classes, int(origin_of(model).model_args["num_classes"])
    fits = set(data.classes) <= set(known) if known else num_outputs == len(data.classes)
    if not is_new and not fits:
        log(f"{name} was trained for other classes; it gets a fresh classifier for {len(data.classes)}")
        return with_new_head(model, len(data.classes))
    return model


def _model_args(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` arguments, values as TOML reads them, a bare word as a string."""
    from vitrim.recipe import set_in

    table: dict[str, Any] = {}
    for pair in pairs:
        set_in(table, pair)
    return table


def _on_device(model: "nn.Module") -> "nn.Module":
    from vitrim.runs.processes import this_process

    return model.to(this_process().device)


def _describe(model: "nn.Module") -> "ViTStructure":
    from vitrim.models import describe

    return describe(model)


def _export_folder(name: str) -> Path:
    """Where an exported file goes by default: beside the model's `config.json`, else here."""
    from vitrim.saving.checkpoint import is_model_folder

    return next((folder for folder in (Path(name), Path(name) / "model") if is_model_folder(folder)), Path())


def _points(difference: "Difference") -> str:
    return (
        f"{difference.points:+.2f} points [{difference.low:+.2f}, {difference.high:+.2f}], paired, 95 %; "
        f"exact McNemar p = {difference.p_value:.3g}"
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SettingError(f"There is no file {path}.")
    return path
