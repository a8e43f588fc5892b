"""The commands: each calls the library and prints the result. torch is imported when a command runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from vitrim.cli import inputs
from vitrim.cli.evaluate import evaluate
from vitrim.cli.export import export
from vitrim.cli.listing import datasets, models
from vitrim.cli.options import (
    BUDGET,
    OUTPUT,
    TEACHER_HELP,
    TRAINING,
    BudgetOptions,
    CompressTraining,
    DataOptions,
    DenseTraining,
    ModelName,
    ModelOptions,
    RunOptions,
)
from vitrim.cli.push import push
from vitrim.cli.recipes import compress_recipe, train_recipe
from vitrim.cli.tables import (
    print_checks,
    print_line,
    print_plan,
    print_report,
    print_structure,
)
from vitrim.cli.watch import watch
from vitrim.errors import BudgetError, SettingError

if TYPE_CHECKING:
    from vitrim.recipe import Recipe


def demo(
    *,
    output: Annotated[
        Path,
        Parameter(
            name=["-o", "--output"],
            group=OUTPUT,
            help="folder of the run; the same command continues an interrupted run (default: runs/demo)",
        ),
    ] = Path("runs/demo"),
) -> None:
    """Train and compress a small model on handwritten digits, without downloads.

    Example: `vitrim demo`
    """
    from vitrim.cli.demo import run_demo

    report = run_demo(output)
    print_report(report, output)


def train(
    model: ModelName,
    *,
    run_options: RunOptions | None = None,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    training: DenseTraining | None = None,
    teacher: Annotated[
        list[str] | None, Parameter(group=TRAINING, help=f"{TEACHER_HELP} (default: none, the labels are learned)")
    ] = None,
) -> None:
    """Train or fine-tune a dense Vision Transformer.

    Example: `vitrim train vit_tiny_patch16_224 --data ./flowers --pretrained -o runs/flowers`

    The trained model is in the subfolder `model` of the run.
    """
    from vitrim.pipeline import fit
    from vitrim.runs.outputs import output_folder
    from vitrim.tracking.backends import check_trackers

    data_options, training = data_options or DataOptions(), training or DenseTraining()
    run_options = run_options or RunOptions()
    trackers = check_trackers(run_options.log or [])
    inputs.check_data_named(data_options)
    read = inputs.paths_read(model, data_options, training.recipe, teacher)
    output = output_folder(run_options.output, read) if run_options.output else None
    if training.teacher_flip and not teacher:
        raise SettingError("--teacher-flip needs a teacher; name one with --teacher.")
    recipe = train_recipe(training, data_options.num_workers)
    teachers = inputs.open_teachers(teacher)
    channels = inputs.channels_to_train_on(model, model_options or ModelOptions())
    data = inputs.open_data(data_options, channels)
    dense = inputs.open_model_to_train(model, model_options or ModelOptions(), data, recipe.seed)
    inputs.log_batch_sizes(data, [recipe.training])
    output = output or output_folder(inputs.default_run_folder(data, model), read)
    fit(dense, data, recipe, output, teacher=teachers, trackers=trackers)


def compress(
    model: ModelName,
    *,
    run_options: RunOptions | None = None,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    budget: BudgetOptions | None = None,
    training: CompressTraining | None = None,
    scores: Annotated[
        Path | None,
        Parameter(
            group=BUDGET,
            help="scores.safetensors of an earlier run on the same model (default: score the model)",
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None, Parameter(group=TRAINING, help=f"{TEACHER_HELP} (default: the dense model)")
    ] = None,
) -> None:
    """Prune a model to a budget, and distil it after each cut.

    Example: `vitrim compress runs/flowers --data ./flowers --keep 0.7 -o runs/flowers-small`

    The compressed model is in the subfolder `model` of the run, with `report.md` beside it.
    """
    from vitrim import pipeline
    from vitrim.importance.scores import Scores
    from vitrim.runs.outputs import output_folder
    from vitrim.source import Source, check
    from vitrim.tracking.backends import check_trackers

    data_options, training = data_options or DataOptions(), training or CompressTraining()
    run_options = run_options or RunOptions()
    trackers = check_trackers(run_options.log or [])
    inputs.check_data_named(data_options)
    read = inputs.paths_read(model, data_options, training.recipe, scores, teacher)
    output = output_folder(run_options.output, read) if run_options.output else None
    recipe = compress_recipe(budget or BudgetOptions(), training, data_options.num_workers)
    found = Scores.load(inputs.existing_file(scores)) if scores else None
    dense = inputs.open_trained_model(model, model_options or ModelOptions())
    check(Source.of(dense), recipe, found)  # before images are read
    teachers = inputs.open_teachers(teacher, {model: dense})
    data = inputs.open_data(data_options, inputs.channels_of(dense))
    inputs.log_batch_sizes(data, [recipe.width_training, recipe.depth_training])
    output = output or output_folder(inputs.default_run_folder(data, model, recipe), read)
    result = pipeline.compress(dense, data, recipe, output, scores=found, teacher=teachers, trackers=trackers)
    print_report(result.report, output)


def inspect(model: ModelName, *, model_options: ModelOptions | None = None) -> None:
    """Show the blocks of a model, their cost, and what can be pruned.

    Example: `vitrim inspect vit_small_patch16_224`
    """
    from vitrim.models import describe

    print_structure(describe(inputs.open_named_model(model, model_options or ModelOptions())))


def plan(
    model: ModelName,
    *,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
    budget: BudgetOptions | None = None,
    training: CompressTraining | None = None,
    output: Annotated[
        Path | None,
        Parameter(name=["-o", "--output"], group=OUTPUT, help="JSON file for the plan (default: no file is written)"),
    ] = None,
) -> None:
    """Score a model and print the plan for a budget, without pruning.

    Example: `vitrim plan runs/flowers --data ./flowers --keep 0.7`

    The options are those of compress, without --scores and --teacher. So most commands can be tried with plan first.
    """
    from vitrim import pipeline
    from vitrim.runs.files import write_text
    from vitrim.runs.outputs import PLAN, output_file
    from vitrim.source import Source, check

    data_options, training = data_options or DataOptions(), training or CompressTraining()
    read = inputs.paths_read(model, data_options, training.recipe)
    place = output_file(output, PLAN, read) if output else None
    inputs.check_data_named(data_options)
    recipe = compress_recipe(budget or BudgetOptions(), training, data_options.num_workers)
    if recipe.sizes.are_several or recipe.search.max_drop:
        raise SettingError("`plan` makes the plan of one size: give one size, and no --max-drop.")
    source = Source.of(inputs.open_trained_model(model, model_options or ModelOptions()))
    check(source, recipe)  # before images are read
    with _explained_for_auto(recipe):
        if recipe.depth.blocks == "auto":  # then `plan` removes no block
            check(source, replace(recipe, depth=replace(recipe.depth, blocks=0)))
        data = inputs.open_data(data_options, source.structure.in_chans)
        found = pipeline.plan_only(source.model, data, recipe)
    print_plan(source.structure, found)
    if place:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, found.plan.to_json())
        print_line(f"plan written to {output}")


@contextmanager
def _explained_for_auto(recipe: "Recipe") -> Iterator[None]:
    """Add to a `BudgetError` of `plan` that `compress` may remove blocks, where their number is `auto`."""
    try:
        yield
    except BudgetError as problem:
        if recipe.depth.blocks != "auto":
            raise
        raise BudgetError(f"{problem} `compress` with --depth auto may meet this budget with fewer blocks.") from None


def verify(
    run: Annotated[Path, Parameter(help="folder of a finished run of train or compress")],
    *,
    data_options: DataOptions | None = None,
) -> int:
    """Check a finished run: its files, model, accuracy, cost and exported files against its report.

    Example: `vitrim verify runs/flowers-small --data ./flowers`

    Each line says what holds. The exit status is 0 if all of it holds, else 1.
    """
    from vitrim.verifying import verify as verify_run

    data_options = data_options or DataOptions()
    inputs.check_data_named(data_options)
    channels = inputs.channels_of_run(run)
    checks = verify_run(run, inputs.open_data(data_options, channels))
    print_checks(run, checks)
    return int(any(check.holds is False for check in checks))


MAKE, EXAMINE, PASS_ON, LOOK_UP, GENERAL = (
    Group(name, sort_key=position)
    for position, name in enumerate(("Make a model", "Examine", "Pass on", "Look up", "General"))
)
GROUPS: Mapping[Group, Sequence[Callable[..., int | None]]] = {  # the order of `vitrim --help`
    MAKE: (demo, train, compress, watch),
    EXAMINE: (inspect, plan, evaluate, verify),
    PASS_ON: (export, push),
    LOOK_UP: (models, datasets),
}
COMMANDS = tuple(command for commands in GROUPS.values() for command in commands)
