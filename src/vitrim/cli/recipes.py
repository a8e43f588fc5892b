"""The recipe that the options of a command describe: the file, then the options, then `--set`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrim.cli.options import BudgetOptions, CompressTraining, DenseTraining
from vitrim.cli.values import milliseconds, several_milliseconds
from vitrim.errors import SettingError

if TYPE_CHECKING:
    from vitrim.recipe import Recipe, TrainRecipe


ONE_SIZE = {  # replaces what a recipe file says about sizes if an option says another size
    "sizes.keeps": [],
    "sizes.latencies_ms": [],
    "search.max_drop": 0.0,
    "search.objective": "keep",
}


def train_recipe(options: DenseTraining, num_workers: int | str | None = None) -> "TrainRecipe":
    """Make the recipe of `train`: the file, then the options, then `--set`.

    Raises:
        SettingError: a setting is unknown, has the wrong type or is out of range.
    """
    from vitrim.recipe import TrainRecipe, load_recipe

    if options.epochs is not None and options.epochs < 1:
        raise SettingError(f"--epochs is {options.epochs}; expected at least 1.")

    named = {
        "training.epochs": options.epochs,
        "snapshots": options.snapshots,
        "training.batch_size": options.batch_size,
        "training.learning_rate": options.learning_rate,
        "training.num_workers": num_workers,
        "training.distillation.flip": "true" if options.teacher_flip else None,
        "seed": options.seed,
    }
    recipe = load_recipe(options.recipe, [*_changes(named), *(options.settings or [])], kind=TrainRecipe)
    if recipe.training.epochs == 0:
        raise SettingError("training.epochs is 0; expected at least 1, because a model is trained.")
    return recipe


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
    flip = "true" if training.teacher_flip else None
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
        "width_training.distillation.flip": flip,
        "depth_training.distillation.flip": flip,
        "seed": training.seed,
    }
    if training.epochs is not None:
        named["width_training.epochs"] = training.epochs // 2
        named["depth_training.epochs"] = training.epochs - training.epochs // 2
    return load_recipe(training.recipe, [*_changes(named), *(training.settings or [])], kind=Recipe)


def _limits(budget: BudgetOptions) -> dict[str, Any]:
    """The limits as settings of the recipe. A limit on one kind of cost removes the limits on the others."""
    given = (budget.keep, budget.keep_params, budget.keep_macs, budget.latency, budget.max_drop)
    if all(value is None for value in given):
        return {}
    fractions = {
        name: _numbers(getattr(budget, name)) for name in ("keep", "keep_params", "keep_macs") if getattr(budget, name)
    }
    if "keep" in fractions and len(fractions) > 1:
        raise SettingError(
            "--keep was given together with --keep-params or --keep-macs. Give either --keep for both costs, or "
            "--keep-params and --keep-macs."
        )
    several = next((f"--{name.replace('_', '-')}" for name, found in fractions.items() if len(found) > 1), "")
    if several and len(fractions) > 1:
        raise SettingError(f"{several} has several sizes. Give them with --keep, or limit one kind of cost.")
    if several not in ("", "--keep") and 1 in next(iter(fractions.values())):
        raise SettingError(f"{several} has the size 1, which limits nothing; expected fractions below 1.")
    if budget.max_drop is not None:
        return _search(budget, fractions, several)
    times = [] if budget.latency is None else several_milliseconds(budget.latency)
    if several and times:
        raise SettingError(f"{several} has several sizes, and --latency was given, too. Give one of them.")
    limits: dict[str, Any] = {
        **ONE_SIZE,
        "budget.params": _first(fractions, "keep", "keep_params"),
        "budget.macs": _first(fractions, "keep", "keep_macs"),
        "budget.latency_ms": max(times, default=None),
    }
    if len(times) > 1:
        limits["sizes.latencies_ms"] = times
    if several:
        limits["sizes.keeps"] = list(next(iter(fractions.values())))
    return _others_unlimited(limits)


def _search(budget: BudgetOptions, fractions: dict[str, tuple[float, ...]], several: str) -> dict[str, Any]:
    """The settings of `--max-drop`: which cost becomes as small as possible, and the largest size."""
    if several:
        raise SettingError(
            f"{several} has several sizes, and --max-drop was given, too. Give the sizes, or the drop for which a size "
            "is searched."
        )
    found: dict[str, Any] = {**ONE_SIZE, "search.max_drop": budget.max_drop}
    if not budget.max_drop:
        raise SettingError("--max-drop is 0; expected percentage points above 0, such as 0.5.")
    if budget.latency is not None:
        if fractions:
            raise SettingError("--keep and --latency were given with --max-drop. Give the one that is to become small.")
        latency_ms = 0.0 if budget.latency.strip() == "min" else milliseconds(budget.latency)
        found |= {"search.objective": "latency", "budget.latency_ms": latency_ms}
        return found | {"budget.params": 1.0, "budget.macs": 1.0}
    if len(fractions) > 1:
        raise SettingError("--keep-params and --keep-macs were given with --max-drop. Give --keep, or one of them.")
    if fractions:
        found["search.largest"] = next(iter(fractions.values()))[0]
    limits = {"budget.params": _first(fractions, "keep_params"), "budget.macs": _first(fractions, "keep_macs")}
    return found | _others_unlimited(limits)


def _others_unlimited(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits, where no limit on a cost replaces that of the recipe if another cost is limited."""
    if any(limits.get(name) is not None for name in ("budget.params", "budget.macs", "budget.latency_ms")):
        limits |= {name: 1.0 for name in ("budget.params", "budget.macs") if limits[name] is None}
    return limits


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (float(value),)


def _first(fractions: dict[str, tuple[float, ...]], *names: str) -> float | None:
    """The largest size of the first of these options that was given."""
    return next((max(fractions[name]) for name in names if name in fractions), None)


def _changes(named: dict[str, Any]) -> list[str]:
    """`KEY=VALUE` for each option that was given."""
    return [f"{key}={value}" for key, value in named.items() if value is not None]
