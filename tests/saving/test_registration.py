"""After `import vitrim`, timm and transformers can build pruned models, whatever the order of the imports."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from builders.models import build, random_plan
from vitrim.models import describe
from vitrim.saving.checkpoint import save
from vitrim.surgery import prune

# The libraries below timm and transformers are imported once. Each order is then tried in a child process of its own.
CODE = """
import os, sys, traceback

def in_child(code):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        exec(code, {})
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

folder, expected, check, *orders = sys.argv[1:]
light = "import sys, vitrim; assert not {'torch', 'timm', 'numpy', 'transformers'} & sys.modules.keys()"
assert in_child(light), "import vitrim must be fast"
import torch, torchvision, huggingface_hub
assert not {"timm", "transformers", "vitrim"} & sys.modules.keys()
for order in orders:
    if not in_child(order + check):
        print("failed:", order)
"""
CHECK = """
import sys, timm, torch, vitrim
model = timm.create_model(f"local-dir:{sys.argv[1]}").eval()
with torch.no_grad():
    found = model(torch.ones(1, 3, 32, 32)).sum().item()
assert abs(found - float(sys.argv[2])) < 1e-5, found
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
assert "vitrim" in CONFIG_MAPPING
"""
CONFIGURATIONS = "transformers.models.auto.configuration_auto"
ORDERS = (
    f"import vitrim, importlib.util\nassert importlib.util.find_spec('timm')\nimport {CONFIGURATIONS}",
    f"import timm, vitrim, {CONFIGURATIONS}",
    f"import {CONFIGURATIONS}, vitrim",
)


def test_the_order_of_imports_does_not_matter(tmp_path: Path) -> None:
    dense = build(dtype=torch.float32)
    student = prune(dense, random_plan(describe(dense), seed=1, blocks=(0, 2)))
    with torch.no_grad():
        expected = student(torch.ones(1, 3, 32, 32)).sum().item()
    arguments = [save(student, tmp_path), str(expected), CHECK, *ORDERS]
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_public_names_are_listed_and_are_not_hidden_by_modules() -> None:
    import vitrim.evaluation

    assert callable(vitrim.evaluate) and callable(vitrim.export) and callable(vitrim.train)
    assert set(vitrim.__all__) == set(dir(vitrim))
    assert all(getattr(vitrim, name).__module__.startswith("vitrim.") for name in vitrim.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        vitrim.nothing  # noqa: B018
