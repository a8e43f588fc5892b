"""Latency in a report: the numbers of each model, and whether a limit was met. Nothing is measured here."""

from collections.abc import Sequence
from typing import Any

from vitrim.costs.latency import Latency, LatencySettings, difference_text

OLD_KEY_OF_PREDICTED_MS = "promised_ms"  # in reports of version 0.1.0; still written, because scripts may read it


def latency_columns(latencies: Sequence[Latency]) -> list[dict[str, float | None]]:
    """Make the keys `latency...` of models that were timed in the same rounds, the dense one first.

    `latency_ms` of the dense model is its median. That of another model is this median times `latency_ratio`, so that
    the numbers of a report agree. The medians of two models can contradict their ratio, because the machine may be slow
    in other rounds for one than for the other. `latency_p90_ms` is the 90th percentile as it was measured.
    """
    return [
        {
            "latency_ms": latencies[0].median_ms * latency.ratio,
            "latency_p90_ms": latency.p90_ms,
            "latency_ratio": latency.ratio,
            "latency_ratio_low": latency.ratio_low,
            "latency_ratio_high": latency.ratio_high,
        }
        for latency in latencies
    ]


def latency_row(
    settings: LatencySettings, budget_ms: float, predicted_ms: float, dense_ms: float, latency: Latency
) -> dict[str, Any]:
    """Make the entry `latency` of `report.json`.

    The speed of the machine may differ between planning and this measurement. The measured ratio to the dense model,
    multiplied by the dense model's milliseconds at planning, corrects for that.

    Args:
        settings: runtime and batch size.
        budget_ms: the maximum milliseconds of one forward pass.
        predicted_ms: milliseconds that the plan predicted.
        dense_ms: milliseconds of the dense model when the plan was made.
        latency: that was measured, with its ratio to the dense model.

    Returns:
        These numbers; `measured_ms` with its interval; and `difference`: the relative error of the prediction.
    """
    measured_ms = latency.ratio * dense_ms
    low, high = (None if end is None else end * dense_ms for end in (latency.ratio_low, latency.ratio_high))
    return {
        "on": settings.on,
        "batch_size": settings.batch_size,
        "budget_ms": budget_ms,
        "predicted_ms": predicted_ms,
        **{OLD_KEY_OF_PREDICTED_MS: predicted_ms},
        "measured_ms": measured_ms,
        "measured_low_ms": low,
        "measured_high_ms": high,
        "dense_ms": dense_ms,
        "difference": measured_ms / predicted_ms - 1,
    }


def latency_lines(report: dict[str, Any]) -> list[str]:
    """Say for each limit in milliseconds whether it was met, one line for each model that has one."""
    if report.get("latency"):
        return [latency_line(report)]
    limited = [row for row in report["models"] if row.get("latency")]
    return [f"{row['name']}: {latency_line({**report, 'latency': row['latency']})}" for row in limited]


def latency_line(report: dict[str, Any]) -> str:
    """Say in some sentences whether the budget in milliseconds was met. `report` must have `latency`."""
    found, now_ms = report["latency"], report["models"][0]["latency_ms"]
    runtime = report["environment"]["device"] if found["on"] == "model" else found["on"]
    dense_ms = found.get("dense_ms", now_ms)
    low, high = _measured_interval(found)
    interval = "" if low is None else f" [{low:.4g}, {high:.4g}]"
    sentences = [
        f"Latency on {runtime}, batch {found['batch_size']}: budget {found['budget_ms']:.4g} ms, predicted "
        f"{_predicted_ms(found):.4g} ms, measured {found['measured_ms']:.4g} ms{interval}.",
        *missed_latency(found),
    ]
    if difference_text(now_ms, dense_ms):
        sentences.append(
            f"The dense model took {dense_ms:.4g} ms when the plan was made, and {now_ms:.4g} ms in the table above. "
            "The milliseconds in this line are at the speed of the plan."
        )
    return " ".join(sentences)


def missed_latency(latency: dict[str, Any]) -> list[str]:
    """Say where the measured latency misses the budget or the prediction by more than 5 %, one sentence for each.

    Args:
        latency: the entry of `report.json`.
    """
    measured_ms, budget_ms = latency["measured_ms"], latency["budget_ms"]
    low, high = _measured_interval(latency)
    sentences = []
    for name, stated_ms in (("limit", budget_ms), ("prediction", _predicted_ms(latency))):
        difference = difference_text(measured_ms, stated_ms)
        if not difference or (name == "limit" and measured_ms < stated_ms):
            continue
        noise = ""
        if low is not None:
            place = "inside" if low <= stated_ms <= high else "outside"
            noise = f" ({place} the 95 % interval of the measurement)"
        sentences.append(f"Measured {measured_ms:.4g} ms, {difference} the {name} of {stated_ms:.4g} ms{noise}.")
    if sentences:
        sentences.append("The machine may have been busy when the model was timed.")
    return sentences


def _predicted_ms(latency: dict[str, Any]) -> float:
    return float(latency["predicted_ms"] if "predicted_ms" in latency else latency[OLD_KEY_OF_PREDICTED_MS])


def _measured_interval(latency: dict[str, Any]) -> tuple[Any, Any]:
    """The ends of the interval of the measured milliseconds; None for reports of 0.1.0 and for few rounds."""
    return latency.get("measured_low_ms"), latency.get("measured_high_ms")
