"""After `import vitrim`, timm and transformers can build pruned models, whatever the order of the imports."""

import os
import subprocess
import sys
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

folder, expected, of_transformers, check, *orders = sys.argv[1:]
light = "import sys, vitrim; assert not {'torch', 'timm', 'numpy', 'transformers'} & sys.modules.keys()"
assert in_child(light), "import vitrim must be fast"
import torch, torchvision, scipy.optimize, huggingface_hub.hf_api
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
# A process that has only imported vitrim besides transformers can load a pruned model of transformers.
FROM_TRANSFORMERS = """
import torch
from transformers import AutoModelForImageClassification
images, expected = torch.load(sys.argv[3] + "/expected.pt")
with torch.no_grad():
    logits = AutoModelForImageClassification.from_pretrained(sys.argv[3])(images).logits
assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)
"""
CONFIGURATIONS = "transformers.models.auto.configuration_auto"
ORDERS = (
    f"import vitrim, importlib.util\nassert importlib.util.find_spec('timm')\nimport {CONFIGURATIONS}",
    f"import sys, timm, vitrim.models\nassert 'transformers' not in sys.modules\nimport {CONFIGURATIONS}",
    f"import sys, {CONFIGURATIONS}, vitrim{FROM_TRANSFORMERS}",
)


def save_model_of_transformers(folder: Path) -> Path:
    """Save a pruned model, with images and the logits that it computes for them."""
    dense = build_row(HUGGINGFACE["transformers ViT"], dtype=torch.float32)
    student = prune(dense, random_plan(describe(dense), seed=1))
    images = images_for(describe(student), dtype=torch.float32)
    save(student, folder)
    with torch.no_grad():
        torch.save((images, student(images).logits), folder / "expected.pt")
    return folder


def test_the_order_of_imports_does_not_matter(tmp_path: Path) -> None:
    dense = build(dtype=torch.float32)
    student = prune(dense, random_plan(describe(dense), seed=1, blocks=(0, 2)))
    with torch.no_grad():
        expected = student(torch.ones(1, 3, 32, 32)).sum().item()
    folders = save(student, tmp_path / "timm"), save_model_of_transformers(tmp_path / "transformers")
    arguments = [folders[0], str(expected), folders[1], CHECK, *ORDERS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_public_names_are_listed_and_are_not_hidden_by_modules() -> None:
    import vitrim.evaluation

    assert callable(vitrim.evaluate) and callable(vitrim.export) and callable(vitrim.train)
    assert set(vitrim.__all__) == set(dir(vitrim))
    assert all(getattr(vitrim, name).__module__.startswith("vitrim.") for name in vitrim.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        vitrim.nothing  # noqa: B018
