"""Everything that can go wrong and that a user can mend, by name.

The command line turns a `UserError` into one sentence and exit status 2; any other exception is our fault.
"""


class UserError(ValueError):
    """Something that the user can change: the message says what was found, what was expected and what to try."""


class SettingError(UserError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""


class DataError(UserError):
    """The image data cannot be found, read or used with the model."""


class UnsupportedModel(UserError):
    """The model is not of a family that can be cut exactly."""


class PlanMismatch(UserError):
    """A plan and a model do not belong together."""


class BudgetError(UserError):
    """The budget is out of range or below what the smallest possible model needs."""


class CheckpointMismatch(UserError):
    """A checkpoint does not fit the architecture it is loaded into."""


class FolderInUse(UserError):
    """An output folder holds something else, or a run with another recipe, model or data set."""


class NonFiniteLoss(UserError):
    """The training loss became infinite or not a number."""


class ExportFailed(UserError):
    """An exporter cannot take the model, or its file cannot be run."""


class ExportMismatch(UserError):
    """An exported file computes something else than the model it was made from."""
