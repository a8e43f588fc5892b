"""Checks a finished run: what its report says is computed again from its folder, and compared.

Nothing in the folder is changed. What is done about a damaged file is decided in the run itself (`runs.folder`).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.copying import copied
from vitrim.costs.counting import count_cost
from vitrim.data.files.run_record import as_in_run
from vitrim.data.images import ImageData
from vitrim.errors import CheckpointMismatch, ExportMismatch, SettingError, UserError, counted
from vitrim.evaluation import Evaluation, evaluate
from vitrim.exporting.export import default_tolerance
from vitrim.exporting.metadata import batch_of
from vitrim.exporting.with_preprocessing import exportable_with_preprocessing
from vitrim.models import origin_of
from vitrim.plan import PruningPlan
from vitrim.programs.formats import FORMATS, Format
from vitrim.programs.program import AnyBatch, ProgramSettings, compare_outputs, exportable
from vitrim.reports import report as reports
from vitrim.runs.damage import check_folder
from vitrim.runs.digests import Digests, State
from vitrim.runs.files import RUN, STAGES, find_result, read_json
from vitrim.runs.folder import in_stages, parsed
from vitrim.runs.processes import this_process
from vitrim.saving.checkpoint import file_bytes, load

MAX_OTHER_IMAGES = 0.001  # of the images may be judged otherwise by another processor, because of rounding
MAX_NAMED = 4  # files in one sentence


@dataclass(frozen=True, kw_only=True)
class Check:
    """One statement about a run.

    Attributes:
        name: what was checked.
        holds: whether it is as the run says; None if it could not be checked.
        text: what was found, and what was expected.
    """

    name: str
    holds: bool | None
    text: str


def verify(run_dir: str | Path, data: ImageData) -> list[Check]:
    """Compute again what a finished run says about its model.

    Digests of all files are compared. The model is built and evaluated on the validation images. Its plan, accuracy,
    parameters, multiply-adds and file size are compared with the report, and each exported file with the model.

    Args:
        run_dir: folder of a finished run of `compress` or `train`. It is not changed.
        data: the images of the run.

    Returns:
        One entry for each check, also for those that do not hold.

    Raises:
        SettingError: the folder has no finished run.
    """
    folder = Path(run_dir)
    check_finished(folder)
    checks = [_files(folder)]
    try:
        model = load(folder / "model", device=this_process().device)
    except UserError as problem:
        return [*checks, Check(name="model", holds=False, text=str(problem))]
    checks.append(Check(name="model", holds=True, text="it was built, and the weights fit"))
    try:
        said = _said(folder)
    except CheckpointMismatch as problem:
        return [*checks, Check(name="report", holds=False, text=str(problem))]
    checks += _numbers(folder, model, said)
    checks += _accuracy(folder, model, data, said)
    return [*checks, *_exported(folder, model)]


def check_finished(folder: Path) -> None:
    """Refuse a folder without a finished run.

    Raises:
        SettingError: says what the folder is.
    """
    if not folder.is_dir():
        raise SettingError(f"There is no folder {folder}; expected the folder of a finished run.")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{RUN}"))
    if not (folder / RUN).is_file() or (inside and not (folder / "model").is_dir()):
        one = f" It has the runs {', '.join(inside)}: name one of them." if inside else ""
        what = "For a model without a run, use `vitrim evaluate`."
        raise SettingError(f"{folder} has no run; expected the folder of a finished run.{one or f' {what}'}")
    names = ("report.json", "evaluation.json")
    if not (folder / "model").exists() or not any((folder / name).exists() for name in names):
        raise SettingError(f"The run in {folder} is not finished. Repeat its command to continue it.")


def _files(folder: Path) -> Check:
    """Whether each file is what the run wrote. The folder `stages` may be deleted after a run."""
    found = [one for one in check_folder(folder) if not _may_be_missing(folder, one.path, one.kind)]
    bad = [one for one in found if one.kind != "unlisted"]
    if bad:
        named = ", ".join(f"{one.path.relative_to(folder)} ({one.kind})" for one in bad[:MAX_NAMED])
        more = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        return Check(name="files", holds=False, text=f"not what the run wrote: {named}{more}")
    digests = Digests(folder)
    if not digests.is_readable():
        return Check(name="files", holds=None, text="the run has no digests: an earlier version of vitrim wrote it")
    others = [one for one in found if one.kind == "unlisted"]
    named = ", ".join(str(one.path.relative_to(folder)) for one in others[:MAX_NAMED])
    more = f"; {counted(len(others), 'file')} without a digest: {named}" if others else ""
    return Check(name="files", holds=True, text=f"{counted(len(digests.names()), 'digest')} fit{more}")


def _may_be_missing(folder: Path, path: Path, kind: str) -> bool:
    parts = path.relative_to(folder).parts
    if kind != "missing" or STAGES not in parts:
        return False
    return not folder.joinpath(*parts[: parts.index(STAGES) + 1]).exists()  # also of a run inside of this one


def _said(folder: Path) -> dict[str, Any]:
    """What a run says about its model: the last row of its report, or the evaluation of `train`."""
    file = folder / "report.json"
    if file.exists():
        row: dict[str, Any] = reports.read(file)["models"][-1]
        return row
    file = folder / "evaluation.json"
    return {"top1": parsed(file, Evaluation.from_dict, read_json(file)).top1}


def _numbers(folder: Path, model: nn.Module, said: Mapping[str, Any]) -> Iterator[Check]:
    """Plan, parameters, multiply-adds and file size."""
    plan, cost = origin_of(model).plan, count_cost(model)
    file = folder / "plan.json"
    if file.exists() and plan is not None:
        try:
            same = PruningPlan.from_json(file.read_text(encoding="utf-8")) == plan
            text = "plan.json is the plan of the model" if same else "plan.json is another plan than the model's"
        except (UserError, OSError, UnicodeDecodeError) as problem:
            same, text = False, str(problem)
        yield Check(name="plan", holds=same, text=text)
    found = {"params": cost.params, "macs": cost.macs, "file_bytes": file_bytes(model)}
    names = {"params": "parameters", "macs": "multiply-adds", "file_bytes": "bytes of the weights"}
    for key, value in found.items():
        if key in said:
            text = f"{value:,}" if value == said[key] else f"{value:,}; the report says {said[key]:,}"
            yield Check(name=names[key], holds=value == said[key], text=text)


def _accuracy(folder: Path, model: nn.Module, data: ImageData, said: Mapping[str, Any]) -> Iterator[Check]:
    """The images and the accuracy on them. The same images must be right, up to what rounding may change."""
    data = as_in_run(data, folder)
    about = read_json(folder / RUN).get("data", {})
    same = about.get("fingerprint") == data.fingerprint()
    text = f"{data.name}: {len(data.train):,} training and {len(data.validation):,} validation images"
    if not same:
        yield Check(name="images", holds=False, text=f"{text}; {_other_images(about, data)}")
        return
    yield Check(name="images", holds=True, text=text)
    found = evaluate(model, data)
    before = _noted(folder)
    others = abs(found.top1 - float(said["top1"])) / 100 * found.num_images
    if before is not None and before.num_images == found.num_images:
        others = max(others, float((before.correct != found.correct).sum()))
    holds = others <= MAX_OTHER_IMAGES * found.num_images
    text = f"{found.top1:.2f} % of {counted(found.num_images, 'image')}"
    if others:
        text += f"; the run says {float(said['top1']):.2f} %, and {counted(round(others), 'image')} differ"
    yield Check(name="top-1", holds=holds, text=text)


def _other_images(about: Mapping[str, Any], data: ImageData) -> str:
    """Say how the images of a run differ from `data`."""
    numbers = [about.get(f"{name} images", 0) for name in ("training", "validation")]
    if numbers == [len(data.train), len(data.validation)]:
        return (
            f"the run had as many images of {about.get('name')}, but other names of classes, other labels, or files "
            "with other names, sizes or pixels"
        )
    return "the run had others: {}, {:,} training and {:,} validation images".format(about.get("name"), *numbers)


def _noted(folder: Path) -> Evaluation | None:
    """The evaluation that the run has noted, with a mark for each image; None if `stages` was deleted."""
    for name in (in_stages("evaluation-final.json"), "evaluation.json"):
        file = find_result(folder, name)
        if file.is_file():
            return parsed(file, Evaluation.from_dict, read_json(file))
    return None


def _exported(folder: Path, model: nn.Module) -> Iterator[Check]:
    """Each exported file. It is compared with the model on random images, if it can be run here.

    A file of torch.export may hold code that runs when it is loaded. So only its digest and its metadata are checked. A
    file without a noted digest is not opened.
    """
    files = [(file, form) for form in FORMATS.values() for file in (folder / "model").glob(f"*{form.suffix}")]
    for file, form in sorted(files, key=lambda one: one[0]):
        name, digests = file.relative_to(folder).as_posix(), Digests(file.parent)
        try:
            states = [digests.compare(part.name).state for part in form.parts(file) if part == file or part.exists()]
            if State.UNKNOWN in states:
                yield Check(name=name, holds=None, text="it has no digest, so it is not opened")
            elif set(states) != {State.GOOD}:
                yield Check(name=name, holds=False, text="its content is not what was exported")
            else:
                yield Check(name=name, holds=True, text=_compare(file, form, model))
        except SettingError as problem:  # a package is missing
            yield Check(name=name, holds=None, text=str(problem))
        except UserError as problem:
            yield Check(name=name, holds=False, text=str(problem))


def _compare(file: Path, form: Format, model: nn.Module) -> str:
    """Compare the logits with those of the model; if the file is not run, plan and cost. Raises ExportMismatch."""
    why_not = "a file of torch.export may run code" if form.runs_code else form.cannot_run()
    about = form.read_metadata(file)
    if why_not:
        return _compare_metadata(file, about, model, why_not)
    precision, takes_half = about.get("precision", "float32"), about.get("input", "").startswith("float16")
    image_size = about.get("image_size")
    settings = ProgramSettings(
        batch=batch_of(about),
        half=precision == "float16",
        with_preprocessing=about.get("with_preprocessing", False),
        image_size=(image_size[0], image_size[1]) if image_size else None,
    )
    tolerance = math.inf if precision == "int8" else default_tolerance(settings)
    exact = copied(model).float().cpu().eval()
    prepares = settings.with_preprocessing
    exported = exportable_with_preprocessing(exact, settings) if prepares else exportable(exact, settings.batch)
    run, examples = AnyBatch(form.read(file), exported.batch), exported.checked_examples()
    largest = max(compare_outputs(exported.module, run, examples, tolerance, half=takes_half).values())
    why = " (int8 differs on purpose; `vitrim export` measured its accuracy)" if precision == "int8" else ""
    what = "logit" if exported.output == "logits" else "output"
    return f"{precision}: largest difference {largest:.1e} of the largest {what}{why}"


def _compare_metadata(file: Path, about: Mapping[str, Any], model: nn.Module, why_not: str) -> str:
    """Compare plan and cost with those of the model. Raises ExportMismatch."""
    plan, cost = origin_of(model).plan, count_cost(model)
    expected = {"params": cost.params, "macs": cost.macs, "plan": plan.to_dict() if plan else None}
    if wrong := [key for key, value in expected.items() if about.get(key) != json.loads(json.dumps(value))]:
        raise ExportMismatch(f"{file} was exported from another model: its {' and '.join(wrong)} differ.")
    return f"digest, plan and cost fit; it is not run, because {why_not}"
