"""A recipe: every setting of a run, in one TOML file. Settings live beside the code they set; this composes them."""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from vitrim.costs.budget import Budget
from vitrim.costs.latency import LatencySettings
from vitrim.errors import SettingError
from vitrim.importance import ImportanceSettings
from vitrim.recovery.recover import RecoverySettings
from vitrim.training import TrainingSettings

Kind = TypeVar("Kind")
SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """How many blocks go, and how `auto` finds out.

    Attributes:
        blocks: number of blocks to remove, or `auto`.
        max_share: `auto` tries 0, 1, 2, ... blocks up to this share of all.
        search_images: training images for the short distillation of each candidate.
        search_epochs: passes over them; 0 compares the candidates right after `recover`, which misleads.
    """

    blocks: int | Literal["auto"] = "auto"
    max_share: float = 0.25
    search_images: int = 10000
    search_epochs: int = 2

    def __post_init__(self) -> None:
        if self.blocks != "auto" and (not isinstance(self.blocks, int) or self.blocks < 0):
            raise SettingError(f"depth.blocks is {self.blocks!r}; expected a number from 0 or 'auto'.")
        if not 0 <= self.max_share < 1 or self.search_images < 2 or self.search_epochs < 0:
            raise SettingError(
                f"depth.max_share is {self.max_share}, search_images {self.search_images}, search_epochs "
                f"{self.search_epochs}; expected a share from 0 to below 1, at least 2 images, at least 0 epochs."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of `compress`.

    Attributes:
        width_training, depth_training: the distillation after the width cut and after the depth cut. With no block to
            remove there is no second one, and the first runs for the epochs of both.
        seed: decides calibration images, batches and augmentation.
    """

    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    importance: ImportanceSettings = field(default_factory=ImportanceSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    depth: DepthSettings = field(default_factory=DepthSettings)
    width_training: TrainingSettings = field(default_factory=TrainingSettings)
    depth_training: TrainingSettings = field(default_factory=TrainingSettings)
    latency: LatencySettings = field(default_factory=LatencySettings)

    def __post_init__(self) -> None:
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Every setting of `train`: one training on labels."""

    seed: int = 0
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=100, learning_rate=1e-3, drop_path=0.1, warmup_epochs=5)
    )

    def __post_init__(self) -> None:
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise SettingError(f"seed is {seed}; expected a whole number from 0.")


def load_recipe(kind: type[Kind], source: str | Path | None, changes: Sequence[str] = ()) -> Kind:
    """Read a recipe: a TOML file, or the name of a shipped one; then apply `key.key=value` changes.

    Raises:
        SettingError: no such file, not TOML, an unknown key (with the nearest right one), or a value out of range.
    """
    table = _read(source) if source is not None else {}
    for change in changes:
        set_in(table, change)
    return from_table(kind, table)


def from_table(kind: type[Kind], table: dict[str, Any], where: str = "") -> Kind:
    """Make a settings dataclass from nested tables; what is not given keeps its default."""
    hints = get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"expected one of {', '.join(fields)}."
            raise SettingError(f"There is no setting {where}{key}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise SettingError(f"{where}{key} is {value!r}; expected a table of settings.")
            default = _default(fields[key])
            values[key] = from_table(hints[key], {**to_table(default), **value}, f"{where}{key}.")
        else:
            values[key] = _checked(value, hints[key], f"{where}{key}")
    return kind(**values)


def to_table(settings: Any) -> dict[str, Any]:
    """Nested tables of a settings dataclass, ready for TOML or JSON."""
    return dataclasses.asdict(settings)


def to_toml(settings: Any) -> str:
    return tomli_w.dumps(to_table(settings))


def _default(item: dataclasses.Field) -> Any:
    assert item.default_factory is not dataclasses.MISSING
    return item.default_factory()


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    shipped = SHIPPED / f"{source}.toml"
    if not path.suffix and not path.is_file() and shipped.is_file():  # a folder `train` is no recipe
        path = shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
        raise SettingError(f"There is no recipe {source}; expected a TOML file or one of the shipped recipes: {names}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingError(f"The recipe {path} is not valid TOML: {problem}.") from None


def set_in(table: dict[str, Any], change: str) -> None:
    """Apply one `key.key=value`, the value as TOML would read it (a bare word is a string)."""
    name, equals, text = change.partition("=")
    if not equals or not name.strip():
        raise SettingError(f"Cannot read the setting {change!r}; expected KEY=VALUE, such as width_training.epochs=10.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, key = name.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise SettingError(f"Cannot set {name}: {parent} is not a table of settings.")
    table[key] = value


def _checked(value: Any, hint: Any, name: str) -> Any:
    """The value if it is of the hinted type; a whole number is welcome where a real one is expected."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if option is not float and isinstance(option, type) and type(value) is option:
            return value
    raise SettingError(f"{name} is {value!r}; expected {' or '.join(_spoken(option) for option in options)}.")


def _spoken(option: Any) -> str:
    if get_origin(option) is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(option))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "nothing"}
    return names.get(option, str(option))
