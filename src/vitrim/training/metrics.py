"""What is written and printed about the epochs of a training: rows of `metrics.jsonl`, and lines now and then."""

import json
from pathlib import Path
from typing import Any

from vitrim.runs.files import writing
from vitrim.runs.progress import log

NUM_LOG_LINES = 10  # of one training


class Metrics:
    """The rows and lines of one training. Only the first process writes.

    Attributes:
        file: `metrics.jsonl`; None to print only.
    """

    def __init__(self, run_dir: Path | None, stage: str, epochs: int, *, is_main_process: bool) -> None:
        self.file = run_dir / "metrics.jsonl" if run_dir and is_main_process else None
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

    def delete_after(self, step: int) -> None:
        """Delete the rows of this training that were written after `step`, and an incomplete last line."""
        if self.file is None or not self.file.exists():
            return
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [(json.loads(line), line) for line in lines if line.endswith("\n")]
        kept = [line for row, line in rows if row["stage"] != self._stage or row["step"] <= step]
        with writing(self.file) as path:
            path.write_text("".join(kept), encoding="utf-8")
