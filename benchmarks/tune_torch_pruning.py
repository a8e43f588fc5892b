"""The command `python -m benchmarks.tune_torch_pruning MODEL --data FOLDER`: the best settings of Torch-Pruning.

It compares how strongly heads, their dimensions and neurons are pruned, right after pruning, on validation images.
These must be images split from the training images, because the result becomes a setting of the arms.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from benchmarks.run import app_of, status_of
from vitrim.errors import BudgetError, SettingError

if TYPE_CHECKING:
    from benchmarks.torch_pruning import Criterion

app = app_of("benchmarks.tune_torch_pruning", "Compare settings of Torch-Pruning right after pruning.")


@app.default
def tune(
    model: Path,
    /,
    *,
    data: str,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    keeps: str = "0.7,0.5,0.3,0.2",
    heads: str = "0,0.25,0.5,0.75,1",
    dims: str = "0,0.25,0.5,0.75,1",
    criteria: str = "hessian",
    num_images: int = 2048,
) -> None:
    """Compare settings. The same command continues after an interruption.

    Example: `python -m benchmarks.tune_torch_pruning runs/digits --data digits -o runs/tuning.jsonl`

    Parameters
    ----------
    model
        Folder of a trained model or run.
    data
        Images, as for `vitrim compress`. The validation images must not be the images of the results.
    output
        File of the results, one line for each setting and fraction to keep.
    keeps
        Fractions of parameters and multiply-adds to keep.
    heads
        Pruning ratios of heads, as fractions of that of neurons.
    dims
        Pruning ratios of the dimensions of heads, as fractions of that of neurons. With 0, only whole heads are pruned.
    criteria
        Criteria of Torch-Pruning: taylor, taylor_of_sums, hessian, l2 or l1.
    num_images
        Number of calibration images.
    """
    names = ("keep", "heads_fraction", "dims_fraction", "criterion")
    grid = product(_numbers(keeps), _numbers(heads), _numbers(dims), criteria.split(","))
    requested = [dict(zip(names, values, strict=True)) for values in grid if values[1] or values[2]]
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _read(output)
    missing = [setting for setting in requested if not any(_is_of(row, setting) for row in done)]
    for row in _measure(model, data, missing, num_images):
        with output.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        done.append(row)
    _print_table([row for row in done if any(_is_of(row, setting) for setting in requested)])


def _measure(path: Path, data: str, settings: list[dict[str, Any]], num_images: int) -> Iterator[dict[str, Any]]:
    """Prune by each setting, and compare with the dense model on the validation images."""
    from benchmarks.divergence import compare_logits, logits_on
    from benchmarks.torch_pruning_head_widths import HeadWidthSettings, narrow_by_torch_pruning
    from vitrim.costs.budget import Budget
    from vitrim.data.loading import load_data
    from vitrim.data.matching import Calibration, match_labels
    from vitrim.saving.checkpoint import load

    if not settings:
        return
    dense = load(path)
    images = match_labels(load_data(data), dense)
    batches = list(Calibration(images=images.train.sample(num_images, 0), model=dense, batch_size=128))
    before = logits_on(dense, images.validation)
    labels = images.validation.labels
    for setting in settings:
        keep, criterion = setting["keep"], cast("Criterion", setting["criterion"])
        chosen = HeadWidthSettings(
            criterion=criterion, heads_fraction=setting["heads_fraction"], dims_fraction=setting["dims_fraction"]
        )
        try:
            pruned = narrow_by_torch_pruning(dense, batches, Budget(params=keep, macs=keep), settings=chosen)
        except BudgetError as problem:
            print(f"keep {keep:g}, heads {chosen.heads_fraction:g}, dimensions {chosen.dims_fraction:g}: {problem}")
            continue
        after = logits_on(pruned, images.validation)
        near = compare_logits(before, after)
        top1 = 100 * (after.argmax(dim=1) == labels).double().mean().item()
        yield {**setting, "top1": top1, "kl": near["kl"], "agreement": near["agreement"]}


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise SettingError(f"{text!r} is not a list of numbers; expected one such as 0.25,0.5.") from None


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _is_of(row: dict[str, Any], setting: dict[str, Any]) -> bool:
    return all(row[name] == value for name, value in setting.items())


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print top-1 and divergence of each setting, means over the fractions to keep, the smallest divergence first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["criterion"], row["heads_fraction"], row["dims_fraction"]), []).append(row)
    print("| criterion | heads | dimensions | top-1 | divergence | by fraction to keep |\n|---|---|---|---|---|---|")
    for (criterion, heads, dims), members in sorted(groups.items(), key=lambda item: mean(r["kl"] for r in item[1])):
        top1, kl = (mean(row[name] for row in members) for name in ("top1", "kl"))
        each = ", ".join(f"{row['keep']:g}: {row['top1']:.2f} / {row['kl']:.3f}" for row in members)
        print(f"| {criterion} | {heads:g} | {dims:g} | {top1:.2f} % | {kl:.3f} | {each} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
