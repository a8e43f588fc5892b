"""The results of the stages of a run: rows of the report, and what is said about stages that went wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrim.evaluation import Evaluation, worse_than_before
from vitrim.training.metrics import notes_on_events
from vitrim.training.validation import KeptEpoch

STAGES_OF_RUN = ("width", "depth")
LARGER = "larger size"  # the model that is cut, if it is not the dense one


@dataclass(kw_only=True)
class StageResults:
    """What was found after each stage, in order.

    Attributes:
        rows: of the report, see `report.stage_row`.
        evaluations: of the model after each stage.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, row: dict[str, Any], evaluation: Evaluation) -> None:
        """Note the result of a stage."""
        self.rows.append(row)
        self.evaluations.append(evaluation)

    def is_worse(self, stage: str) -> str:
        """Say that a distillation has ended below the model that it started from; empty if it has not.

        Args:
            stage: `width` or `depth`.
        """
        found = {row["name"]: evaluation for row, evaluation in zip(self.rows, self.evaluations, strict=True)}
        start = found.get(f"{stage} recover", found.get(f"{stage} cut"))
        end = found.get(f"{stage} distil")
        return worse_than_before(start, end, "the distillation") if start and end else ""

    def notes(self, folder: Path) -> list[str]:
        """Which epochs were kept, and what went wrong in the run although it ended, in sentences.

        Args:
            folder: of the run.
        """
        kept = [(stage, KeptEpoch.read(folder, stage)) for stage in STAGES_OF_RUN]
        worse = [(stage, self.is_worse(stage)) for stage in STAGES_OF_RUN]
        return [
            *(f"{stage}: {found.sentence()}" for stage, found in kept if found),
            *notes_on_events(folder),
            *(f"{stage}: {sentence}" for stage, sentence in worse if sentence),
        ]
