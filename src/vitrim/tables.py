"""The tables that the commands print, on standard output and by the first process only."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrim.plan import PruningPlan
    from vitrim.structure import ViTStructure


def print_structure(structure: "ViTStructure") -> None:
    from vitrim.cost import block_cost, count_cost

    total = count_cost(structure)
    rows = []
    for index, block in enumerate(structure.blocks):
        cost = block_cost(structure, index, block.heads.count, block.neurons.count)
        locked = [text for text in (block.heads.locked, block.neurons.locked, block.locked) if text]
        rows.append(
            [
                str(index),
                f"{block.heads.count} x {block.heads.width}",
                str(block.neurons.count),
                f"{cost.params:,}",
                f"{cost.macs:,}",
                "; ".join(locked) or "heads, neurons, block",
            ]
        )
    rows.append(
        ["rest", "", "", f"{structure.params:,}", f"{structure.macs:,}", "nothing: embedding, final norm, classifier"]
    )
    rows.append(["total", "", "", f"{total.params:,}", f"{total.macs:,}", ""])
    title = (
        f"{structure.model} ({structure.family}), {structure.img_size[0]} x {structure.img_size[1]} pixels, "
        f"{structure.num_tokens} tokens of width {structure.embed_dim}, {structure.num_classes} outputs"
    )
    header = ["block", "heads x width", "neurons", "parameters", "multiply-adds", "can be pruned"]
    print_table(title, header, rows)


def print_plan(structure: "ViTStructure", plan: "PruningPlan") -> None:
    from vitrim.cost import count_cost

    kept = {block.block: block for block in plan.blocks}
    rows = []
    for index, block in enumerate(structure.blocks):
        if index not in kept:
            rows.append([str(index), "removed", "removed", ""])
            continue
        gone = [head for head in range(block.heads.count) if head not in kept[index].heads]
        heads, neurons = len(kept[index].heads), len(kept[index].neurons)
        rows.append(
            [
                str(index),
                f"{heads} of {block.heads.count}",
                f"{neurons} of {block.neurons.count}",
                ", ".join(map(str, gone)) or "none",
            ]
        )
    print_table(f"Plan for {structure.model}", ["block", "heads kept", "neurons kept", "heads that go"], rows)
    cost, whole = count_cost(structure, plan), count_cost(structure)
    params, macs = cost.share_of(whole)
    print_line("one cut, before any training; `--depth auto` of compress may also remove blocks")
    print_line(f"keeps {cost.params:,} parameters ({params:.2%}) and {cost.macs:,} multiply-adds ({macs:.2%})")


def print_report(report: dict[str, Any], folder: Path) -> None:
    from vitrim.report import table_rows

    print_table(report["title"], *table_rows(report))
    print_line(f"report: {folder / 'report.json'}, {folder / 'report.md'}")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    console.print(table)


def print_line(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line)
