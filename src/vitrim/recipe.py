"""Recipes: all settings of a run in one object, read from TOML and written to TOML.

`Recipe` holds the settings of `compress`, `TrainRecipe` those of `train`. This file has only the settings of the depth
stage and of the head width. The other settings classes are in the modules that use them.

The types are checked by hand, because no library reports all three of these: an unknown key with the nearest known key,
a wrong type in words with the whole key, and NaN. `msgspec` ignores unknown keys of dataclasses, accepts NaN, and fills
missing keys with the defaults of the inner class, not with those of the recipe.
"""

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints, overload

import tomli_w

from vitrim.checks import MAX_EPOCHS, MAX_SEED, check_types, checked, number_in, whole_in
from vitrim.costs.budget import Budget
from vitrim.costs.latency import LatencySettings
from vitrim.costs.sizes import SearchSettings, SizeSettings
from vitrim.errors import SettingError, UserError, counted, cut_name, shown
from vitrim.importance.criteria import ImportanceSettings
from vitrim.known.meaning import nearest
from vitrim.recovery.recover import RecoverySettings
from vitrim.runs.damage import check_file
from vitrim.runs.text_files import MAX_RECIPE_BYTES, read_text, within_limits
from vitrim.training.settings import TrainingSettings

Kind = TypeVar("Kind")
SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """How many blocks to remove, and how `auto` finds the number.

    Attributes:
        blocks: number of blocks to remove, or `auto`.
        max_share: `auto` tries 0, 1, 2, ... blocks, up to this fraction of all blocks.
        search_images: number of training images for the short distillation of each candidate.
        search_epochs: epochs of this distillation. With 0, `auto` compares the candidates right after `recover`. That
            accuracy does not predict the accuracy after distillation.

    Raises:
        SettingError: a value is out of range.
    """

    blocks: int | Literal["auto"] = "auto"
    max_share: float = 0.25
    search_images: int = 10000
    search_epochs: int = 2

    def __post_init__(self) -> None:
        check_types(self, search_epochs=MAX_EPOCHS)
        if self.blocks != "auto" and self.blocks < 0:
            raise SettingError(f"blocks is {self.blocks}; expected a whole number from 0, or auto.")
        if not 0 <= self.max_share < 1:
            raise SettingError(f"max_share is {self.max_share}; expected a fraction from 0 to below 1.")
        for name, minimum in {"search_images": 2, "search_epochs": 0}.items():
            if getattr(self, name) < minimum:
                raise SettingError(f"{name} is {getattr(self, name)}; expected at least {minimum}.")


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How narrow the attention heads become.

    Attributes:
        width: `full` keeps the width of all heads. A number is the width of the heads in every attention that can be
            narrowed. `auto` compares several widths, see `vitrim.head_width`.
        multiple_of: widths that `auto` compares are multiples of this. `auto` takes the largest of 8, 4, 2 and 1 that
            divides the head width of the model and is at most half of it.

    Raises:
        SettingError: a value is out of range.
    """

    width: int | Literal["auto", "full"] = "auto"
    multiple_of: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        for name, words in (("width", ", auto or full"), ("multiple_of", ", or auto")):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise SettingError(f"{name} is {value}; expected at least 1{words}.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of `compress`.

    Attributes:
        seed: seed of the calibration images, batches and augmentation.
        budget: limits on the cost of the result.
        importance: how heads and neurons are scored.
        heads: how narrow the heads become.
        recovery: the closed-form refit after each cut.
        depth: how many blocks are removed.
        width_training: distillation after the width cut. If no block is removed, it also runs for the epochs of
            `depth_training`.
        depth_training: distillation after the depth cut.
        latency: how latency is measured.
        sizes: several models from one run, instead of one to `budget`.
        search: the smallest model within a drop of accuracy, instead of one to `budget`.

    Raises:
        SettingError: a value is out of range, or several sizes and a search are asked for.
    """

    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    importance: ImportanceSettings = field(default_factory=ImportanceSettings)
    heads: HeadSettings = field(default_factory=HeadSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    depth: DepthSettings = field(default_factory=DepthSettings)
    width_training: TrainingSettings = field(default_factory=TrainingSettings)
    depth_training: TrainingSettings = field(default_factory=TrainingSettings)
    latency: LatencySettings = field(default_factory=LatencySettings)
    sizes: SizeSettings = field(default_factory=SizeSettings)
    search: SearchSettings = field(default_factory=SearchSettings)

    @property
    def label(self) -> str:
        """A short name of what is made: `70 %`, `90 %, 70 %`, or `drop 0.5` for a search."""
        if self.search.max_drop:
            return f"{'fastest ' if self.search.objective == 'latency' else ''}drop {self.search.max_drop:g}"
        budgets = self.sizes.budgets(self.budget) if self.sizes.are_several else [self.budget]
        return ", ".join(budget.label for budget in budgets)

    def __post_init__(self) -> None:
        _check_recipe(self)
        if self.sizes.are_several and self.search.max_drop:
            raise SettingError(
                "sizes and search.max_drop are both given. Give the sizes, or the drop for which a size is searched."
            )
        if self.search.max_drop and "best" in (self.width_training.keep_epoch, self.depth_training.keep_epoch):
            raise SettingError(
                "search.max_drop needs keep_epoch = last: images that choose an epoch cannot show that its accuracy is "
                "within the drop."
            )


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """All settings of `train`.

    Attributes:
        seed: seed of the initial weights, batches and augmentation.
        snapshots: number of cycles that the epochs are split into, each with the whole schedule of the learning rate
            (Huang et al. 2017, arXiv:1704.00109). The model at the end of each cycle is kept, as a teacher.
        training: the training. `distillation` is used with a teacher only; without, the labels are learned.

    Raises:
        SettingError: a value is out of range, or there are fewer epochs than snapshots.
    """

    seed: int = 0
    snapshots: int = 1
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            epochs=100, learning_rate=1e-3, drop_path=0.1, warmup_epochs=5, keep_epoch="best"
        )
    )

    def __post_init__(self) -> None:
        check_types(self, snapshots=MAX_EPOCHS)
        _check_recipe(self)
        if self.snapshots < 1:
            raise SettingError(f"snapshots is {self.snapshots}; expected at least 1.")
        if self.snapshots > max(1, self.training.epochs):
            raise SettingError(
                f"snapshots is {self.snapshots}, but there are {counted(self.training.epochs, 'epoch')}; expected at "
                "least one epoch for each snapshot."
            )


def _check_recipe(recipe: "Recipe | TrainRecipe") -> None:
    check_types(recipe, seed=MAX_SEED)
    if recipe.seed < 0:
        raise SettingError(f"seed is {recipe.seed}; expected a whole number from 0.")


COMMANDS: dict[Any, str] = {Recipe: "compress", TrainRecipe: "train"}  # which command reads a kind of recipe


@overload
def load_recipe(source: str | Path | None = "default", changes: Sequence[str] = ()) -> Any: ...
@overload
def load_recipe(source: str | Path | None = "default", changes: Sequence[str] = (), *, kind: type[Kind]) -> Kind: ...
@overload
def load_recipe(source: type[Kind], changes: str | Path | None, old_changes: Sequence[str] = ()) -> Kind: ...
def load_recipe(
    source: Any = "default", changes: Any = (), old_changes: Sequence[str] = (), *, kind: Any = None
) -> Any:
    """Read a recipe from TOML, then apply changes.

    The order of vitrim 0.1 also works: `load_recipe(Recipe, "default", ["seed=1"])`.

    Args:
        source: a TOML file, or the name of a shipped recipe: `default`, `paper`, `train`, `demo`, `demo-train`. None
            stands for an empty file, so all settings have their defaults.
        changes: settings to change, each `KEY=VALUE`, such as `width_training.epochs=10`.
        kind: `Recipe` or `TrainRecipe`. By default `TrainRecipe` if the file has a table `[training]`, else `Recipe`.

    Raises:
        SettingError: the file does not exist, is not TOML or is of the other kind, a key is unknown, or a value has
            the wrong type or is out of range. BudgetError: a limit is out of range.
    """
    if isinstance(source, type):
        return load_recipe(changes, old_changes, kind=source)
    table = _read(source, kind) if source is not None else {}
    if kind is None:
        kind = _kind_of(table)
    for change in changes:
        set_in(table, change)
    return from_table(kind, table)


def from_table(kind: type[Kind], table: dict[str, Any], where: str = "") -> Kind:
    """Make a settings dataclass from nested tables.

    Args:
        kind: the dataclass.
        table: values by field name. A missing field has its default. For a table inside, the defaults are those of this
            dataclass, not those of the inner one.
        where: printed before each key in errors, such as `budget.`.

    Raises:
        SettingError: a key is unknown, or a value has the wrong type.
        UserError: what the dataclass raises for a value out of range. Its message starts with the key of the dataclass;
            `where` is added to it here.
    """
    hints = get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in fields:
            near = nearest(key, list(fields))
            hint = f"did you mean {where}{near}?" if near else f"expected one of {', '.join(fields)}."
            raise SettingError(f"There is no setting {where}{cut_name(key) or shown(key)}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise SettingError(f"{where}{key} is {shown(value)}; expected a table of settings.")
            default = _default(fields[key])
            values[key] = from_table(hints[key], {**to_table(default), **value}, f"{where}{key}.")
        else:
            values[key] = checked(value, hints[key], f"{where}{key}")
    try:
        return kind(**values)
    except UserError as problem:
        raise type(problem)(f"{where}{problem}") from None


def to_table(settings: Any) -> dict[str, Any]:
    """Turn a settings dataclass into nested tables, for TOML or JSON."""

    def table(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in items}

    return dataclasses.asdict(settings, dict_factory=table)


def changeable_keys(settings: Any, where: str = "") -> frozenset[str]:
    """Keys with dots of the settings that may have another value when a run is continued.

    They do not change the result, or by rounding only. Each settings class that has some names them in `changeable`.

    Args:
        settings: a recipe, or settings in it.
        where: written before each key, such as `recipe.`.
    """
    own = settings.changeable() if hasattr(settings, "changeable") else ()
    keys = {f"{where}{name}" for name in own}
    for item in dataclasses.fields(settings):
        if dataclasses.is_dataclass(value := getattr(settings, item.name)):
            keys |= changeable_keys(value, f"{where}{item.name}.")
    return frozenset(keys)


def to_toml(settings: Any) -> str:
    """Write a settings dataclass as TOML, with all settings."""
    return tomli_w.dumps(to_table(settings))


def _default(item: dataclasses.Field) -> Any:
    assert item.default_factory is not dataclasses.MISSING
    return item.default_factory()


def _read(source: str | Path, kind: type[Any] | None) -> dict[str, Any]:
    """Read a TOML file or a shipped recipe. With a `kind`, a recipe of the other kind is refused."""
    path = Path(source)
    shipped = SHIPPED / f"{source}.toml"
    if not path.suffix and not path.is_file() and shipped.is_file():  # a data folder may be named `train`
        path = shipped
    if not path.is_file():
        names = _shipped_names(kind)
        near = nearest(str(source), names)
        hint = f"did you mean {near}? Expected" if near else "expected"
        raise SettingError(f"There is no recipe {source}; {hint} {', '.join(names)} or a TOML file.")
    table = _read_toml(path)
    other = Recipe if kind is TrainRecipe else TrainRecipe
    if kind in COMMANDS and table.keys() & _own_keys(other) and not table.keys() & _own_keys(kind):
        raise SettingError(
            f"The recipe {source} is for `vitrim {COMMANDS[other]}`; {COMMANDS[kind]} takes "
            f"{', '.join(_shipped_names(kind))} or a TOML file."
        )
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    check_file(path)  # it may be of a run
    text = read_text(path, MAX_RECIPE_BYTES, SettingError)
    if not text:
        raise SettingError(f"The recipe {path} is empty; expected settings, such as `seed = 0`.")
    with within_limits(f"The recipe {path} cannot be read", SettingError):
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as problem:
            raise SettingError(f"The recipe {path} is not valid TOML: {problem}.") from None


def _kind_of(table: dict[str, Any]) -> type[Any]:
    return TrainRecipe if "training" in table else Recipe


def _own_keys(kind: Any) -> set[str]:
    """The keys that only this kind of recipe has."""
    return {item.name for item in dataclasses.fields(kind)} - {"seed"}


def _shipped_names(kind: type[Any] | None) -> list[str]:
    """Names of the shipped recipes of this kind, `default` first; by default of both kinds."""
    kinds = {file.stem: _kind_of(_read_toml(file)) for file in sorted(SHIPPED.glob("*.toml"))}
    names = [name for name, found in kinds.items() if kind not in COMMANDS or found is kind]
    return sorted(names, key=lambda name: (name not in ("default", "train"), name))


def set_in(table: dict[str, Any], change: str) -> None:
    """Apply one change `key.key=value` to nested tables; see `value_in`.

    Raises:
        SettingError: there is no `=`, or a parent key is not a table.
    """
    name, equals, text = change.partition("=")
    if not equals or not name.strip():
        raise SettingError(
            f"Cannot read the setting {shown(change)}; expected KEY=VALUE, such as width_training.epochs=10."
        )
    *parents, key = name.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise SettingError(f"Cannot set {cut_name(name)}: {cut_name(parent)} is not a table of settings.")
    table[key] = value_in(text)


def value_in(text: str) -> Any:
    """The value of a setting on the command line: a number, another value in TOML, or else the text itself.

    Numbers are written as in the options: `0x10` and `1_000` are texts, which no setting of a number accepts.
    """
    for number in (whole_in(text), number_in(text)):
        if number is not None:
            return number
    try:
        value = tomllib.loads(f"value = {text}")
        json.dumps(value)  # dates are texts
    except (ValueError, RecursionError, TypeError):  # a number of 5,000 digits is a ValueError too
        return text.strip()
    is_number = type(value["value"]) in (int, float)
    return text.strip() if is_number or len(value) > 1 else value["value"]
