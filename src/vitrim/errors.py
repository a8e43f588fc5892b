"""The errors that a user can cause and fix.

The command line prints the message of a `UserError` and exits with status 2. Any other exception is a bug in vitrim.
"""

import re
import reprlib
import unicodedata
from pathlib import Path

MAX_WORD, MAX_MESSAGE = 300, 3000  # characters; what is longer is cut in the middle


class UserError(ValueError):
    """Base of these errors. The message says what was found, what was expected, and what to try.

    A message holds names from files and the command line, so it is made `visible`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(message))


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


class NotEnoughMemory(UserError):
    """A computation does not fit into the memory of the device, also with the smallest batches."""


class PartnerMissing(UserError):
    """Another process of the run has not started."""


class ExportFailed(UserError):
    """The exporter does not support the model, or the exported file cannot be run."""


class ExportMismatch(UserError):
    """The exported file does not compute the same logits as the model."""


class SaveMismatch(UserError):
    """A model was changed after it was created, and the model that would be loaded would not compute the same."""


# Text from outside, for messages, logs, tables and reports


def visible(text: str) -> str:
    """Return one line in which nothing is hidden and nothing moves the cursor of a terminal.

    Control characters, marks of the direction of writing and bytes that are not UTF-8 are escaped: `\\n`, `\\x1b`,
    `\\u202e`, `\\xff`. Long words, such as a name of 10,000 characters, and long texts are cut in the middle.
    """
    text = _cut(text, 2 * MAX_MESSAGE)  # escaping takes time
    if not text.isprintable():
        text = "".join(map(_escaped, text))
    if len(text) > MAX_WORD:
        text = re.sub(rf"\S{{{MAX_WORD + 1},}}", lambda found: _cut(found[0], MAX_WORD), text)
    return _cut(text, MAX_MESSAGE)


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # wide and narrow spaces
        return character
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, limit: int) -> str:
    """The beginning and the end of a long text; the end of a path says most."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]}...{text[3 - limit // 3 :]}"


def cut_name(name: object, limit: int = 60) -> str:
    """Return a name for a table or a list of names: `visible`, and at most `limit` characters long."""
    return _cut(visible(str(name)), limit)


class _Short(reprlib.Repr):
    """As `repr`, but short for any value: long texts, deep lists, and numbers of thousands of digits."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 128 else f"a number of {x.bit_length():,} bits"

    def repr_float(self, x: float, level: int) -> str:
        return repr(x)


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """Return a value that a person or a file gave, for a message: as Python writes it, short and `visible`."""
    return visible(_SHORT.repr(value))


# Words of messages


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, for messages: `1 file`, `2,160 files`, `3 classes`."""
    plural = noun if number == 1 else noun + ("es" if noun.endswith(("s", "x", "tch", "nch")) else "s")
    return f"{number:,} {plural}"


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
