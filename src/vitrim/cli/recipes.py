"""The recipe that the options of a command describe: the file, then the options, then `--set`."""

from typing import TYPE_CHECKING, Any

from vitrim.cli.options import BudgetOptions, CompressTraining, DenseTraining
from vitrim.cli.values import milliseconds
from vitrim.errors import SettingError

if TYPE_CHECKING:
    from vitrim.recipe import Recipe, TrainRecipe


def train_recipe(options: DenseTraining, num_workers: int | str | None = None) -> "TrainRecipe":
    """Make the recipe of `train`: the file, then the options, then `--set`.

    Raises:
        SettingError: a setting is unknown, has the wrong type or is out of range.
    """
    from vitrim.recipe import TrainRecipe, load_recipe

    named = {
        "training.epochs": options.epochs,
        "training.batch_size": options.batch_size,
        "training.learning_rate": options.learning_rate,
        "training.num_workers": num_workers,
        "seed": options.seed,
    }
    return load_recipe(options.recipe, [*_changes(named), *(options.settings or [])], kind=TrainRecipe)


def compress_recipe(
    budget: BudgetOptions, training: CompressTraining, num_workers: int | str | None = None
) -> "Recipe":
    """Make the recipe of `compress` and `plan`: the file, then the options, then `--set`.

    Raises:
        SettingError: options contradict each other, or a setting is unknown, has the wrong type or is out of range.
        BudgetError: a limit is out of range.
    """
    from vitrim.recipe import Recipe, load_recipe

    if training.epochs is not None and training.epochs < 0:
        raise SettingError(f"--epochs is {training.epochs}; expected at least 0.")
    named = {
        **_limits(budget),
        "budget.multiple_of": budget.multiple_of,
        "heads.width": budget.head_width,
        "heads.multiple_of": budget.head_multiple_of,
        "latency.on": budget.on,
        "latency.batch_size": budget.latency_batch,
        "depth.blocks": budget.depth,
        "width_training.batch_size": training.batch_size,
        "depth_training.batch_size": training.batch_size,
        "width_training.num_workers": num_workers,
        "depth_training.num_workers": num_workers,
        "seed": training.seed,
    }
    if training.epochs is not None:
        named["width_training.epochs"] = training.epochs // 2
        named["depth_training.epochs"] = training.epochs - training.epochs // 2
    return load_recipe(training.recipe, [*_changes(named), *(training.settings or [])], kind=Recipe)


def _limits(budget: BudgetOptions) -> dict[str, float | None]:
    """The limits as settings of the recipe. A limit on one kind of cost removes the limits on the others."""
    if budget.keep is not None and (budget.keep_params is not None or budget.keep_macs is not None):
        raise SettingError(
            "--keep was given together with --keep-params or --keep-macs. Give either --keep for both costs, or "
            "--keep-params and --keep-macs."
        )
    limits = {
        "budget.params": budget.keep_params if budget.keep is None else budget.keep,
        "budget.macs": budget.keep_macs if budget.keep is None else budget.keep,
        "budget.latency_ms": None if budget.latency is None else milliseconds(budget.latency),
    }
    if any(limit is not None for limit in limits.values()):
        no_limit = {"budget.params": 1.0, "budget.macs": 1.0}
        limits |= {name: fraction for name, fraction in no_limit.items() if limits[name] is None}
    return limits


def _changes(named: dict[str, Any]) -> list[str]:
    """`KEY=VALUE` for each option that was given."""
    return [f"{key}={value}" for key, value in named.items() if value is not None]
