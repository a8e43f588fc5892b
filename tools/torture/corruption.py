"""Damage to each file of a run and of a model folder. No damage may lead to another result without a word."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.torture.runner import Ended, run
from tools.torture.scene import RUN, Scene, result_of
from tools.torture.verdict import HANG, LOST, RIGHT, TRACEBACK, UNCLEAR, WRONG, Case, Record

Damage = Callable[[Path, random.Random], None]


def flip(file: Path, draw: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, draw: random.Random) -> None:
    """Keep the first part."""
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(max(1, len(content)))])


def empty(file: Path, draw: random.Random) -> None:
    """Remove the content."""
    file.write_bytes(b"")


def delete(file: Path, draw: random.Random) -> None:
    """Remove the file."""
    file.unlink()


def edit(file: Path, draw: random.Random) -> None:
    """Change one digit, as a person may do."""
    content = file.read_bytes()
    places = [found.start() for found in re.finditer(rb"\d", content)]
    if not places:
        return append(file, draw)
    place = draw.choice(places)
    other = draw.choice([digit for digit in b"0123456789" if digit != content[place]])
    file.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])


def append(file: Path, draw: random.Random) -> None:
    """Add bytes that are no text."""
    file.write_bytes(file.read_bytes() + b"\xff\xfe\x00 surplus")


def garbage(file: Path, draw: random.Random) -> None:
    """Replace the content by random bytes of the same size."""
    file.write_bytes(draw.randbytes(file.stat().st_size))


def other_json(file: Path, draw: random.Random) -> None:
    """Replace the content by JSON of another type, or by deep nesting."""
    file.write_text(draw.choice(["[]", "7", "null", '{"format": 1}', "[" * 100_000, json.dumps({"a": [{}] * 9})]))


def folder_instead(file: Path, draw: random.Random) -> None:
    """Put a folder in its place."""
    file.unlink()
    file.mkdir()


def link_to_nowhere(file: Path, draw: random.Random) -> None:
    """Put a link without a target in its place."""
    file.unlink()
    file.symlink_to("nowhere")


def other_file(file: Path, draw: random.Random) -> None:
    """Put another file of the same folder in its place."""
    others = sorted(path for path in file.parent.iterdir() if path.is_file() and path != file)
    if others:
        shutil.copy(draw.choice(others), file)


DAMAGES: tuple[Damage, ...] = (
    *(flip, edit, truncate, empty, delete, append, garbage, other_json, folder_instead, link_to_nowhere, other_file),
)


def damaged_runs(scene: Scene, record: Record, count: int) -> None:
    """Damage one file of a finished or an interrupted run, and repeat the command."""
    cases = list(_cases(scene))
    random.Random(0).shuffle(cases)
    for state, file, damage, round_ in cases[:count]:
        kind, name = f"damage, {state} run", f"{damage.__name__} {file} {round_}"
        if record.has(kind, name):
            continue
        folder = scene.case("damage", scene.finished if state == "finished" else scene.interrupted)
        damage(folder / RUN / file, random.Random(name))
        record.add(_repeated(scene, kind, name, folder, file))


def damaged_models(scene: Scene, record: Record, count: int) -> None:
    """Damage one file of a model folder outside a run, and evaluate the model."""
    model = scene.finished / "model"
    right = run(["evaluate", str(model), "--data", "digits"], scene.case("model-right"))
    cases = [(file, damage, round_) for round_ in range(3) for damage in DAMAGES for file in _files(model)]
    random.Random(0).shuffle(cases)
    for file, damage, round_ in cases[:count]:
        kind, name = "damage, model folder", f"{damage.__name__} {file} {round_}"
        if record.has(kind, name):
            continue
        folder = scene.case("model")
        shutil.copytree(model, folder / "model")
        damage(folder / "model" / file, random.Random(name))
        ended = run(["evaluate", "model", "--data", "digits"], folder)
        same = _numbers(ended) == _numbers(right)
        record.add(Case(kind=kind, name=name, verdict=_of_model(ended, same, file), about=_about(ended)))


def _of_model(ended: Ended, same: bool, file: str) -> str:
    if ended.status is None or ended.has_traceback:
        return HANG if ended.status is None else TRACEBACK
    if ended.status == 0:
        return RIGHT if same else WRONG
    is_sentence = ended.status == 2 and ended.message.startswith("vitrim: ")
    return RIGHT if is_sentence and ("model" in ended.message) else UNCLEAR


def _numbers(ended: Ended) -> list[str]:
    return re.findall(r"\d+\.\d+ %", ended.output)


def _cases(scene: Scene) -> Iterator[tuple[str, str, Damage, int]]:
    for round_ in range(5):
        for damage in DAMAGES:
            for state, run_folder in (("finished", scene.finished), ("interrupted", scene.interrupted)):
                for file in _files(run_folder):
                    if round_ == 0 or damage in (flip, edit, truncate, other_json):
                        yield state, file, damage, round_


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _repeated(scene: Scene, kind: str, name: str, folder: Path, file: str) -> Case:
    """Repeat the command. If it is refused, do what the message says: delete the file that it names, and repeat."""
    about = ""
    for _ in range(3):
        ended = run(scene.command(), folder)
        about = _about(ended)
        if ended.status is None or ended.has_traceback:
            verdict = HANG if ended.status is None else TRACEBACK
            return Case(kind=kind, name=name, verdict=verdict, about=about)
        if ended.status == 0:
            right = result_of(folder / RUN) == scene.result
            return Case(kind=kind, name=name, verdict=RIGHT if right else WRONG, about="" if right else about)
        named = _named(ended, folder)
        if named is None:
            return Case(kind=kind, name=name, verdict=UNCLEAR, about=about)
        if named.is_dir() and not named.is_symlink():
            shutil.rmtree(named)
        else:
            named.unlink()
    return Case(kind=kind, name=name, verdict=LOST, about=about)


def _named(ended: Ended, folder: Path) -> Path | None:
    """What a message tells to delete: the path after "delete", or the first one of the message for "delete it"."""
    found = re.search(r"[Dd]elete (\S+)", ended.message)
    if not found:
        return None
    words = ended.message.removeprefix("vitrim: ").split() if found[1].strip(".,;:") == "it" else [found[1]]
    paths = (folder / word.strip(".,;:") for word in words if RUN in word)
    return next((path for path in paths if path.exists() or path.is_symlink()), None)


def _about(ended: Ended) -> str:
    return f"status {ended.status}: {ended.message[-600:]}"
