"""The configuration of a cell, one TOML file. A cell is one model on one data set, with all its runs.

This file decides the settings of each arm, and refuses settings that contradict each other. It builds no model.
"""

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vitrim.errors import SettingError
from vitrim.losses import DistillationSettings
from vitrim.recipe import Recipe, TrainRecipe, from_table, load_recipe, to_table
from vitrim.training.settings import TrainingSettings

CONTROL, DISTILLED = "dense-control", "dense-distilled"
CONTROLS = (CONTROL, DISTILLED)  # arms of the whole dense model: one run for all fractions to keep
WHOLE_HEADS = "vitrim-whole-heads"
ARMS = (
    *("vitrim", WHOLE_HEADS, "paper", "hard-labels", "torch-pruning", "torch-pruning-head-widths", "random"),
    *("magnitude", "scratch", "timm-small", *CONTROLS),
)
WITHOUT_TEACHER = ("hard-labels", CONTROL)  # arms that learn the labels
PUBLISHED = ("paper", "hard-labels")  # arms that follow the recipe `paper`
CONFIGS = Path(__file__).parent / "configs"
SET_BY_CELL = (  # refused in [recipe], [vitrim], [student], [scratch] and [dense]
    *("seed", "epochs", "budget.params", "budget.macs", "width_training.epochs", "depth_training.epochs"),
    *("distillation", "keep_epoch", "training.keep_epoch", "width_training.keep_epoch", "depth_training.keep_epoch"),
)
# The images that are evaluated are the test images. They must not choose an epoch, and nobody waits for their accuracy.
NOT_EVALUATED = {"evaluate_every": 0, "keep_epoch": "last"}


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The images, as arguments of `vitrim.data.loading.load_data`.

    Attributes:
        source: name of a data set, such as `digits`, or path of a folder. `--data` overrides the place of the images.
        data_dir: folder of a named data set.
        limit_per_class: maximum number of training images of each class. None uses all.
        strict: refuse broken images instead of skipping them.
    """

    source: str = ""
    data_dir: str = ""
    limit_per_class: int | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The dense model, as arguments of `vitrim.saving.opening.open_model`.

    Attributes:
        architecture: timm's name.
        img_size: side of the images in pixels. None uses the size of the architecture.
        patch_size: side of the patches in pixels. None uses the size of the architecture.
        pretrained: start from timm's pretrained weights.
        weights: checkpoint file of this architecture to start from, instead of `pretrained`.
        model_args: further arguments of the architecture.
    """

    architecture: str = ""
    img_size: int | None = None
    patch_size: int | None = None
    pretrained: bool = False
    weights: str = ""
    model_args: dict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """What all students learn instead of the outputs of the dense model. Hidden states are those of the dense model.

    Attributes:
        models: folders of models or of finished trainings; relative paths begin at the folder of the cell. The mean of
            their softmax outputs is learned. With none, the dense model teaches.
        flip: the mean is also over each image and its mirror image.
        name: what the models are, in the tables, such as "3 snapshots". By default their number.
    """

    models: list = field(default_factory=list)
    flip: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        names = self.models
        if not isinstance(names, list) or not all(isinstance(one, str) and one for one in names):
            raise SettingError(f"teacher.models is {names!r}; expected a list of folders.")
        if len(set(names)) < len(names):
            raise SettingError(f"teacher.models is {names!r}; expected different folders.")

    @property
    def text(self) -> str:
        """The teacher in the tables, such as "3 snapshots, mirrored". Empty for the dense model alone."""
        if not self.models and not self.flip:
            return ""
        count = len(self.models)
        models = self.name or (f"{count} model{'s' if count > 1 else ''}" if count else "dense model")
        return models + (", mirrored" if self.flip else "")


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """All settings of one cell.

    Attributes:
        name: name of the cell, usable as a file name.
        model_name: name of the model in the tables.
        dataset: name of the data set in the tables.
        hardware: the hardware that the cell is made for.
        seeds: one run of every arm for each seed.
        keeps: fractions of the parameters and multiply-adds to keep.
        arms: the methods to compare, see `ARMS`.
        student_epochs: training epochs of each arm, the sum over all its stages.
        dense_seed: seed of the one dense model that serves all seeds. None trains one dense model for each seed.
        dense_from: folder of the training of the dense model in another cell, such as
            `../cifar100-small/seed-0/dense`; relative paths begin at the folder of the cell. It serves all seeds, and
            `[dense]` and `dense_seed` are those of its training. An empty text trains the dense model in this cell.
        fixed_macs: fraction of the dense model's multiply-adds that no arm can remove, such as those of a convolutional
            stem. A model may have `fixed_macs + keep * (1 - fixed_macs)` of the multiply-adds.
        tuning_share: above 0, validate on this fraction of each class's training images. The official validation
            images are then not used.
        data: the images.
        model: the dense model.
        teacher: what the students learn; by default the outputs of the dense model.
        dense: changes to the recipe `train`. `training.epochs = 0` uses pretrained weights without training.
        student: changes to the training of all students.
        scratch: further changes for students that start from random weights.
        recipe: changes to the recipes of all arms.
        vitrim: further changes to the recipe `default` only.
    """

    name: str = ""
    model_name: str = ""
    dataset: str = ""
    hardware: Literal["cpu", "gpu"] = "cpu"
    seeds: list = field(default_factory=lambda: [0])
    keeps: list = field(default_factory=lambda: [0.7])
    arms: list = field(default_factory=lambda: list(ARMS))
    student_epochs: int = 0
    dense_seed: int | None = None
    dense_from: str = ""
    fixed_macs: float = 0.0
    tuning_share: float = 0.0
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    dense: dict = field(default_factory=dict)
    student: dict = field(default_factory=dict)
    scratch: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    vitrim: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text(self)
        _check_lists(self)
        if not 0 <= self.fixed_macs < 1:
            raise SettingError(f"fixed_macs is {self.fixed_macs:g}; expected a fraction of at least 0 and below 1.")
        if not 0 <= self.tuning_share < 1:
            raise SettingError(f"tuning_share is {self.tuning_share:g}; expected a fraction of at least 0 and below 1.")
        _check_tables(self)
        for arm in self.arms:
            recipe_for(self, arm, keep=1.0, seed=0)
        scratch_training(self)
        epochs = dense_recipe(self, 0).training.epochs
        if self.student_epochs < 1 or (epochs and 2 * self.student_epochs > epochs):
            upper = f" and at most half of the dense model's {epochs}" if epochs else ""
            raise SettingError(f"student_epochs is {self.student_epochs}; expected at least 1{upper}.")

    def macs_limit(self, keep: float) -> float:
        """Return the fraction of the dense model's multiply-adds that a model may have."""
        return self.fixed_macs + keep * (1 - self.fixed_macs)


def load_config(path: str | Path) -> CellConfig:
    """Read the configuration of a cell.

    Raises:
        SettingError: the file does not exist or is not TOML, a key is unknown, or a value is out of range.
    """
    path = Path(path)
    if not path.is_file():
        names = ", ".join(sorted(file.name for file in CONFIGS.glob("*.toml")))
        raise SettingError(
            f"There is no configuration {path}; expected a TOML file, for example one of those in {CONFIGS}: {names}."
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
    """Return the compression settings of an arm.

    The student epochs are split evenly between the width and depth stages. An odd epoch is added to the width stage.
    Arms with one stage use only `budget`, `importance` and `width_training`.

    Args:
        config: the cell.
        arm: one of `ARMS`.
        keep: fraction of the parameters and multiply-adds to keep.
        seed: seed of the run.
    """
    table = _shipped_table(Recipe, "paper" if arm in PUBLISHED else "default")
    changes: list[dict[str, Any]] = [{"width_training": NOT_EVALUATED, "depth_training": NOT_EVALUATED}]
    changes += [config.recipe, {"width_training": config.student, "depth_training": config.student}]
    if arm not in PUBLISHED:
        changes.append(config.vitrim)
    if config.teacher.flip and arm not in WITHOUT_TEACHER:
        flipped = {"distillation": {"flip": True}}
        changes.append({"width_training": flipped, "depth_training": flipped})
    if arm == WHOLE_HEADS:
        changes.append({"heads": {"width": "full"}})
    for change in changes:
        table = merged(table, change)
    recipe = from_table(Recipe, table)
    width, depth = recipe.width_training, recipe.depth_training
    if arm == "hard-labels":
        labels = DistillationSettings(soft=0.0, hidden=0.0, relations=0.0, hard=1.0)
        width, depth = replace(width, distillation=labels), replace(depth, distillation=labels)
    depth_epochs = config.student_epochs // 2
    return replace(
        recipe,
        seed=seed,
        budget=replace(recipe.budget, params=keep, macs=config.macs_limit(keep)),
        width_training=replace(width, epochs=config.student_epochs - depth_epochs),
        depth_training=replace(depth, epochs=depth_epochs),
    )


def dense_recipe(config: CellConfig, seed: int) -> TrainRecipe:
    """Return the training recipe of the dense model: that of `vitrim train`, but the last epoch is kept."""
    table = merged(merged(_shipped_table(TrainRecipe, "train"), {"training": NOT_EVALUATED}), config.dense)
    return replace(from_table(TrainRecipe, table), seed=seed)


def student_training(config: CellConfig) -> TrainingSettings:
    """Return the settings of one distillation stage with all student epochs, for arms that have one stage."""
    return replace(recipe_for(config, "vitrim", keep=1.0, seed=0).width_training, epochs=config.student_epochs)


def scratch_training(config: CellConfig) -> TrainingSettings:
    """Return the distillation settings for random initial weights.

    Learning rate, warm-up and drop path are those of the dense model's training, because they suit random weights.
    """
    dense = dense_recipe(config, 0).training
    settings = replace(
        student_training(config),
        learning_rate=dense.learning_rate,
        warmup_epochs=dense.warmup_epochs,
        drop_path=dense.drop_path,
    )
    return from_table(TrainingSettings, merged(to_table(settings), config.scratch), "scratch.")


def select(config: CellConfig, *, seeds: str = "", keeps: str = "", arms: str = "") -> CellConfig:
    """Return the cell with only the selected seeds, keeps and arms.

    Args:
        config: the cell.
        seeds: comma-separated list such as `0,2`. An empty text selects all.
        keeps: the same for the fractions to keep, such as `0.7,0.5`.
        arms: the same for the arms.

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
    """Return a copy of `table` with `changes`. Nested tables are merged key by key."""
    result = dict(table)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


@cache
def _shipped_table(kind: type[Recipe] | type[TrainRecipe], name: str) -> dict[str, Any]:
    """Return a recipe of vitrim as tables. It is read once; `merged` does not change it."""
    return to_table(load_recipe(name, kind=kind))


def _chosen(name: str, text: str, known: Sequence[Any]) -> list[Any]:
    if not text:
        return list(known)
    spelled = {f"{value:g}" if isinstance(value, float) else str(value): value for value in known}
    selected = [_plain_number(word.strip()) for word in text.split(",")]
    for word in selected:
        if word not in spelled:
            raise SettingError(f"--{name} names {word!r}, which the cell does not have; it has {', '.join(spelled)}.")
    return [value for word, value in spelled.items() if word in selected]


def _plain_number(word: str) -> str:
    """Write a decimal number in its short form: `.50` becomes `0.5`. Other words are returned unchanged."""
    return f"{float(word):g}" if re.fullmatch(r"[0-9]*\.[0-9]+", word) else word


def _check_text(config: CellConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
        raise SettingError(f"name is {config.name!r}; expected letters, digits, '.', '-' and '_' only.")
    needed = {"model_name": config.model_name, "dataset": config.dataset}
    needed |= {"data.source": config.data.source, "model.architecture": config.model.architecture}
    for key, value in needed.items():
        if not value:
            raise SettingError(f"The configuration does not set {key}; add it.")
    if config.model.weights and config.model.pretrained:
        raise SettingError("model.weights and model.pretrained are both set; set one of them.")


def _check_lists(config: CellConfig) -> None:
    numbers = all(type(seed) is int and seed >= 0 for seed in config.seeds)
    if not config.seeds or not numbers or len(set(config.seeds)) < len(config.seeds):
        raise SettingError(f"seeds are {config.seeds}; expected different whole numbers of at least 0.")
    fractions = all(type(keep) is float and 0 < keep < 1 for keep in config.keeps)
    if not config.keeps or not fractions or len({f"{keep:g}" for keep in config.keeps}) < len(config.keeps):
        raise SettingError(f"keeps are {config.keeps}; expected different fractions between 0 and 1, such as 0.7.")
    if config.dense_seed is not None and config.dense_seed < 0:
        raise SettingError(f"dense_seed is {config.dense_seed}; expected a whole number of at least 0.")
    if config.dense_from and config.dense_seed is None:
        raise SettingError("dense_from is set, but dense_seed is not; set it to the seed of that dense model.")
    for arm in config.arms:
        if arm not in ARMS:
            near = difflib.get_close_matches(str(arm), ARMS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(ARMS)}."
            raise SettingError(f"There is no arm {arm!r}; {hint}")
    if not config.arms or len(set(config.arms)) < len(config.arms):
        raise SettingError(f"arms are {config.arms}; expected at least one, each once.")


def _check_tables(config: CellConfig) -> None:
    """Check each table separately, so that an error names the key as it is written in the file."""
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
                raise SettingError(f"{name}.{key} cannot be set: the cell's other settings and its arms decide it.")
        from_table(kind, table, f"{name}.")


def _has(table: Any, keys: Sequence[str]) -> bool:
    return isinstance(table, dict) and keys[0] in table and (len(keys) == 1 or _has(table[keys[0]], keys[1:]))
