"""What is written and printed about the epochs of a training: rows of `metrics.jsonl`, and lines now and then."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitrim.runs.files import METRICS, writing
from vitrim.runs.progress import log
from vitrim.training.faults import Event

NUM_LOG_LINES = 10  # of one training


class Metrics:
    """The rows and lines of one training. Only the first process writes.

    Attributes:
        file: `metrics.jsonl`; None to print only.
    """

    def __init__(self, run_dir: Path | None, stage: str, epochs: int, *, is_main_process: bool) -> None:
        self.file = run_dir / METRICS if run_dir and is_main_process else None
        self._stage, self._epochs = stage, epochs

    def add(self, epoch: int, row: dict[str, Any]) -> None:
        """Write the row of an epoch, and print a line if the row has an accuracy or a tenth of the epochs has passed.

        Args:
            epoch: number of the epoch, from 1.
            row: `step`, `loss` and its terms, `images_per_second`; after an evaluation `top1` and `validation_loss`.
        """
        if self.file:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": self._stage, "epoch": epoch, **row}) + "\n")
        if "top1" not in row and epoch % max(1, self._epochs // NUM_LOG_LINES):
            return
        accuracy = f", validation top-1 {row['top1']:.2f} %" if "top1" in row else ""
        log(
            f"{self._stage}: epoch {epoch}/{self._epochs}, loss {row['loss']:.4f}{accuracy}, "
            f"{row['images_per_second']:.0f} images/s"
        )

    def add_event(self, event: Event) -> None:
        """Write a row about something that went wrong, and print it."""
        log(f"{self._stage}: {event.note}")
        if self.file:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": self._stage, **asdict(event)}) + "\n")

    def delete_after(self, step: int, num_events: int = 0) -> None:
        """Delete the rows of this training that were written after `step`, and an incomplete last line.

        Args:
            num_events: number of events that the checkpoint has; rows about later ones are deleted, too.
        """
        if self.file is None or not self.file.exists():
            return
        kept, seen = [], 0
        for line in self.file.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            row = json.loads(line)
            if row["stage"] == self._stage:
                seen += "event" in row
                if seen > num_events if "event" in row else row["step"] > step:
                    continue
            kept.append(line)
        with writing(self.file) as path:
            path.write_text("".join(kept), encoding="utf-8")


def add_note(folder: Path, stage: str, event: str, note: str) -> None:
    """Write a row about a finished training into the `metrics.jsonl` of its run, which `notes_on_events` reads."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, "event": event, "note": note}) + "\n")


def notes_on_events(folder: Path) -> list[str]:
    """What went wrong in the trainings of a run, one sentence for each event, from its `metrics.jsonl`."""
    file = folder / METRICS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [json.loads(line) for line in lines if '"event"' in line]
    return [f"{row['stage']}: {row['note']}" for row in rows if "note" in row]
