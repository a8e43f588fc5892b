"""vitrim: make a trained Vision Transformer smaller and faster, and keep its accuracy.

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so `import vitrim` is fast.
"""

import lazy_loader

from vitrim.saving.registration import register_when_imported

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register_when_imported()
