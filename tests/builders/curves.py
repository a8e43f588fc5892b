"""Rows of `curves.json`, made up, as the page of results reads them."""

from typing import Any

TOP1 = {  # by arm: top-1 after 0, 1, 3 and 10 epochs
    "vitrim": {0: 50.0, 1: 55.0, 3: 58.0, 10: 60.0},
    "paper": {1: 46.0, 3: 54.0, 10: 58.5},
    "torch-pruning": {0: 40.0, 1: 50.0, 3: 56.0, 10: 59.0},
}


def curve_rows(**changes: Any) -> list[dict[str, Any]]:
    """Curves of three arms at two fractions to keep. One arm has no point before training."""
    return [
        {
            **{"cell": "tiny", "keep": keep, "arm": arm, "student_epochs": epochs, "seeds": [0, 1], "top1": top1},
            **{"low": top1 - 1, "high": top1 + 1, "kl": 0.1, "agreement": 80.0, "seconds": 60.0 + 100 * epochs},
            "vitrim_delta": None if arm == "vitrim" else TOP1["vitrim"][epochs] - top1,
            "vitrim_low": None if arm == "vitrim" else TOP1["vitrim"][epochs] - top1 - 0.5,
            "vitrim_high": None if arm == "vitrim" else TOP1["vitrim"][epochs] - top1 + 0.5,
            **{"command": "python -m benchmarks.curves tiny.toml", "commit": "abc1234", "hardware": "AMD EPYC"},
            **changes,
        }
        for keep in (0.5, 0.3)
        for arm, points in TOP1.items()
        for epochs, top1 in points.items()
    ]
