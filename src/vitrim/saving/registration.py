"""Registers pruned models with timm and transformers when these libraries are imported, and not earlier.

After `import vitrim`, `timm.create_model("local-dir:FOLDER")` and `AutoModel.from_pretrained(FOLDER)` can build pruned
models. `import vitrim` itself imports neither library. The order of the imports does not matter.
"""

from importlib import import_module
from types import ModuleType

import wrapt


def register_when_imported() -> None:
    """Register with each library after its import; at once if it is imported already."""
    wrapt.register_post_import_hook(_register_with_timm, "timm")
    wrapt.register_post_import_hook(_register_with_transformers, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(_wrap_models, "transformers.modeling_utils")


# Trap: the hooks run before the import statement of the library has ended. So they import as little of vitrim as they
# can, and only now: a module of vitrim may have begun this import.


def _register_with_timm(timm: ModuleType) -> None:
    import_module("vitrim.saving.timm_hub").register_with_timm()


def _register_with_transformers(configurations: ModuleType) -> None:
    import_module("vitrim.models.transformers.auto").register(import_module("vitrim.surgery").prune)


def _wrap_models(models: ModuleType) -> None:
    import_module("vitrim.models.transformers.auto").redirect(models, import_module("vitrim.surgery").prune)
    import_module("vitrim.saving.transformers_hub").register(models)
