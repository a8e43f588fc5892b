"""Prune every model that timm lists, and write `docs/models.md`: `python -m tools.models -o docs/models.md`.

Each model is built with random weights in float64, as small as its arguments allow (few blocks, small images). It is
pruned by a random plan of uneven widths; heads are narrowed where they can be, and one block is removed if one can be
removed. On one image, the pruned model is compared with the silenced model, and its cost with torch's counter. Results
are stored line by line in a file, so the same command continues after an interruption. About an hour on two cores.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm
import torch
from torch import nn

from tools.random_models import random_head_widths, random_plan, randomise
from vitrim.costs.counting import count_cost, count_cost_by_running
from vitrim.errors import UserError
from vitrim.hooks import logits_of
from vitrim.models import adapter_for, describe
from vitrim.models.timm.adapter import create_model
from vitrim.saving.timm_hub import vitrim_cut
from vitrim.silencing import silence
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

EXACT = 1e-9  # relative; float64 rounds at 1e-16, and some models have a hundred layers
SHALLOW = ({"depth": 2}, {"depths": (2, 2, 2, 2)}, {"depths": (2, 2, 2)}, {"layers": (2, 2, 2, 2)}, {})
SMALL_SIDES = (112, 128, 224, 256)  # of images, in pixels: patches of 14 and 16 and windows of 7 and 8 fit
MAX_PARAMETERS = 400e6
HAS_UNITS = re.compile(r"Attention|Attn$|MHSA|GPSA|XCA|Mlp$|MLP$|Glu|GLU|FeedForward|FFN")
CHANNEL_GATES = {"GlobalContext", "SplitAttn", "SelectiveKernelAttn", "BatNonLocalAttn"}


def examine(name: str) -> dict[str, Any]:
    """The result for one model: its status, and which of its heads, neurons and blocks can be removed."""
    row: dict[str, Any] = {"model": name}
    try:
        with torch.device("meta"):
            full_size = timm.create_model(name)
        row |= {"class": type(full_size).__name__, "file": timm.model_entrypoint(name).__module__.rpartition(".")[2]}
        row["units"] = unit_classes(full_size)
        if not has_adapter(full_size):
            return {**row, "status": "unknown class" if row["units"] else "no heads, no MLP"}
        del full_size
        return {**row, **check(name)}
    except UserError as error:
        return {**row, "status": "refused" if row.get("units") else "no heads, no MLP", "problem": str(error)}
    except MemoryError as error:
        return {**row, "status": "not tried", "problem": str(error)}
    except Exception as error:  # a bug in vitrim or timm: the table shows it
        return {**row, "status": "failed", "problem": f"{type(error).__name__}: {first_line(error)}"}


def unit_classes(model: nn.Module) -> list[str]:
    """Names of the classes of attentions and MLPs in a model; channel gates and the classifier do not count."""
    classes, skipped_prefixes = set(), ()
    for name, module in model.named_modules():
        cls = type(module).__name__
        if cls in CHANNEL_GATES or name.partition(".")[0] in ("head", "pre_logits"):
            skipped_prefixes += (f"{name}.",)
        elif HAS_UNITS.search(cls) and "Classifier" not in cls and not name.startswith(skipped_prefixes or "?"):
            classes.add(cls)
    return sorted(classes)


def has_adapter(model: nn.Module) -> bool:
    """Whether vitrim supports the model's class."""
    try:
        adapter_for(model)
    except UserError:
        return False
    return True


@torch.no_grad()
def check(name: str) -> dict[str, Any]:
    """Prune one model and compare it with the silenced model; returns the status and the numbers."""
    model = build(name)
    structure = describe(model)
    removable = [index for index, block in enumerate(structure.blocks) if not block.not_prunable]
    removed = {removable[len(removable) // 2]} if removable and len(structure.blocks) > 1 else set()
    plan = random_plan(structure, seed=1, blocks=tuple(i for i in range(len(structure.blocks)) if i not in removed))
    plan = random_head_widths(structure, plan, seed=1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, structure.in_chans, *structure.img_size, generator=generator, dtype=torch.float64)
    student = prune(model, plan)
    with silence(model, plan):
        expected = last_tensor(model(images))
    distance = ((last_tensor(student(images)) - expected).abs().max() / expected.abs().max()).item()
    costs = count_cost(structure, plan) == count_cost_by_running(student)
    return {
        "status": "exact" if distance < EXACT and costs else "not exact",
        "distance": distance,
        "costs agree": costs,
        **summary(structure),
    }


def build(name: str) -> nn.Module:
    """The model in float64, with few blocks and small images if its arguments allow it.

    Raises:
        MemoryError: the model has more than `MAX_PARAMETERS` parameters.
    """
    sizes: tuple[dict[str, int], ...] = (*({"img_size": side} for side in SMALL_SIDES), {})
    for arguments in ({**short, **size} for short in SHALLOW for size in sizes):
        try:
            with torch.device("meta"):
                trial = timm.create_model(name, **arguments)
                side = arguments.get("img_size") or trial.pretrained_cfg["input_size"][-1]
                trial.eval()(torch.empty(1, 3, side, side))
                count = sum(parameter.numel() for parameter in trial.parameters())
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, StopIteration):
            # the architecture has no such argument, or refuses the value
            continue
        if count > MAX_PARAMETERS:
            raise MemoryError(f"{count / 1e6:.0f} million parameters, and no argument that makes it shallow")
        model = create_model(name, **arguments)
        randomise(model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model = model.double().eval()
        try:
            model(torch.zeros(1, 3, side, side, dtype=torch.float64))
        except IndexError:  # positions out of range, found only with data
            continue
        return model
    raise AssertionError(f"timm cannot build {name}, with or without arguments")


def last_tensor(output: Any) -> torch.Tensor:
    """The logits, or the last tensor if the model returns several."""
    while isinstance(output, list | tuple):
        output = output[-1]
    return logits_of(output)


def summary(structure: ViTStructure) -> dict[str, Any]:
    """For heads, neurons and blocks: how many groups are prunable, and the reasons of the others."""
    found: dict[str, Any] = {}
    for kind in ("heads", "neurons"):
        groups = [group for block in structure.blocks for group in block.groups if group.kind == kind]
        found[kind] = tally([group.not_prunable for group in groups])
    found["blocks"] = tally([block.not_prunable for block in structure.blocks])
    found["outside"] = list(structure.skipped_parts)
    return found


def tally(not_prunable: list[str]) -> dict[str, Any]:
    """How many have no reason, and the distinct reasons, without numbers so that equal reasons look equal."""
    why = {re.sub(r"\d+( x \d+)+", "...", re.sub(r"\.\d+\b", ".*", text)) for text in not_prunable if text}
    return {"free": sum(not text for text in not_prunable), "all": len(not_prunable), "why": sorted(why)}


def first_line(error: Exception) -> str:
    """The first line of the error's message, at most 160 characters."""
    return (str(error).strip() or "no message").splitlines()[0][:160]


def table(rows: list[dict[str, Any]]) -> str:
    """The text of `docs/models.md`."""
    by_class = defaultdict(list)
    for row in rows:
        by_class[row.get("class", "not built")].append(row)
    with_units = [row for row in rows if row.get("status") != "no heads, no MLP"]
    exact = [row for row in with_units if row["status"] == "exact"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    about = {"timm": timm.__version__, "torch": torch.__version__.split("+")[0], "commit": commit.strip() or "unknown"}
    lines = [HEADER.format(**about, models=len(rows))]
    lines.append(
        f"**vitrim prunes {len(exact)} of the {len(with_units)} models with attention heads or MLPs exactly.** "
        f"The other {len(rows) - len(with_units)} models have neither.\n"
    )
    lines += ["| class | models | exact | heads | neurons | blocks | why not all |", "|---|---|---|---|---|---|---|"]
    for name, members in sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0])):
        if all(row["status"] == "no heads, no MLP" for row in members):
            continue
        members_exact = [row for row in members if row["status"] == "exact"]
        prunable = " | ".join(how_many_prunable(members_exact, kind) for kind in ("heads", "neurons", "blocks"))
        lines.append(f"| `{name}` | {len(members)} | {len(members_exact)} | {prunable} | {'; '.join(why(members))} |")
    lines += ["", EXCEPTIONS]
    lines += [f"* `{row['model']}`: {row['status']}: {problem(row)}" for row in with_units if row not in exact]
    return "\n".join(lines) + "\n"


def how_many_prunable(rows: list[dict[str, Any]], kind: str) -> str:
    """In how many models all, some or none of the groups are prunable, as text."""
    rows = [row for row in rows if row[kind]["all"]]
    count = Counter(
        "all" if row[kind]["free"] == row[kind]["all"] else "some" if row[kind]["free"] else "none" for row in rows
    )
    return ", ".join(f"{word} in {count[word]}" for word in ("all", "some", "none") if count[word]) or "-"


def why(rows: list[dict[str, Any]]) -> list[str]:
    """All reasons why something in these models is not prunable, sorted."""
    reasons = {
        f"{kind}: {text}"
        for row in rows
        for kind in ("heads", "neurons", "blocks")
        for text in row.get(kind, {}).get("why", [])
    }
    reasons |= {row["status"] for row in rows if row["status"] not in ("exact", "no heads, no MLP")}
    return sorted(reasons)


def problem(row: dict[str, Any]) -> str:
    """Why the model of this row is not pruned."""
    if row["status"] == "unknown class":
        return f"vitrim does not know the class {row['class']}, which has {', '.join(row['units'])}"
    if row["status"] == "not exact":
        return f"distance {row['distance']:.1e}, costs {'agree' if row['costs agree'] else 'differ'}"
    return row.get("problem", "")


HEADER = """# Models

Written by `python -m tools.models -o docs/models.md` with timm {timm} and torch {torch}, at commit {commit}. Random
weights, no data set, on the CPU.

The table lists all {models} models of `timm.list_models()`. Each model was built with random weights in float64, with
few blocks and small images if its arguments allow it. It was pruned by a random plan of uneven widths, with narrower
heads where they can be narrowed; one block was removed if one can be removed. Then it was compared, on one image, with
the full-size model in which the same parts are silenced.

*Exact* means two things. The outputs differ by less than 1e-9 of the largest value. The predicted cost equals the cost
counted on the pruned model, to the last unit.

*All*, *some* and *none* say how many attentions of a model can lose heads, how many MLPs can lose neurons, and how many
blocks can be removed. `vitrim inspect` names the others, with the reason.
"""
EXCEPTIONS = """## Exceptions

Models with attention or an MLP that vitrim does not prune:
"""


def main() -> None:
    """Examine all models that the results do not hold yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/models.md"), help="file to write")
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/models.jsonl"), help="file of the results so far, one line each"
    )
    parser.add_argument("--only", default="*", help="pattern for the names of the models (default: all), e.g. 'swin*'")
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default: 2)")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.exists() else []
    seen = {row["model"] for row in done}
    names = [name for name in timm.list_models(options.only) if name not in seen and name != vitrim_cut.__name__]
    context = multiprocessing.get_context("fork")
    with context.Pool(options.processes, maxtasksperchild=40) as pool, options.rows.open("a") as file:
        for number, row in enumerate(pool.imap_unordered(examine, names), 1):
            done.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if number % 50 == 0 or row["status"] in ("failed", "not exact"):
                print(f"{number}/{len(names)} {row['model']}: {row['status']} {row.get('problem', '')}", flush=True)
    before = options.output.read_text(encoding="utf-8") if options.output.exists() else ""
    _, title, head_widths = before.partition("## Head widths")  # written by `tools.head_widths`
    text = table(sorted(done, key=lambda row: row["model"]))
    options.output.write_text("\n".join([text, title + head_widths]) if title else text, encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
