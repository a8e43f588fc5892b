"""`forecast.json` of a run folder: the steps of a run, how long they were to take, and which are done.

`vitrim.forecast` knows the steps. Only people read the file, through `vitrim watch`: no result depends on it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vitrim.errors import UserError
from vitrim.runs.digests import write_text_noted
from vitrim.runs.environment import command_line
from vitrim.runs.files import FORECAST, read_json
from vitrim.runs.processes import is_main_process

FORMAT = 1
MAX_NUMBER = 1e12  # of what is read


@dataclass(frozen=True, kw_only=True)
class NotedStep:
    """One step, as it is noted.

    Attributes:
        text: what is done.
        seconds: how long it was to take.
        stage: of the training in it; empty if there is none.
        num_updates: of this training.
        result: path below the run folder of what is there when the step is done.
        took: seconds that it took; 0 if its result was there before; None if it is not done.
    """

    text: str
    seconds: float
    stage: str = ""
    num_updates: int = 0
    result: str = ""
    took: float | None = None


@dataclass(frozen=True, kw_only=True)
class NotedSteps:
    """The steps of a run, in order.

    Attributes:
        title: what the run is.
        steps: all of them, as far as they are known.
        began: when the first step that is not done began, in seconds since 1970.
        correction: factor on the times of steps to come, from those that are done.
        command: that makes the run; empty if it is not known.
    """

    title: str
    steps: tuple[NotedStep, ...]
    began: float
    correction: float = 1.0
    command: str = ""


def write_steps(
    folder: Path | None, title: str, steps: Sequence[Mapping[str, Any]], took: Sequence[float], correction: float
) -> None:
    """Note the steps of a run. Only the first process writes.

    Args:
        folder: of the run; None writes nothing.
        title: what the run is.
        steps: fields of `NotedStep` without `took`.
        took: seconds of the steps that are done. The next one begins now.
        correction: factor on the times of the other steps.
    """
    if folder is None or not folder.is_dir() or not steps or not is_main_process():
        return
    rows = tuple(NotedStep(**step, took=seconds) for step, seconds in zip_longest(steps, took[: len(steps)]))
    noted = NotedSteps(title=title, steps=rows, began=time.time(), correction=correction, command=command_line())
    write_text_noted(folder / FORECAST, json.dumps({"format": FORMAT, **asdict(noted)}, indent=1) + "\n")


def read_steps(folder: Path) -> NotedSteps | None:
    """The steps of a run; None if they are not noted, or cannot be read."""
    try:
        found: Any = read_json(folder / FORECAST)
        steps = tuple(NotedStep(**step) for step in found.pop("steps"))
        if found.pop("format") != FORMAT:
            return None
        noted = NotedSteps(**found, steps=steps)
    except (UserError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None
    texts = [noted.title, noted.command, *(text for step in steps for text in (step.text, step.stage, step.result))]
    numbers = [
        noted.began,
        noted.correction,
        *(number for step in steps for number in (step.seconds, step.num_updates)),
    ]
    numbers += [step.took for step in steps if step.took is not None]
    is_whole = all(isinstance(text, str) for text in texts) and all(map(is_number, numbers))
    return noted if is_whole and all(isinstance(step.num_updates, int) for step in steps) else None


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number with which times can be computed: neither negative, nor above 1e12."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER
