"""The tables and lines that the commands print on standard output. Only the first process of a run prints."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrim.errors import counted, percent, visible

if TYPE_CHECKING:
    from vitrim.evaluation import Difference, Evaluation
    from vitrim.planning import Proposal
    from vitrim.structure import BlockStructure, UnitGroup, ViTStructure
    from vitrim.verifying import Check


def print_structure(structure: "ViTStructure") -> None:
    """Print the blocks of a model, their cost, and what can be pruned."""
    from vitrim.costs.counting import block_cost, count_cost

    rows = []
    for index, block in enumerate(structure.blocks):
        cost = block_cost(structure, index, {group.key: group.count for group in block.groups})
        heads = [_heads_and_width(group) for group in block.groups if group.kind == "heads"]
        neurons = [str(group.count) for group in block.groups if group.kind == "neurons"]
        costs = [f"{cost.params:,}", f"{cost.macs:,}"]
        rows.append([block.name, ", ".join(heads), ", ".join(neurons), *costs, _prunable(block)])
    outside = "nothing: embedding, final norm and classifier"
    rows.append(["rest", "", "", f"{structure.params:,}", f"{structure.macs:,}", outside])
    total = count_cost(structure)
    rows.append(["total", "", "", f"{total.params:,}", f"{total.macs:,}", ""])
    title = (
        f"{structure.model} ({structure.family}), {structure.img_size[0]} x {structure.img_size[1]} pixels, "
        f"{counted(structure.num_tokens, 'token')} of width {structure.embed_dim}, "
        f"{counted(structure.num_classes, 'output')}"
    )
    print_table(title, ["block", "heads x width", "neurons", "parameters", "multiply-adds", "can be pruned"], rows)
    for part in structure.skipped_parts:
        print_line(f"not pruned: {part}")


def _heads_and_width(group: "UnitGroup") -> str:
    """Number and width of heads; only the number if an attention is not pruned, because its width is not known."""
    return f"{group.count} x {group.width}" if group.output_proj else str(group.count)


def _prunable(block: "BlockStructure") -> str:
    """The parts of a block that can be removed or narrowed, and the reason for each part that cannot."""
    parts = []
    for group in block.groups:
        parts.append((group.key, group.not_prunable))
        width = group.key.replace("heads", "head width")
        if group.directions is None:
            is_other_reason = group.not_narrowable not in ("", group.not_prunable)
            parts += [(width, group.not_narrowable)] if is_other_reason else []
        elif group.directions.only_values:
            parts += [(f"{width} (values only)", ""), (f"{width} (queries and keys)", group.directions.only_values)]
        else:
            parts.append((width, ""))
    parts.append(("block", block.not_prunable))
    prunable = ", ".join(name for name, reason in parts if not reason)
    return "; ".join(
        [*([prunable] if prunable else []), *(f"not {name}: {reason}" for name, reason in parts if reason)]
    )


def print_plan(structure: "ViTStructure", proposal: "Proposal") -> None:
    """Print the units that a plan keeps in each block, the cost, and the predicted latency if there is one."""
    from vitrim.costs.counting import count_cost

    plan = proposal.plan
    kept = {block.block: block for block in plan.blocks}
    rows = []
    for index, block in enumerate(structure.blocks):
        if index not in kept:
            rows.append([block.name, "block removed", "block removed", ""])
            continue
        counts: dict[str, list[str]] = {"heads": [], "neurons": []}
        removed: list[str] = []
        for group in block.groups:
            units = kept[index].units(group.key)
            width = kept[index].width(group)
            narrowed = f" x {width} of {group.width}" if width < group.width else ""
            counts[group.kind].append(f"{len(units)} of {group.count}{narrowed}")
            if group.kind == "heads":
                removed += [str(head) for head in range(group.count) if head not in units] or ["none"]
        rows.append([block.name, ", ".join(counts["heads"]), ", ".join(counts["neurons"]), ", ".join(removed)])
    narrows = any(block.head_widths for block in plan.blocks)
    heads = "heads x width kept" if narrows else "heads kept"
    print_table(f"Plan for {structure.model}", ["block", heads, "neurons kept", "heads removed"], rows)
    cost = count_cost(structure, plan)
    params, macs = cost.fraction_of(count_cost(structure))
    print_line("one cut, without training; with `--depth auto`, compress may also remove blocks")
    print_line(
        f"keeps {cost.params:,} parameters ({percent(params, 2)}) and {cost.macs:,} multiply-adds ({percent(macs, 2)})"
    )
    if proposal.predicted_ms:
        print_line(proposal.latency_text())


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print the models of a `report.json`, and where the report is."""
    from vitrim.reports.latency import latency_lines
    from vitrim.reports.report import table_rows, zero_lines
    from vitrim.reports.verdict import verdict_in

    print_table(report["title"], *table_rows(report))
    print_line(verdict_in(report))
    if report.get("search"):
        print_line(report["search"]["sentence"])
    for row in report["models"][1:]:
        if "kept" in row:
            print_line(f"{row['name']} keeps {row['kept']}")
    for line in latency_lines(report):
        print_line(line)
    if report.get("busy"):
        print_line(report["busy"])
    for line in zero_lines(report):
        print_line(line)
    print_line(f"report: {folder / 'report.html'}, {folder / 'report.json'}, {folder / 'report.md'}")


KINDS_OF_IMAGES = {"train": "training image", "val": "validation image", "test": "test image", "all": "image"}


def print_evaluations(evaluations: Sequence[tuple[str, "Evaluation"]], images: str = "val") -> None:
    """Print one named evaluation, or two and the paired difference, first minus second.

    Args:
        images: which images were evaluated, as in `ImageData.only`.
    """
    from vitrim.evaluation import compare

    rows = [
        [name, top1_interval(found), "-" if found.top5 is None else f"{found.top5:.2f} %", f"{found.loss:.4f}"]
        for name, found in evaluations
    ]
    title = counted(evaluations[0][1].num_images, KINDS_OF_IMAGES[images])
    print_table(title, ["model", "top-1 [95 %]", "top-5", "loss"], rows)
    if len(evaluations) == 2:
        (model, first), (against, second) = evaluations
        print_line(f"{model} against {against}: {paired_difference(compare(second, first))}")


def print_checks(run: Path, checks: Sequence["Check"]) -> None:
    """Print what was checked about a run, and whether it holds."""
    words = {True: "holds", False: "DOES NOT HOLD", None: "not checked"}
    print_table(str(run), ["", "", "found"], [[one.name, words[one.holds], one.text] for one in checks])
    wrong, unknown = (sum(one.holds is value for one in checks) for value in (False, None))
    result = f"{counted(wrong, 'check')} of {len(checks)} {'does' if wrong == 1 else 'do'} not hold"
    result = result if wrong else f"{len(checks) - unknown} of {len(checks)} checks hold"
    print_line(result + (f"; {unknown} could not be made" if unknown else ""))


def top1_interval(found: "Evaluation") -> str:
    """Format top-1 and its 95 % interval, in percent."""
    return f"{found.top1:.2f} % [{found.low:.2f}, {found.high:.2f}]"


def paired_difference(difference: "Difference") -> str:
    """Format the difference of two evaluations on the same images, in points of top-1."""
    return (
        f"{difference.points:+.2f} points [{difference.low:+.2f}, {difference.high:+.2f}], paired, 95 %; "
        f"exact McNemar p = {difference.p_value:.3g}"
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. On a file or a pipe, which has no width, it is 160 columns wide."""
    if os.environ.get("RANK", "0") != "0":
        return
    from rich.console import Console
    from rich.table import Table

    from vitrim.runs.progress import PLAIN

    table = Table(title=visible(title), title_justify="left")
    for name in header:
        table.add_column(visible(name), overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    console = Console(**PLAIN)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def print_line(line: str) -> None:
    """Print one line."""
    if os.environ.get("RANK", "0") == "0":
        print(visible(line))
