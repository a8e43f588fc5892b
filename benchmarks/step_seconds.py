"""The cost of an arm by steps: seconds of scoring, rotation, planning, recovery and distillation.

`RunFolder` notes the seconds of each result, and `metrics.jsonl` those of each epoch. A plan that is made in several
steps also scores and recovers models. `timing_plans` measures these two parts while a plan is made.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vitrim.planning import Planner
from vitrim.runs.files import read_json, write_text
from vitrim.runs.folder import SECONDS
from vitrim.runs.metric_rows import rows_in
from vitrim.runs.processes import is_main_process
from vitrim.runs.seconds import read_seconds

SEARCH = "depth-search"  # prefix of the trainings of the depth search in `metrics.jsonl`
STEPS = ("scoring", "rotation", "planning", "recovery", "distillation", "other")
_STEP_OF_RESULT = {
    "scores.safetensors": "scoring",
    "rotation.safetensors": "rotation",
    "head-widths.json": "rotation",
    "width-recovered": "recovery",
    "depth-recovered": "recovery",
    "device.json": "planning",  # the costs that the plan is made with
    "width-plan.json": "planning",
    "depth-*.json": "planning",  # order of the blocks, candidates of the search, plan of the depth stage
    "plan.json": "planning",  # of arms that prune once
    "pruned.safetensors": "planning",
}
_PARTS_OF_PLANS = {"score": "scoring", "cut": "recovery"}  # methods of `Planner`
_PLANS = ("plan_width", "plan_one_shot", "plan_depth")  # the methods that call them


def step_seconds(folder: Path, seconds: float) -> dict[str, float] | None:
    """Return the seconds of each step of an arm that took time, in the order of `STEPS`.

    * `rotation`: rotating the heads and choosing their width.
    * `planning`: making the plan without the scores and the recovery in it; the depth search with its trainings. For
      arms that prune once it is all that they do before the training.
    * `distillation`: the epochs of the training, also of one on the labels.
    * `other`: the rest of `seconds`, such as evaluations, measuring the latency, and work that an interruption lost.

    Args:
        folder: of the arm.
        seconds: that the arm took.

    Returns:
        None if the run noted no seconds.
    """
    made = read_seconds(folder / SECONDS)
    if not made:
        return None
    found = dict.fromkeys(STEPS, 0.0)
    for name, took in made.items():
        step = next(
            (step for pattern, step in _STEP_OF_RESULT.items() if fnmatchcase(Path(name).name, pattern)), "other"
        )
        found[step] += took
    for parts in _read_parts(parts_file(folder)).values():
        for step, took in parts.items():
            found[step] += took
            found["planning"] -= took
    rows = (row for row in rows_in(folder) if not row["stage"].startswith(SEARCH))
    found["distillation"] = sum(row.get("seconds", 0.0) for row in rows)
    found["other"] = seconds - sum(found[step] for step in STEPS if step != "other")
    return {step: round(took, 3) for step, took in found.items() if took > 0}


def parts_file(folder: Path) -> Path:
    """Return the file with the seconds of the parts of an arm's plans. It is beside the folder of the arm."""
    return folder.with_name(f"{folder.name}.plans.json")


@contextmanager
def timing_plans(folder: Path) -> Iterator[None]:
    """Within the context, note how long scoring and recovery take while vitrim makes a plan.

    A plan that is made again replaces its earlier seconds.

    Args:
        folder: of the arm.
    """
    parts: dict[str, float] = {}

    def timed(step: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            try:
                return method(*arguments, **options)
            finally:
                parts[step] = parts.get(step, 0.0) + time.monotonic() - began

        return run

    def noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(planner: Planner, *arguments: Any) -> Any:
            parts.clear()
            plan = method(planner, *arguments)
            if is_main_process():
                blocks = arguments[-1]  # how many are removed, or which: it tells the candidates of a search apart
                file = parts_file(folder)
                text = json.dumps({**_read_parts(file), f"{name} {blocks}": parts}, indent=1)
                write_text(file, text + "\n")
            return plan

        return run

    with ExitStack() as stack:
        for name, step in _PARTS_OF_PLANS.items():
            stack.enter_context(patch.object(Planner, name, timed(step, getattr(Planner, name))))
        for name in _PLANS:
            stack.enter_context(patch.object(Planner, name, noted(name, getattr(Planner, name))))
        yield


def _read_parts(file: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = read_json(file) if file.is_file() else {}
    return found
