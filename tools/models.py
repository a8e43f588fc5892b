"""Cut every model that timm lists and write down what of it can be cut: `python -m tools.models -o docs/models.md`.

Each model is built with random weights in float64, as small as its arguments allow (few blocks, small images), cut by
a random plan of uneven widths with one block removed where one can be, and compared with itself silenced, on one image;
its cost is compared with torch's counter on the cut model. Results are kept line by line in a file, so that the same
command goes on where it was stopped. About an hour on two cores.
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

from tools.random_models import random_plan, randomise
from vitrim.costs.counting import count_cost, count_cost_by_running
from vitrim.errors import UserError
from vitrim.hooks import logits_of
from vitrim.models import adapter_for, describe
from vitrim.models.timm.adapter import create_model
from vitrim.saving.timm_hub import vitrim_cut
from vitrim.silencing import silence
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

EXACT = 1e-9  # relative; float64 rounds at 1e-16, and some of these models are a hundred layers deep
SHORT = ({"depth": 2}, {"depths": (2, 2, 2, 2)}, {"depths": (2, 2, 2)}, {"layers": (2, 2, 2, 2)}, {})
SMALL_SIDES = (112, 128, 224, 256)  # of images: patches of 14 and 16 fit, and windows of 7 and 8
MAX_PARAMETERS = 400e6
HAS_UNITS = re.compile(r"Attention|Attn$|MHSA|GPSA|XCA|Mlp$|MLP$|Glu|GLU|FeedForward|FFN")
CHANNEL_GATES = {"GlobalContext", "SplitAttn", "SelectiveKernelAttn", "BatNonLocalAttn"}


def examine(name: str) -> dict[str, Any]:
    """What of one model can be cut exactly, or the reason why not."""
    row: dict[str, Any] = {"model": name}
    try:
        with torch.device("meta"):
            whole = timm.create_model(name)
        row |= {"class": type(whole).__name__, "file": timm.model_entrypoint(name).__module__.rpartition(".")[2]}
        found = kinds_of_units(whole)
        row["units"] = found
        if not adapter_knows(whole):
            return {**row, "status": "unknown class" if found else "no heads, no MLP"}
        del whole
        return {**row, **check(name)}
    except UserError as problem:
        return {**row, "status": "refused" if row.get("units") else "no heads, no MLP", "problem": str(problem)}
    except MemoryError as problem:
        return {**row, "status": "not tried", "problem": str(problem)}
    except Exception as problem:  # a fault of ours or of timm's: the table shows it
        return {**row, "status": "failed", "problem": f"{type(problem).__name__}: {first_line(problem)}"}


def kinds_of_units(model: nn.Module) -> list[str]:
    """The classes of attentions and MLPs in a model's blocks; gates on the channels of a convolution are neither."""
    kinds, inside_gates = set(), ()
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in CHANNEL_GATES or name.partition(".")[0] in ("head", "pre_logits"):
            inside_gates += (f"{name}.",)
        elif HAS_UNITS.search(kind) and "Classifier" not in kind and not name.startswith(inside_gates or "?"):
            kinds.add(kind)
    return sorted(kinds)


def adapter_knows(model: nn.Module) -> bool:
    try:
        adapter_for(model)
    except UserError:
        return False
    return True


@torch.no_grad()
def check(name: str) -> dict[str, Any]:
    model = build(name)
    structure = describe(model)
    removable = [index for index, block in enumerate(structure.blocks) if not block.not_prunable]
    gone = {removable[len(removable) // 2]} if removable and len(structure.blocks) > 1 else set()
    plan = random_plan(structure, seed=1, blocks=tuple(i for i in range(len(structure.blocks)) if i not in gone))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, structure.in_chans, *structure.img_size, generator=generator, dtype=torch.float64)
    student = prune(model, plan)
    with silence(model, plan):
        wanted = last_tensor(model(images))
    distance = ((last_tensor(student(images)) - wanted).abs().max() / wanted.abs().max()).item()
    costs = count_cost(structure, plan) == count_cost_by_running(student)
    return {
        "status": "exact" if distance < EXACT and costs else "not exact",
        "distance": distance,
        "costs agree": costs,
        **summary(structure),
    }


def build(name: str) -> nn.Module:
    """The model in float64, with few blocks where it has an argument for that."""
    sizes: tuple[dict[str, int], ...] = (*({"img_size": side} for side in SMALL_SIDES), {})
    for arguments in ({**short, **size} for short in SHORT for size in sizes):
        try:
            with torch.device("meta"):
                trial = timm.create_model(name, **arguments)
                side = arguments.get("img_size") or trial.pretrained_cfg["input_size"][-1]
                trial.eval()(torch.empty(1, 3, side, side))
                count = sum(parameter.numel() for parameter in trial.parameters())
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, StopIteration):
            # the architecture takes no such argument, or no such value
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
        except IndexError:  # positions out of range, which nobody notices without data
            continue
        return model
    raise AssertionError("not even without arguments")


def last_tensor(output: Any) -> torch.Tensor:
    while isinstance(output, list | tuple):
        output = output[-1]
    return logits_of(output)


def summary(structure: ViTStructure) -> dict[str, Any]:
    """For heads, neurons and blocks: how many can go, and the reasons of those that cannot."""
    found: dict[str, Any] = {}
    for kind in ("heads", "neurons"):
        groups = [group for block in structure.blocks for group in block.groups if group.kind == kind]
        found[kind] = tally([group.not_prunable for group in groups])
    found["blocks"] = tally([block.not_prunable for block in structure.blocks])
    found["outside"] = list(structure.skipped_parts)
    return found


def tally(not_prunable: list[str]) -> dict[str, Any]:
    """How many are free, and the reasons of the others without numbers, so that equal reasons look equal."""
    why = {re.sub(r"\d+( x \d+)+", "...", re.sub(r"\.\d+\b", ".*", text)) for text in not_prunable if text}
    return {"free": sum(not text for text in not_prunable), "all": len(not_prunable), "why": sorted(why)}


def first_line(problem: Exception) -> str:
    return (str(problem).strip() or "no message").splitlines()[0][:160]


def table(rows: list[dict[str, Any]]) -> str:
    """`docs/models.md`."""
    by_class = defaultdict(list)
    for row in rows:
        by_class[row.get("class", "not built")].append(row)
    with_units = [row for row in rows if row.get("status") != "no heads, no MLP"]
    cut = [row for row in with_units if row["status"] == "exact"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    about = {"timm": timm.__version__, "torch": torch.__version__.split("+")[0], "commit": commit.strip() or "unknown"}
    lines = [HEADER.format(**about, models=len(rows))]
    lines.append(
        f"**{len(cut)} of the {len(with_units)} models that have attention heads or MLPs in their blocks are cut "
        f"exactly**; the other {len(rows) - len(with_units)} have neither.\n"
    )
    lines += ["| class | models | exact | heads | neurons | blocks | why not all |", "|---|---|---|---|---|---|---|"]
    for name, members in sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0])):
        if all(row["status"] == "no heads, no MLP" for row in members):
            continue
        exact = [row for row in members if row["status"] == "exact"]
        shares = [share(exact, kind) for kind in ("heads", "neurons", "blocks")]
        lines.append(f"| `{name}` | {len(members)} | {len(exact)} | {' | '.join(shares)} | {'; '.join(why(members))} |")
    lines += ["", EXCEPTIONS]
    lines += [f"* `{row['model']}`: {row['status']}: {problem(row)}" for row in with_units if row not in cut]
    return "\n".join(lines) + "\n"


def share(rows: list[dict[str, Any]], kind: str) -> str:
    """In how many of the models all, some or none of the groups can lose units."""
    rows = [row for row in rows if row[kind]["all"]]
    count = Counter(
        "all" if row[kind]["free"] == row[kind]["all"] else "some" if row[kind]["free"] else "none" for row in rows
    )
    return ", ".join(f"{word} in {count[word]}" for word in ("all", "some", "none") if count[word]) or "-"


def why(rows: list[dict[str, Any]]) -> list[str]:
    found = {
        f"{kind}: {text}"
        for row in rows
        for kind in ("heads", "neurons", "blocks")
        for text in row.get(kind, {}).get("why", [])
    }
    found |= {row["status"] for row in rows if row["status"] not in ("exact", "no heads, no MLP")}
    return sorted(found)


def problem(row: dict[str, Any]) -> str:
    if row["status"] == "unknown class":
        return f"{row['class']} is no family of vitrim's; it has {', '.join(row['units'])}"
    if row["status"] == "not exact":
        return f"distance {row['distance']:.1e}, costs {'agree' if row['costs agree'] else 'differ'}"
    return row.get("problem", "")


HEADER = """# Models

Written by `python -m tools.models -o docs/models.md` with timm {timm} and torch {torch}. All {models} models that
`timm.list_models()` gives were built with random weights in float64 (with few blocks and small images where their
arguments allow it), cut by a random plan of uneven widths, with one block removed where one can be, and compared on one
image with themselves at full size, the same parts silenced. *Exact* means that the outputs differ by less than 1e-9 of
the largest value and that the cost computed in advance is the cost counted on the cut model, to the last unit.
Random weights, no data set, on the CPU; written at commit {commit}.

*All*, *some* and *none* say how many of a model's attentions, MLPs and blocks can lose heads, neurons or go; what stays
is named by `vitrim inspect`, with the reason.
"""
EXCEPTIONS = """## Exceptions

Models with attention or an MLP that are not cut:
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/models.md"))
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/models.jsonl"), help="results so far, kept line by line"
    )
    parser.add_argument("--only", default="*", help="models whose names match, such as 'swin*'")
    parser.add_argument("--processes", type=int, default=2)
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
    options.output.write_text(table(sorted(done, key=lambda row: row["model"])), encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
