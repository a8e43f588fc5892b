"""Lets `save_pretrained` of transformers note what was changed on a model that vitrim pruned, saved or loaded.

transformers writes the configuration and the weights. A layer that was put in the place of another is in neither. So
the changes are put into the configuration while it is written, as `vitrim.save` does.
"""

from pathlib import Path
from typing import Any

import wrapt

from vitrim.errors import UserError
from vitrim.runs.progress import log


def register(models: Any) -> None:
    """Wrap `save_pretrained`; `models` is `transformers.modeling_utils`."""
    wrapt.wrap_function_wrapper(models, "PreTrainedModel.save_pretrained", _save_pretrained)


def _save_pretrained(save: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """transformers' `save_pretrained`. What cannot be noted is said, because a training may call this in between."""
    # Imported late: this file is imported during the import of transformers, which an adapter may have started.
    from vitrim.models import ORIGIN_ATTRIBUTE, describe, origin_of
    from vitrim.models.transformers.auto import MODEL_TYPE, with_changes
    from vitrim.saving.verification import find_changes

    folder = Path(args[0] if args else kwargs["save_directory"])
    if getattr(model, ORIGIN_ATTRIBUTE, None) is None and type(model.config).model_type != MODEL_TYPE:
        return _noted(folder, save(*args, **kwargs))
    try:
        origin = origin_of(model)
        changes, _ = find_changes(model, origin, describe(model))
    except UserError as problem:
        log(f"save_pretrained writes the weights, but not what else was changed on the model: {problem}")
        return _noted(folder, save(*args, **kwargs))
    if not changes:
        return _noted(folder, save(*args, **kwargs))
    with with_changes(model.config, changes, origin.model_args.get("init", {})):
        return _noted(folder, save(*args, **kwargs))


def _noted(folder: Path, result: Any) -> Any:
    """The result of `save_pretrained`, after the digests of a folder that vitrim wrote before were replaced."""
    from vitrim.runs.digests import note_model_folder

    note_model_folder(folder)
    return result
