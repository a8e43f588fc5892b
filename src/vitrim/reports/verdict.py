"""One sentence on the result of a run, for a person who is not a statistician.

It says how much smaller a model is by its parameters, how much less time it takes, and how its accuracy changed. A
change whose 95 % interval includes zero is called noise. A model that takes 0.77 of the time is called 23 % faster.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vitrim.costs.latency import difference_text
from vitrim.errors import percent

CONTROL = "dense control"  # name of a model that benchmarks add: the dense model, trained further
MIN_CHANGE = 0.005  # a smaller change is not said
MAX_UNSURE = 3.0  # points that a size may lose within the noise, and still be named as the best of several
MIN_TIMES = 2.0  # from this ratio on, it is said how many times as slow a model is

Row = Mapping[str, Any]


def verdict(report: Mapping[str, Any]) -> str:
    """The sentence on a report. It has no p-values.

    Args:
        report: content of a `report.json`, also of an earlier version.
    """
    dense, *others = report["models"]
    small = [row for row in others if row["name"] != CONTROL]
    num_images = _num_images(report)
    if not small:
        return f"Accuracy {dense['top1']:.1f} %{f' on {num_images}' if num_images else ''}."
    if len(small) == 1:
        parts = [_size(small[0], dense), _speed(small[0])]
        clauses = [_and(parts) + _at_batch(report, small), _limit(report), _accuracy(small[0], num_images)]
        return f"{'; '.join(filter(None, clauses))}."
    good = [row for row in small if not _is_loss(row)]
    sure = [row for row in good if (row.get("difference_low") or 0.0) >= -MAX_UNSURE]
    if sure:
        best = min(sure, key=lambda row: (row["params"], row["name"]))
        parts = [_size(best, dense), _speed(best)]
        clauses = [_and(parts) + _at_batch(report, [best]), _accuracy(best, num_images)]
        return (
            f"Of {len(small)} sizes, the smallest without a clear loss of accuracy is {best['name']}: "
            f"{'; '.join(filter(None, clauses))}."
        )
    clauses = [f"{row['name']}: {_clause(row, dense)}" for row in small]
    where = [_at_batch(report, small).removeprefix(" "), f"accuracy on {num_images}" if num_images else ""]
    notes = ", ".join(part if place else f"speed {part}" for place, part in enumerate(where) if part)
    begin = f"All {len(small)} sizes lose accuracy."
    if good:
        begin = f"The images are too few to say which of {len(small)} sizes loses accuracy."
    return f"{begin} {'; '.join(clauses)}{f' ({notes})' if notes else ''}."


def with_verdict(report: dict[str, Any]) -> dict[str, Any]:
    """The same report with its sentence under the key `verdict`."""
    return {**report, "verdict": verdict(report)}


def verdict_in(report: Mapping[str, Any]) -> str:
    """The sentence that a report has. That of an earlier version is made now."""
    return str(report.get("verdict") or verdict(report))


def _is_loss(row: Row) -> bool:
    """Whether the accuracy is lower by more than noise, or lower and the noise is not known."""
    change, high = row.get("difference"), row.get("difference_high")
    return change is not None and change < 0 and (high is None or high < 0)


def _clause(row: Row, dense: Row) -> str:
    """What is said about one of several sizes."""
    return ", ".join(filter(None, [_size(row, dense), _speed(row), _accuracy(row, "")]))


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, parts))


def _num_images(report: Mapping[str, Any]) -> str:
    count = report.get("data", {}).get("num_validation")
    return f"{count:,} image{'s' if count != 1 else ''}" if count else ""


def _at_batch(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Where the time was measured; empty if it was not."""
    if all(row.get("latency_ratio") is None for row in rows):
        return ""
    batch = report.get("recipe", {}).get("latency", {}).get("batch_size")
    busy = " (busy when timed)" if report.get("busy") else ""
    return f"{f' at batch {batch}' if batch else ''} on this machine{busy}"


def _size(row: Row, dense: Row) -> str:
    change = row["params"] / dense["params"] - 1
    if abs(change) < MIN_CHANGE:
        return "as large as before"
    return f"{percent(abs(change))} {'smaller' if change < 0 else 'larger'}"


def _speed(row: Row) -> str:
    """How much less or more time a model takes; empty if this was not measured."""
    ratio, low, high = (row.get(f"latency_ratio{end}") for end in ("", "_low", "_high"))
    if ratio is None:
        return ""
    is_noise = low is not None and high is not None and low <= 1 <= high
    if is_noise or abs(ratio - 1) < MIN_CHANGE:
        return "about as fast"
    if ratio >= MIN_TIMES:
        return f"{ratio:.1f} times as slow"
    return f"{percent(abs(ratio - 1))} {'faster' if ratio < 1 else 'slower'}"


def _limit(report: Mapping[str, Any]) -> str:
    """Whether a limit in milliseconds was met; empty if there was none."""
    found = report.get("latency")
    if not found:
        return ""
    measured, limit = found["measured_ms"], found["budget_ms"]
    times = f"{measured:.3g} ms, limit {limit:.4g} ms"
    if measured <= limit:
        return f"the limit was met ({times})"
    if not difference_text(measured, limit):
        return f"the limit was met within 5 % ({times})"
    return f"the limit was missed ({times})"


def _accuracy(row: Row, num_images: str) -> str:
    """How the accuracy changed, and whether that is more than noise.

    Args:
        num_images: such as `450 images`; empty for a short form.
    """
    change, low, high = (row.get(f"difference{end}") for end in ("", "_low", "_high"))
    if change is None:
        return ""
    text = f"accuracy {change:+.{1 if abs(change) >= 0.1 else 2}f} points" if change else "accuracy unchanged"
    if low is None or high is None or low == high == 0:
        return text + (f" on {num_images}" if num_images else "")
    if low <= 0 <= high:
        return text + (f", within the noise of {num_images}" if num_images else " (noise)")
    kind = "gain" if change > 0 else "loss"
    return text + (f", a {kind} that the {num_images} show clearly" if num_images else f" (a clear {kind})")
