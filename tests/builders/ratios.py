"""Made-up lines of the tables of costs."""

from typing import Any

from benchmarks.costs.ratios import Ratio


def ratio(value: float = 1.0, **changes: Any) -> Ratio:
    """A line without spread."""
    about = {"section": "scoring", "measure": "time", "against": "a pass", "setting": "ViT-S, 2 threads"}
    return Ratio(**{"value": value, "low": value, "high": value, **about, **changes})


def growth_points(*axes: str) -> list[dict[str, Any]]:
    """Two points on each axis of the plot of growth."""
    return [
        {"along": along, "name": f"ViT-{x}", "x": x, "seconds": 0.3 * x, "step_seconds": 0.2 * x}
        | {"peak_bytes": 9_000_000 * x, "step_peak_bytes": 8_000_000 * x, "model_bytes": 4_000_000 * x}
        for along in axes
        for x in (10, 100)
    ]
