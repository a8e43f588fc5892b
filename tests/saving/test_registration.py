"""After `import vitrim`, timm and transformers can build pruned models, whatever the order of imports and probes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from builders.exactness import images_for
from builders.families_timm import build_row
from builders.families_transformers import HUGGINGFACE
from builders.models import build, random_plan
from vitrim.models import describe
from vitrim.saving.checkpoint import save
from vitrim.surgery import prune

# The libraries below timm and transformers are imported once. Each order is then tried in a child process of its own.
CODE = """
import json, os, sys, traceback

def begin(code):
    child = os.fork()
    if child:
        return child
    try:
        exec(code, {"__name__": "__main__"})
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def succeeds(child):
    return os.waitpid(child, 0)[1] == 0

folder, expected, of_transformers, orders = *sys.argv[1:4], json.loads(sys.argv[4])
light = "import sys, vitrim; assert not {'torch', 'timm', 'numpy', 'transformers'} & sys.modules.keys()"
found = {"light": succeeds(begin(light))}
import torch, torchvision, scipy.optimize, huggingface_hub.hf_api
assert not {"timm", "transformers", "vitrim"} & sys.modules.keys()
names = list(orders)
for pair in zip(names[::2], names[1::2] + [None] * (len(names) % 2)):
    children = {name: begin(orders[name]) for name in pair if name}
    found |= {name: succeeds(child) for name, child in children.items()}
print(json.dumps(found))
"""
CHECK = """
import sys, timm, torch, vitrim
model = timm.create_model(f"local-dir:{sys.argv[1]}").eval()
with torch.no_grad():
    found = model(torch.ones(1, 3, 32, 32)).sum().item()
assert abs(found - float(sys.argv[2])) < 1e-5, found
if "transformers" in sys.modules:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    assert "vitrim" in CONFIG_MAPPING
"""
# Classes of transformers load a pruned model too.
FROM_TRANSFORMERS = """
import torch
from transformers import AutoModelForImageClassification, ViTForImageClassification
images, expected = torch.load(sys.argv[3] + "/expected.pt")
for cls in (ViTForImageClassification, AutoModelForImageClassification):
    with torch.no_grad():
        logits = cls.from_pretrained(sys.argv[3])(images).logits
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)
"""
CONFIGURATIONS, MODELING = "transformers.models.auto.configuration_auto", "transformers.modeling_utils"
LAZY = """
import importlib.util, sys
def lazy(name):
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
"""
FAILING = """
import sys
sys.modules["{missing}"] = None
try:
    import {library}
    raise SystemExit("the import was to fail")
except ImportError:
    del sys.modules["{missing}"]
"""
ORDERS = {
    "vitrim, timm": "import vitrim, timm",
    "vitrim, transformers": f"import sys, vitrim, transformers{FROM_TRANSFORMERS}",
    "transformers, vitrim": f"import sys, transformers, vitrim{FROM_TRANSFORMERS}",
    "vitrim, modeling_utils": f"import vitrim, {MODELING}",
    "configuration_auto, vitrim": f"import {CONFIGURATIONS}, vitrim",
    "timm, vitrim": "import timm, vitrim",
    "timm, vitrim.models": "import sys, timm, vitrim.models\nassert 'transformers' not in sys.modules",
    "vitrim, from timm": "import vitrim\nfrom timm import create_model",
    "vitrim, timm.models": "import vitrim, timm.models",
    "timm.models, vitrim": "import timm.models.vision_transformer, vitrim",
    "timm.layers, vitrim": "import timm.layers, vitrim",
    "find_spec": "import vitrim, importlib.util\n"
    "for name in ('timm', 'timm', 'timm.models'):\n    assert importlib.util.find_spec(name)",
    "find_spec, vitrim": "import importlib.util\nassert importlib.util.find_spec('timm')\nimport vitrim",
    "is_timm_available": "import vitrim\nfrom transformers.utils import is_timm_available\nassert is_timm_available()",
    "pkgutil": "import pkgutil, vitrim\n"
    "for found in pkgutil.iter_modules():\n"
    "    found.name in ('timm', 'transformers') and found.module_finder.find_spec(found.name)",
    "importlib.metadata": "import importlib.metadata, vitrim\nassert importlib.metadata.version('timm')",
    "a failed import": f"import vitrim{FAILING.format(missing='timm.models', library='timm')}",
    "a failed import before": f"{FAILING.format(missing='timm.models', library='timm')}\nimport vitrim",
    "timm hidden": f"import vitrim{FAILING.format(missing='timm', library='timm')}",
    "LazyLoader": f"import vitrim{LAZY}lazy('timm')",
    "LazyLoader, vitrim": f"{LAZY}lazy('timm')\nimport vitrim",
    "by its spec": "import sys, vitrim, importlib.util\nspec = importlib.util.find_spec('timm')\n"
    "sys.modules['timm'] = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(sys.modules['timm'])",
    "timm reloaded": "import vitrim, timm, importlib\nimportlib.reload(timm)",
    "vitrim reloaded": "import vitrim, timm, importlib\nimportlib.reload(vitrim)",
    "in threads": "import threading, vitrim\n"
    "threads = [threading.Thread(target=__import__, args=(name,)) for name in ('timm', 'transformers') * 2]\n"
    "[thread.start() for thread in threads]\n[thread.join() for thread in threads]",
}


EVERY_RUN = {  # one order of each kind; the others are tried in the slow run
    *("vitrim, timm", "timm, vitrim", "vitrim, transformers", "transformers, vitrim", "find_spec", "is_timm_available"),
    *("a failed import", "LazyLoader"),
}


def save_model_of_transformers(folder: Path) -> Path:
    """Save a pruned model, with images and the logits that it computes for them."""
    dense = build_row(HUGGINGFACE["transformers ViT"], dtype=torch.float32)
    student = prune(dense, random_plan(describe(dense), seed=1))
    images = images_for(describe(student), dtype=torch.float32)
    save(student, folder)
    with torch.no_grad():
        torch.save((images, student(images).logits), folder / "expected.pt")
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], dict[str, bool]]:
    """Returns whether each order of every run, or each other order, worked, and whether `import vitrim` was light."""
    return cache(lambda in_every_run: try_orders(in_every_run, tmp_path_factory.mktemp("models")))


def try_orders(in_every_run: bool, folder: Path) -> dict[str, bool]:
    dense = build(dtype=torch.float32)
    student = prune(dense, random_plan(describe(dense), seed=1, blocks=(0, 2)))
    with torch.no_grad():
        expected = student(torch.ones(1, 3, 32, 32)).sum().item()
    folders = save(student, folder / "timm"), save_model_of_transformers(folder / "transformers")
    chosen = {name: order for name, order in ORDERS.items() if (name in EVERY_RUN) == in_every_run}
    orders = json.dumps({name: order + CHECK for name, order in chosen.items()})
    arguments = [folders[0], str(expected), folders[1], orders]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    results: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize(
    "order",
    ["light", *(name if name in EVERY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in ORDERS)],
)
def test_the_order_of_imports_and_probes_does_not_matter(found: Callable[[bool], dict[str, bool]], order: str) -> None:
    assert found(order == "light" or order in EVERY_RUN)[order]


def test_public_names_are_listed_and_are_not_hidden_by_modules() -> None:
    import vitrim.evaluation

    assert callable(vitrim.evaluate) and callable(vitrim.export) and callable(vitrim.train)
    assert set(vitrim.__all__) == set(dir(vitrim))
    assert all(getattr(vitrim, name).__module__.startswith("vitrim.") for name in vitrim.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        vitrim.nothing  # noqa: B018
