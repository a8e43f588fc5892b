"""Draw the figures of docs/method.md.

    python -m tools.method_figures

The stages are a drawing. The other two show a small random ViT that is trained on handwritten digits for some seconds:
nothing is made up, and the same versions of the libraries draw the same figures.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn

import vitrim
from tools.readme_picture import COMPRESSED as AFTER
from tools.readme_picture import DENSE as BEFORE
from tools.readme_picture import STYLE as PLAIN_STYLE
from tools.readme_picture import TEXT
from vitrim.rotation import measure_rotation, narrowable_attentions, rotate

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
STYLE: Any = {**PLAIN_STYLE, "xtick.color": TEXT, "axes.spines.bottom": True, "legend.frameon": False}
STAGES = (
    ("score", "heads and neurons,\nfirst order"),
    ("rotate", "each head,\nexactly"),
    ("allocate", "a knapsack over\nall layers"),
    ("cut", "smaller layers,\nno masks"),
    ("recover", "least squares,\nno training"),
    ("distil", "the dense model\nis the teacher"),
)


def main() -> None:
    """Write the three figures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        save(stages(), "method-stages")
        model, batches = trained_model()
        save(rotation_of_a_head(model, batches), "method-rotation")
        save(kept_neurons(model, batches), "method-allocation")


def save(figure: Figure, name: str) -> None:
    """Write a figure as SVG with text as text."""
    path = PICTURES / f"{name}.svg"
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})


def stages() -> Figure:
    """The stages from left to right, and the way back for the steps."""
    figure = Figure(figsize=(11, 2.5))
    axes = figure.subplots()
    axes.set(xlim=(0, 12), ylim=(-0.9, 1.9))
    axes.axis("off")
    for place, (name, text) in enumerate(STAGES):
        left = 2 * place + 0.1
        axes.add_patch(FancyBboxPatch((left, 0), 1.6, 1.3, boxstyle="round,pad=0.05", fill=False, edgecolor=TEXT))
        axes.text(left + 0.8, 0.98, name, ha="center", va="center", weight="bold", color=AFTER)
        axes.text(left + 0.8, 0.42, text, ha="center", va="center", fontsize=8.5)
        if place:
            arrow(axes, (left - 0.32, 0.65), (left - 0.04, 0.65))
    arrow(axes, (8.9, -0.12), (0.9, -0.12), bend=-0.09)
    axes.text(4.9, -0.83, "four steps, each on a smaller model", ha="center", fontsize=9)
    axes.text(10.9, -0.3, "then the same for blocks,\nif any are removed", ha="center", va="top", fontsize=9)
    return figure


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """An arrow between two points."""
    style = f"arc3,rad={bend}"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=TEXT, connectionstyle=style))


def trained_model() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A small ViT that was trained on digits for eight epochs, and batches of training images."""
    torch.manual_seed(0)
    data = vitrim.load_data("digits")
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 8, "weight_init": "reset"}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(8):
        for images, labels in vitrim.batches(model, data, batch_size=32, seed=epoch, num_images=1000):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval(), list(vitrim.batches(model, data, num_images=512))


def direction_sizes(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """What each direction of the first head adds to the residual stream: deviation over tokens, `(K,)`."""
    _, group = next(iter(narrowable_attentions(vitrim.describe(model))))
    layer = model.get_submodule(group.output_proj)
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    hook.remove()
    values = torch.cat(inputs).flatten(0, -2)  # (tokens, columns)
    sizes = values.std(dim=0) * layer.weight.detach().norm(dim=0)
    return sizes[: group.width].numpy()


def rotation_of_a_head(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Figure:
    """The directions of one head before and after the rotation."""
    rotated = rotate(model, measure_rotation(model, batches))
    before, after = direction_sizes(model, batches), direction_sizes(rotated, batches)
    figure = Figure(figsize=(7, 2.9))
    axes = figure.subplots()
    places = np.arange(1, len(before) + 1)
    axes.bar(places - 0.2, before, width=0.38, color=BEFORE, label="before the rotation")
    axes.bar(places + 0.2, after, width=0.38, color=AFTER, label="after the rotation")
    axes.set(xlabel="direction of the first head", ylabel="deviation of its output", xticks=places)
    axes.legend(labelcolor=TEXT, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    return figure


def kept_neurons(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Figure:
    """The neurons that each block keeps, for two budgets."""
    structure, scores = vitrim.describe(model), vitrim.score(model, batches)
    figure = Figure(figsize=(7, 2.9))
    axes = figure.subplots()
    places = np.arange(1, len(structure.blocks) + 1)
    for offset, keep, color in ((-0.2, 0.7, BEFORE), (0.2, 0.5, AFTER)):
        plan = vitrim.allocate(structure, scores, vitrim.Budget(params=keep, macs=keep))
        kept = [len(block.units("neurons")) for block in plan.blocks]
        axes.bar(places + offset, kept, width=0.38, color=color, label=f"budget {100 * keep:.0f} %")
    total = structure.blocks[0].neurons.count
    axes.axhline(total, color=TEXT, linewidth=1, linestyle="--")
    axes.text(places[-1] + 0.45, total, "all neurons", va="bottom", ha="right", fontsize=9)
    axes.set(xlabel="block", ylabel="kept neurons", xticks=places)
    axes.legend(labelcolor=TEXT, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    return figure


if __name__ == "__main__":
    main()
