"""A cell of the benchmark: one model on one data set, and everything that is done with it, in one TOML file.

Decides which settings each arm gets, and refuses a file whose settings contradict each other. It builds no model.
"""

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vitrim.errors import SettingError
from vitrim.losses import DistillationSettings
from vitrim.recipe import Recipe, TrainRecipe, from_table, load_recipe, to_table
from vitrim.training import TrainingSettings

CONTROL = "dense-control"
ARMS = ("vitrim", "paper", "hard-labels", "torch-pruning", "random", "magnitude", "scratch", "timm-small", CONTROL)
PUBLISHED = ("paper", "hard-labels")  # arms that follow the recipe `paper`
CONFIGS = Path(__file__).parent / "configs"
SET_BY_CELL = (  # and so refused in [recipe], [vitrim], [student], [scratch] and [dense]
    *("seed", "epochs", "budget.params", "budget.macs", "width_training.epochs", "depth_training.epochs"),
    "distillation",
)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images; as `vitrim.data.load_data` takes them.

    Attributes:
        source: a name such as `digits`, or the path of a folder; `--data` says where it is on another machine.
        data_dir: where a named data set lies.
        limit_per_class: use only so many training images of each class.
        strict: refuse broken images instead of skipping them.
    """

    source: str = ""
    data_dir: str = ""
    limit_per_class: int | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The dense model; as `vitrim.saving.opening.open_model` takes it.

    Attributes:
        weights: a checkpoint file of this architecture to start from, instead of timm's `pretrained` weights.
        model_args: further arguments of the architecture.
    """

    architecture: str = ""
    img_size: int | None = None
    patch_size: int | None = None
    pretrained: bool = False
    weights: str = ""
    model_args: dict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """One cell: every setting of its runs.

    Attributes:
        name: of the cell, usable as a file name. model_name, dataset: as they stand in tables.
        hardware: what the cell is meant for.
        keeps: shares of parameters and multiply-adds that may stay.
        student_epochs: of each arm, over all its stages together.
        tuning_share: above 0, validate on this share of each class' training images; official ones stay unseen.
        dense: changes to the recipe `train`; `training.epochs = 0` takes pretrained weights as they are.
        student: changes to the training of all students. scratch: further ones where the weights begin at random.
        recipe: changes to the recipes of all arms. vitrim: further ones to the recipe `default` alone.
    """

    name: str = ""
    model_name: str = ""
    dataset: str = ""
    hardware: Literal["cpu", "gpu"] = "cpu"
    seeds: list = field(default_factory=lambda: [0])
    keeps: list = field(default_factory=lambda: [0.7])
    arms: list = field(default_factory=lambda: list(ARMS))
    student_epochs: int = 0
    tuning_share: float = 0.0
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    dense: dict = field(default_factory=dict)
    student: dict = field(default_factory=dict)
    scratch: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    vitrim: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text(self)
        _check_lists(self)
        if not 0 <= self.tuning_share < 1:
            raise SettingError(f"tuning_share is {self.tuning_share:g}; expected a share from 0 to below 1.")
        _check_tables(self)
        for arm in self.arms:
            recipe_for(self, arm, keep=1.0, seed=0)
        scratch_training(self)
        epochs = dense_recipe(self, 0).training.epochs
        if self.student_epochs < 1 or (epochs and 2 * self.student_epochs > epochs):
            most = f" and at most half of the dense model's {epochs}" if epochs else ""
            raise SettingError(f"student_epochs is {self.student_epochs}; expected at least 1{most}.")


def load_config(path: str | Path) -> CellConfig:
    """Read a cell.

    Raises:
        SettingError: no such file, not TOML, an unknown key (with the nearest right one), or a value out of range.
    """
    path = Path(path)
    if not path.is_file():
        names = ", ".join(sorted(file.name for file in CONFIGS.glob("*.toml")))
        raise SettingError(
            f"There is no configuration {path}; expected a TOML file, such as one in {CONFIGS}: {names}."
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingError(f"The configuration {path} is not valid TOML: {problem}.") from None
    for key in ("seeds", "keeps", "arms"):
        if not isinstance(table.get(key, []), list):
            raise SettingError(f"{key} is {table[key]!r}; expected a list.")
    for key in ("dense", "student", "scratch", "recipe", "vitrim"):
        if not isinstance(table.get(key, {}), dict):
            raise SettingError(f"{key} is {table[key]!r}; expected a table of settings.")
    return from_table(CellConfig, table)


def recipe_for(config: CellConfig, arm: str, *, keep: float, seed: int) -> Recipe:
    """The settings with which an arm compresses; arms that have one stage use the importance and `width_training`.

    The epochs of the students are shared out between width and depth, the odd one to width.
    """
    table = to_table(load_recipe(Recipe, "paper" if arm in PUBLISHED else "default"))
    changes = [config.recipe, {"width_training": config.student, "depth_training": config.student}]
    if arm not in PUBLISHED:
        changes.append(config.vitrim)
    for change in changes:
        table = merged(table, change)
    recipe = from_table(Recipe, table)
    width, depth = recipe.width_training, recipe.depth_training
    if arm == "hard-labels":
        labels = DistillationSettings(soft=0.0, hidden=0.0, relations=0.0, hard=1.0)
        width, depth = replace(width, distillation=labels), replace(depth, distillation=labels)
    later = config.student_epochs // 2
    return replace(
        recipe,
        seed=seed,
        budget=replace(recipe.budget, params=keep, macs=keep),
        width_training=replace(width, epochs=config.student_epochs - later),
        depth_training=replace(depth, epochs=later),
    )


def dense_recipe(config: CellConfig, seed: int) -> TrainRecipe:
    """How the dense model is trained: what `vitrim train` would use."""
    table = merged(to_table(load_recipe(TrainRecipe, "train")), config.dense)
    return replace(from_table(TrainRecipe, table), seed=seed)


def student_training(config: CellConfig) -> TrainingSettings:
    """Our distillation in one stage, of all the students' epochs: what arms without a recipe of their own get."""
    return replace(recipe_for(config, "vitrim", keep=1.0, seed=0).width_training, epochs=config.student_epochs)


def scratch_training(config: CellConfig) -> TrainingSettings:
    """Our distillation for weights that begin at random: as fast and as regularised as the dense model's training."""
    dense = dense_recipe(config, 0).training
    settings = replace(
        student_training(config),
        learning_rate=dense.learning_rate,
        warmup_epochs=dense.warmup_epochs,
        drop_path=dense.drop_path,
    )
    return from_table(TrainingSettings, merged(to_table(settings), config.scratch), "scratch.")


def select(config: CellConfig, *, seeds: str = "", keeps: str = "", arms: str = "") -> CellConfig:
    """The part of a cell that lists such as `0,2` name; an empty list names all.

    Raises:
        SettingError: a list names something that the cell does not have.
    """
    return replace(
        config,
        seeds=_chosen("seeds", seeds, config.seeds),
        keeps=_chosen("keeps", keeps, config.keeps),
        arms=_chosen("arms", arms, config.arms),
    )


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`table` with `changes`, nested tables key by key; neither is changed."""
    result = dict(table)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _chosen(name: str, text: str, known: Sequence[Any]) -> list[Any]:
    if not text:
        return list(known)
    spelled = {f"{value:g}" if isinstance(value, float) else str(value): value for value in known}
    wanted = [_plain_number(word.strip()) for word in text.split(",")]
    for word in wanted:
        if word not in spelled:
            raise SettingError(f"--{name} names {word!r}, which the cell does not have; it has {', '.join(spelled)}.")
    return [value for word, value in spelled.items() if word in wanted]


def _plain_number(word: str) -> str:
    """`.50` as `0.5`; what is no such number as it is."""
    return f"{float(word):g}" if re.fullmatch(r"[0-9]*\.[0-9]+", word) else word


def _check_text(config: CellConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
        raise SettingError(f"name is {config.name!r}; expected letters, digits, '.', '-' and '_', as in a file name.")
    needed = {"model_name": config.model_name, "dataset": config.dataset}
    needed |= {"data.source": config.data.source, "model.architecture": config.model.architecture}
    for key, value in needed.items():
        if not value:
            raise SettingError(f"The configuration does not say {key}; add it.")
    if config.model.weights and config.model.pretrained:
        raise SettingError("model.weights names a file and model.pretrained asks for timm's weights; set one of them.")


def _check_lists(config: CellConfig) -> None:
    numbers = all(type(seed) is int and seed >= 0 for seed in config.seeds)
    if not config.seeds or not numbers or len(set(config.seeds)) < len(config.seeds):
        raise SettingError(f"seeds are {config.seeds}; expected different whole numbers from 0.")
    shares = all(type(keep) is float and 0 < keep < 1 for keep in config.keeps)
    if not config.keeps or not shares or len({f"{keep:g}" for keep in config.keeps}) < len(config.keeps):
        raise SettingError(f"keeps are {config.keeps}; expected different shares between 0 and 1, such as 0.7.")
    for arm in config.arms:
        if arm not in ARMS:
            near = difflib.get_close_matches(str(arm), ARMS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(ARMS)}."
            raise SettingError(f"There is no arm {arm!r}; {hint}")
    if not config.arms or len(set(config.arms)) < len(config.arms):
        raise SettingError(f"arms are {config.arms}; expected at least one, each once.")


def _check_tables(config: CellConfig) -> None:
    """Each table alone, so that an error names the key as it stands in the file."""
    tables: list[tuple[str, Any, dict[str, Any]]] = [
        ("student", TrainingSettings, config.student),
        ("scratch", TrainingSettings, config.scratch),
        ("recipe", Recipe, config.recipe),
        ("vitrim", Recipe, config.vitrim),
        ("dense", TrainRecipe, config.dense),
    ]
    for name, kind, table in tables:
        for key in SET_BY_CELL:
            if _has(table, key.split(".")):
                raise SettingError(f"{name}.{key} cannot be set: it follows from the cell's own settings or its arms.")
        from_table(kind, table, f"{name}.")


def _has(table: Any, keys: Sequence[str]) -> bool:
    return isinstance(table, dict) and keys[0] in table and (len(keys) == 1 or _has(table[keys[0]], keys[1:]))
