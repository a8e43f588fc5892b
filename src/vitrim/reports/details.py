"""The content of `details.json`: what the page of a run shows besides the numbers of `report.json`.

It is made once from what the run has: evaluations, images, plan, scores and metrics. Nothing is computed by a model.
Each section is in a file of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitrim.data.images import ImageData
from vitrim.errors import UserError
from vitrim.evaluation import Evaluation
from vitrim.importance.scores import Scores
from vitrim.reports.calibration import calibration
from vitrim.reports.changed_images import changed_section, mistakes
from vitrim.reports.course import curve_rows, second_rows
from vitrim.reports.predictions import Judged, Predictions, class_rows, confusion_rows, judged
from vitrim.reports.removed import block_rows, scores_in_dense
from vitrim.runs.damage import check_file
from vitrim.runs.files import find_result, read_json
from vitrim.runs.folder import SECONDS, RunFolder, in_stages, parsed, read_plan
from vitrim.runs.seconds import read_seconds
from vitrim.source import Source

FORMAT = 1
DETAILS = "details.json"
SECTIONS = {  # the type of each section
    **{"classes": list, "confusions": list, "blocks": list, "curves": list, "seconds": list, "mistakes": list},
    **{"changed": dict, "calibration": dict},
}

Result = TypeVar("Result")


def details_of_compress(
    folder: RunFolder, source: Source, made_from: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of `details.json` of a run of `compress`. It is made once; a rerun reads it.

    Files that are missing or damaged, or of an earlier version, leave sections out. So it can be made for a finished
    run whose stages were deleted.

    Args:
        folder: of the run.
        source: the dense model and the data.
        made_from: what it is made from, as plain data for `RunFolder.once`; None if this is not compared.
    """
    found: dict[str, Any] | None = folder.stored(DETAILS, _read_details) if made_from is None else None
    if found is None:
        found = folder.once_json(DETAILS, lambda: _of_compress(folder.path, source), parse, made_from=made_from)
    assert found is not None
    return found


def details_of_training(folder: RunFolder, data: ImageData, evaluation: Evaluation) -> dict[str, Any]:
    """The content of `details.json` of a run of `train`. It is made once; a rerun reads it.

    Args:
        folder: of the run.
        data: with labels as the model counts them.
        evaluation: of the trained model.
    """
    found: dict[str, Any] = folder.once_json(
        DETAILS,
        lambda: _without_empty({**_predictions(data, evaluation), **_course(folder.path)}),
        parse,
        made_from=folder.digests_of("model", "evaluation.json"),
    )
    return found


def parse(details: Any) -> dict[str, Any]:
    """Return details that were read; raises ValueError or TypeError if they have another form."""
    if not isinstance(details, dict) or details.get("format") != FORMAT:
        raise ValueError(f"expected an object of format {FORMAT}")
    wrong = [name for name, kind in SECTIONS.items() if not isinstance(details.get(name, kind()), kind)]
    if wrong:
        raise TypeError(f"the section {wrong[0]} has another type")
    return details


def read(folder: Path) -> dict[str, Any]:
    """Read the `details.json` of a run; empty if it has none, or if it is damaged."""
    return _read(folder / DETAILS, _read_details) or {}


def total_seconds(folder: Path, runs: Iterable[Path]) -> float:
    """The seconds of a run whose models are those of other runs, with the seconds of these.

    Args:
        folder: of the run.
        runs: folders of the other runs.
    """
    others = (row["seconds"] for run in runs for row in read(run).get("seconds", ()))
    return round(sum(read_seconds(folder / SECONDS).values()) + sum(others), 1)


def _read_details(file: Path) -> dict[str, Any]:
    return parsed(file, parse, read_json(file))


def _of_compress(folder: Path, source: Source) -> dict[str, Any]:
    def scores_of(path: Path) -> Scores:
        scores = Scores.load(path)
        scores.check(source.start.structure)
        return scores_in_dense(scores, source.start.plan, source.structure)

    dense, small = (
        _read(find_result(folder, in_stages(f"evaluation-{stage}.json")), _read_evaluation)
        for stage in ("dense", "final")
    )
    plan = _read(folder / "plan.json", read_plan)
    scores = _read(folder / "scores.safetensors", scores_of)
    found: dict[str, Any] = {"num_images": len(source.data.validation)}
    if dense and small:
        found |= _predictions(source.data, dense, small)
    if plan:
        found["blocks"] = block_rows(source.structure, plan, scores)
    return _without_empty({**found, **_course(folder)})


def _read(file: Path, read: Callable[[Path], Result]) -> Result | None:
    """Read a file of a run; None if it is missing or damaged, or has another form."""
    if not file.is_file():
        return None
    try:
        check_file(file)
        return read(file)
    except UserError:
        return None


def _read_evaluation(file: Path) -> Evaluation:
    return parsed(file, Evaluation.from_dict, read_json(file))


def _predictions(data: ImageData, dense: Evaluation, small: Evaluation | None = None) -> dict[str, Any]:
    """The sections that follow from what one or two models predict."""
    images = judged(data, dense, small)
    if images is None:
        return {"num_images": dense.num_images}
    models = {"dense": images.dense, **({"small": images.small} if images.small else {})}
    reliability = {name: _reliability(model) for name, model in models.items()}
    return {
        "num_images": len(images.labels),
        "classes": class_rows(images),
        "confusions": confusion_rows(images),
        "changed": _changed(images, data),
        "calibration": {name: found for name, found in reliability.items() if found},
        **({} if images.small else {"mistakes": mistakes(images, data)}),
    }


def _changed(images: Judged, data: ImageData) -> dict[str, Any]:
    return changed_section(images, data) if images.small else {}


def _reliability(model: Predictions) -> dict[str, Any]:
    return {} if model.confidence is None else calibration(model.correct, model.confidence)


def _course(folder: Path) -> dict[str, Any]:
    return {"curves": curve_rows(folder), "seconds": second_rows(folder)}


def _without_empty(sections: dict[str, Any]) -> dict[str, Any]:
    """The same sections without those that have no content, and with the format."""
    return {"format": FORMAT, **{name: content for name, content in sections.items() if content not in ({}, [])}}
