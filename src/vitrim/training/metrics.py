"""What is written and printed about the epochs of a training: rows of `metrics.jsonl`, and lines now and then."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitrim.errors import counted
from vitrim.runs.digests import IS_DAMAGED, Digests, State, Version, write_text_noted
from vitrim.runs.files import METRICS
from vitrim.runs.metric_rows import row_in, rows_in
from vitrim.runs.progress import log
from vitrim.tracking.trackers import active_trackers
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
        self._sha256 = hashlib.sha256()  # of the file

    def add(self, epoch: int, row: dict[str, Any]) -> None:
        """Write the row of an epoch, and print a line if the row has an accuracy or a tenth of the epochs has passed.

        Args:
            epoch: number of the epoch, from 1.
            row: `step`, `loss` and its terms, `images_per_second`, `seconds`; after an evaluation `top1` and
                `validation_loss`.
        """
        self._append({"stage": self._stage, "epoch": epoch, **row})
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
        self._append({"stage": self._stage, **asdict(event)})

    def _append(self, row: dict[str, Any]) -> None:
        """Write a row, and note the digest of the file before."""
        if not self.file:
            return
        line = json.dumps(row) + "\n"
        self._sha256.update(line.encode())
        digests = Digests(self.file.parent)
        digests.note(self.file.name, Version(sha256=self._sha256.hexdigest()))
        with self.file.open("ab") as file:
            file.write(line.encode())
        digests.landed(self.file.name)
        active_trackers().update(self.file.parent, self._stage)

    def delete_after(self, step: int, num_events: int = 0) -> None:
        """Delete the rows of this training that were written after `step`, and lines that are not complete rows.

        Call it before the first row is added. That lines were deleted because they cannot be read is logged.

        Args:
            step: number of updates that were made.
            num_events: number of events that the checkpoint has; rows about later ones are deleted, too.
        """
        if self.file is None:
            return
        if self.file.is_symlink() and not self.file.exists():  # a link to nowhere
            self.file.unlink()
        kept = ""
        if self.file.exists():
            if Digests(self.file.parent).compare(self.file.name).state is State.DAMAGED:
                log(f"{self.file} {IS_DAMAGED}; lines that cannot be read are deleted")
            lines = self.file.read_text(encoding="utf-8", errors="replace").split("\n")
            rows = [(row_in(line), line) for line in lines if line]
            if unreadable := sum(row is None for row, _ in rows):
                log(f"{self.file}: {counted(unreadable, 'line')} could not be read and will be deleted")
            seen = 0
            for row, line in rows:
                if row and row["stage"] == self._stage:
                    seen += "event" in row
                    if seen > num_events if "event" in row else row["step"] > step:
                        continue
                kept += f"{line}\n" if row else ""
            write_text_noted(self.file, kept)
        self._sha256 = hashlib.sha256(kept.encode())
        active_trackers().update(self.file.parent, self._stage)


def add_note(folder: Path, stage: str, event: str, note: str) -> None:
    """Write a row about a finished training into the `metrics.jsonl` of its run, which `notes_on_events` reads."""
    file = folder / METRICS
    before = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    write_text_noted(file, before + json.dumps({"stage": stage, "event": event, "note": note}) + "\n")


def notes_on_events(folder: Path) -> list[str]:
    """What went wrong in the trainings of a run, one sentence for each event, from its `metrics.jsonl`."""
    rows = [row for row in rows_in(folder) if "event" in row]
    return [f"{row['stage']}: {row['note']}" for row in rows if isinstance(row.get("note"), str)]
