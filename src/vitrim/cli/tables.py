"""The tables that the commands print, on standard output and by the first process only."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrim.planning import Proposal
    from vitrim.structure import BlockStructure, ViTStructure


def print_structure(structure: "ViTStructure") -> None:
    from vitrim.costs.counting import block_cost, count_cost

    total = count_cost(structure)
    rows = []
    for index, block in enumerate(structure.blocks):
        cost = block_cost(structure, index, {group.key: group.count for group in block.groups})
        heads = [f"{group.count} x {group.width}" for group in block.groups if group.kind == "heads"]
        neurons = [str(group.count) for group in block.groups if group.kind == "neurons"]
        rows.append(
            [
                block.name,
                ", ".join(heads),
                ", ".join(neurons),
                f"{cost.params:,}",
                f"{cost.macs:,}",
                _prunable(block),
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
    for part in structure.skipped_parts:
        print_line(f"left whole: {part}")


def _prunable(block: "BlockStructure") -> str:
    """What of a block can go, and why the rest cannot."""
    parts = [(group.key, group.not_prunable) for group in block.groups] + [("block", block.not_prunable)]
    free = ", ".join(name for name, not_prunable in parts if not not_prunable)
    reasons = [
        f"{name} stay: {not_prunable}" if name != "block" else f"block stays: {not_prunable}"
        for name, not_prunable in parts
        if not_prunable
    ]
    return "; ".join([*([free] if free else []), *reasons])


def print_plan(structure: "ViTStructure", proposal: "Proposal") -> None:
    from vitrim.costs.counting import count_cost

    plan = proposal.plan
    kept = {block.block: block for block in plan.blocks}
    rows = []
    for index, block in enumerate(structure.blocks):
        if index not in kept:
            rows.append([block.name, "removed", "removed", ""])
            continue
        columns = {"heads": [], "neurons": [], "gone": []}  # type: dict[str, list[str]]
        for group in block.groups:
            units = kept[index].units(group.key)
            columns[group.kind].append(f"{len(units)} of {group.count}")
            if group.kind == "heads":
                columns["gone"] += [str(head) for head in range(group.count) if head not in units] or ["none"]
        rows.append([block.name, *(", ".join(column) for column in columns.values())])
    print_table(f"Plan for {structure.model}", ["block", "heads kept", "neurons kept", "heads that go"], rows)
    cost, whole = count_cost(structure, plan), count_cost(structure)
    params, macs = cost.fraction_of(whole)
    print_line("one cut, before any training; `--depth auto` of compress may also remove blocks")
    print_line(f"keeps {cost.params:,} parameters ({params:.2%}) and {cost.macs:,} multiply-adds ({macs:.2%})")
    if proposal.predicted_ms:
        print_line(f"promises {proposal.predicted_ms:.4g} ms for a forward pass")


def print_report(report: dict[str, Any], folder: Path) -> None:
    from vitrim.report import latency_line, table_rows

    print_table(report["title"], *table_rows(report))
    if report.get("latency"):
        print_line(latency_line(report))
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
