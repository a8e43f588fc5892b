"""Two commands at once in one folder: one works, the other is refused or finds the finished result."""

import random
import time
from pathlib import Path

from tools.torture.runner import Ended, Running
from tools.torture.scene import RUN, Scene, result_of
from tools.torture.verdict import HANG, LOST, RIGHT, TRACEBACK, UNCLEAR, WRONG, Case, Record

KIND = "two commands at once"


def races(scene: Scene, record: Record, count: int) -> None:
    """Start the same command twice, or two commands of different settings, with a random delay."""
    for number in range(count):
        name = f"{'the same' if number % 2 else 'different'} {number}"
        if record.has(KIND, name):
            continue
        draw, folder = random.Random(name), scene.case(f"race-{number}")
        commands = [scene.command(), scene.command(keep="0.5" if number % 2 else "0.6")]
        draw.shuffle(commands)
        started = []
        for index, words in enumerate(commands):
            started.append(Running([*words[:-1], str(folder / RUN)], folder / str(index)))
            time.sleep(draw.choice([0.0, 0.0, draw.uniform(0, 0.3), draw.uniform(0, scene.seconds)]))
        ended = [one.wait() for one in started]
        record.add(_judged(scene, name, folder, commands, ended))


def _judged(scene: Scene, name: str, folder: Path, commands: list[list[str]], ended: list[Ended]) -> Case:
    about = "; ".join(f"{one.status}: {one.message[-300:]}" for one in ended)

    def case(verdict: str) -> Case:
        return Case(kind=KIND, name=name, verdict=verdict, about=about if verdict != RIGHT else "")

    if any(one.status is None for one in ended):
        return case(HANG)
    if any(one.has_traceback for one in ended):
        return case(TRACEBACK)
    won = [words for words, one in zip(commands, ended, strict=True) if one.status == 0]
    if not won:
        return case(LOST)
    if any(one.status not in (0, 2) for one in ended):
        return case(UNCLEAR)
    is_other = next(word for index, word in enumerate(won[0]) if won[0][index - 1] == "--keep") == "0.6"
    return case(RIGHT if result_of(folder / RUN) == (scene.other if is_other else scene.result) else WRONG)
