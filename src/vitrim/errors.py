"""The errors that a user can cause and fix.

The command line prints the message of a `UserError` and exits with status 2. Any other exception is a bug in vitrim.
"""

from pathlib import Path


class UserError(ValueError):
    """Base of these errors. The message says what was found, what was expected, and what to try."""


class SettingError(UserError):
    """A setting is unknown, has the wrong type, is out of range, or contradicts another setting."""


class DataError(UserError):
    """The images cannot be found or read, or do not fit the model."""


class UnsupportedModel(UserError):
    """The model is not of a family that vitrim can prune."""


class PlanMismatch(UserError):
    """A plan does not fit the model."""


class BudgetError(UserError):
    """A limit is out of range, or below the cost of the smallest possible model."""


class CheckpointMismatch(UserError):
    """A file or folder is not a checkpoint, or does not fit the architecture."""


class FolderInUse(UserError):
    """An output folder has other files, or a run with another recipe, model or data set."""


class NonFiniteLoss(UserError):
    """The training loss became infinite or not a number."""


class ExportFailed(UserError):
    """The exporter does not support the model, or the exported file cannot be run."""


class ExportMismatch(UserError):
    """The exported file does not compute the same logits as the model."""


class NotEnoughMemory(UserError):
    """The memory of the machine or of the device is not enough."""


class SaveMismatch(UserError):
    """A model was changed after it was created, and the model that would be loaded would not compute the same."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, for messages: `1 file`, `2 files`, `3 classes`."""
    plural = noun if number == 1 else noun + ("es" if noun.endswith(("s", "x", "tch", "nch")) else "s")
    return f"{number} {plural}"


def percent(fraction: float, decimals: int = 0, *, sign: bool = False) -> str:
    """Return a fraction in percent, for messages and tables: `70 %`; `68.6 %` with one decimal.

    Args:
        decimals: number of digits after the point.
        sign: write a plus before numbers above 0.
    """
    return f"{100 * fraction:{'+' if sign else ''}.{decimals}f} %"


def document(name: str) -> Path:
    """Return the path of a page of the documentation, such as `models.md`, in the installed package or in the clone."""
    installed = Path(__file__).parent / "docs" / name
    return installed if installed.is_file() else Path(__file__).parents[2] / "docs" / name
