"""Writes the folder of a repository: the model of a finished run, its card, its report and its exported files.

Images of the run and paths of this machine are left out. Everything else that the repository says is in the run.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vitrim.data.files.unreadable import without_file_names
from vitrim.errors import CheckpointMismatch, FolderInUse, SettingError, visible
from vitrim.reports import details as details_of_runs
from vitrim.reports import report as reports
from vitrim.reports.page import to_html
from vitrim.reports.writing import MARKDOWN
from vitrim.runs.damage import check_folder
from vitrim.runs.digests import MODEL, Digests, Version, digest_of, is_left_out, sha256_of
from vitrim.runs.files import CONFIG, MODELING, PAGE, PROCESSOR, RUN, WEIGHTS, partial_path, read_json
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import load
from vitrim.sharing.card import CardFacts, check_license, model_card
from vitrim.sharing.origins import Base, base_of, data_set_of
from vitrim.sharing.private_paths import command_without_paths, without_paths
from vitrim.verifying import check_finished

CARD, CLASSES = "README.md", "classes.txt"
OF_MODEL = (CONFIG, WEIGHTS, MODELING, PROCESSOR)
OF_RUN = ("plan.json", "recipe.toml")  # they hold no paths
WITH_PATHS = ("title", "architecture", "notes", "teachers", "data", "search", "verdict", "busy")  # of a report
MAX_NAMED = 4  # files in one sentence


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How a run is shared.

    Attributes:
        repository: such as `USER/NAME`.
        license: identifier of the Hub; None for that of the base model.
        base: repository of the base model; None for what the run says.
        exports: also share the exported files beside the model.
    """

    repository: str
    license: str | None = None
    base: str | None = None
    exports: bool = True


def write_folder(run: Path, folder: Path, sharing: Sharing) -> Path:
    """Write the complete folder of a repository. The run is not changed.

    Args:
        run: folder of a finished run of `train` or `compress`, or of one of its sizes.
        folder: which does not exist, is empty, or has only files that were written here: then it is replaced.
        sharing: how the run is shared.

    Returns:
        The folder.

    Raises:
        SettingError: the run is not finished, or an option has no possible value. CheckpointMismatch: a file of the
            run is damaged. FolderInUse: the folder has other files, or files that were changed.
    """
    check_finished(run)
    folder = folder.absolute()  # `.` has no name, which the partial folder needs
    _check_target(folder)
    license = check_license(sharing.license) if sharing.license else None
    report = _report(run)
    _check_undamaged(run)
    load(run / "model")  # it can be built, and its weights are finite
    base = Base(id=sharing.base) if sharing.base else base_of(run)
    working = partial_path(folder)
    try:
        working.mkdir(parents=True)
        exported = list(_copy_files(run, working, exports=sharing.exports))
        _write_reports(run, working, report)
        facts = CardFacts(
            repository=sharing.repository,
            report=report,
            config=read_json(working / CONFIG),
            files=sorted(path.name for path in working.iterdir()),
            exported=exported,
            base=base.id,
            license=license or base.license,
            data_set=data_set_of(run),
        )
        (working / CARD).write_text(model_card(facts), encoding="utf-8")
        _note_digests(working)
        _say_what_is_unknown(facts)
        _check_target(folder)  # something may have been added meanwhile
        if folder.exists():
            shutil.rmtree(folder)
        working.rename(folder)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    return folder


def _check_target(folder: Path) -> None:
    """Refuse a folder that was not written here, or in which something was added or changed since."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FolderInUse(f"{folder} is a {'link' if folder.is_symlink() else 'file'}; expected a folder after -o.")
    if (folder / RUN).exists():
        raise FolderInUse(f"{folder} is the folder of a run; choose another one with -o.")
    if other := first_other_file(folder):
        raise FolderInUse(
            f"{folder} is not empty: it has {other}, and `vitrim push` did not write it, or it was changed since. Move "
            "it away, or choose another folder with -o."
        )


def first_other_file(folder: Path) -> str:
    """The name of a file that `write_folder` did not write into a folder, or that was changed since; empty if none."""
    digests = Digests(folder)
    expected = dict[str, str]()
    for name in digests.names() if digests.is_readable() else ():
        newest = digests.versions(name)[0].sha256
        files = {"": newest} if isinstance(newest, str) else newest
        expected |= {(PurePosixPath(name) / file).as_posix(): digest for file, digest in files.items()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_dir():
            is_ours = name in expected and path.is_file() and not path.is_symlink()
            if not (is_ours and sha256_of(path) == expected[name]) and (path != digests.path or not expected):
                return name
        elif not any(file.startswith(f"{name}/") for file in expected):
            return f"{name}/"
    return ""


def remove_folder(folder: Path) -> None:
    """Remove a folder that `write_folder` has written. It is kept if something was added or changed since."""
    if other := first_other_file(folder):
        log(f"{folder} is kept: it has {other}, and `vitrim push` did not write it, or it was changed since")
    else:
        shutil.rmtree(folder)


def _check_undamaged(run: Path) -> None:
    """Compare the files that are shared with their digests. Exported files without one are left out later."""
    shared = {run / name for name in (*OF_RUN, "report.json", details_of_runs.DETAILS)}
    bad = [
        found
        for found in check_folder(run)
        if found.kind != "unlisted" and (found.path in shared or run / "model" in found.path.parents)
    ]
    if bad:
        named = ", ".join(f"{one.path} ({one.kind})" for one in bad[:MAX_NAMED])
        raise CheckpointMismatch(
            f"The run in {run} is damaged, so it is not shared: {named}. Repeat its command, which writes the files "
            "again."
        )


def _report(run: Path) -> dict[str, Any]:
    """The report of a run, without paths and without names of image files."""
    if not (run / "report.json").is_file():
        raise SettingError(f"The run in {run} has no report.json. Repeat its command, which writes it.")
    report = reports.read(run / "report.json")
    report = {key: _without_file_names(value) for key, value in report.items()}
    found = {key: without_paths(value) if key in WITH_PATHS else value for key, value in report.items()}
    for name, key in (("target", "control"), ("snapshots", "command")):
        if row := report.get(name):
            found[name] = {**row, key: command_without_paths(str(row.get(key) or ""))}
    return {**found, "command": command_without_paths(str(report.get("command") or ""))}


def _without_file_names(value: Any) -> Any:
    """The same plain data; its notes on image files say only how many there are."""
    if isinstance(value, dict):
        return {key: _without_file_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_file_names(item) for item in value]
    return without_file_names(value) if isinstance(value, str) else value


def _copy_files(run: Path, folder: Path, *, exports: bool) -> Iterator[str]:
    """Copy the files of the model and of the run. Yields the names of the exported files."""
    model = run / "model"
    for name in OF_MODEL:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    config = read_json(folder / CONFIG)
    if (private := _private_config(config)) != config:
        (folder / CONFIG).write_text(json.dumps(private, indent=2) + "\n", encoding="utf-8")
    for name in OF_RUN:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    if names := (config.get("vitrim") or {}).get("classes"):
        (folder / CLASSES).write_text("".join(f"{visible(name)}\n" for name in names), encoding="utf-8")
    for name in sorted(Digests(model).names()) if exports else ():
        if name == MODEL or not (model / name).exists():
            continue
        if _names_home(model / name):
            log(f"{name} is left out: it has the name of your home folder in it")
            continue
        if (model / name).is_dir():
            shutil.copytree(model / name, folder / name, ignore=_without_digests)
        else:
            shutil.copyfile(model / name, folder / name)
        yield name


def _without_digests(_: str, names: list[str]) -> list[str]:
    """The names of hidden files, which have no digest."""
    return [name for name in names if is_left_out(name)]


def _private_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without paths: they may be in the name of a model of transformers, and where it comes from."""
    found = dict(config)
    if "_name_or_path" in found:
        found["_name_or_path"] = without_paths(found["_name_or_path"])
    if isinstance(about := found.get("vitrim"), dict) and "provenance" in about:
        found["vitrim"] = {**about, "provenance": without_paths(about["provenance"])}
    return found


def _names_home(path: Path) -> bool:
    """Whether a file, or one in a folder, has the path of the home folder in it."""
    home = str(Path.home()).encode()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return len(home) > 1 and any(home in file.read_bytes() for file in files)


def _write_reports(run: Path, folder: Path, report: dict[str, Any]) -> None:
    """Write the reports without images: thumbnails and file names of validation images stay in the run."""
    details = details_of_runs.read(run)
    details.pop("mistakes", None)
    if isinstance(changed := details.get("changed"), dict):
        details["changed"] = {**changed, "images": []}
    (folder / "report.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    (folder / MARKDOWN).write_text(reports.to_markdown(report), encoding="utf-8")
    name = str(report["models"][-1]["name"])
    (folder / PAGE).write_text(to_html(report, {name: details}), encoding="utf-8")


def _note_digests(folder: Path) -> None:
    """Note the digests of all files, so that the copy of someone else can be checked."""
    digests = Digests(folder)
    files = {name: sha256_of(folder / name) for name in OF_MODEL if (folder / name).is_file()}
    digests.note(MODEL, Version(sha256=files))
    for path in sorted(folder.iterdir()):
        if path.name not in files and path != digests.path:
            digests.note(path.name, Version(sha256=digest_of(path)))


def _say_what_is_unknown(facts: CardFacts) -> None:
    if not facts.base:
        log("the run does not say from which published weights it comes; --base-model USER/NAME states them")
    if not facts.license:
        log("the license of the base weights is not known, so the card states none; --license ID states it")


def files_in(folder: Path) -> Sequence[str]:
    """The names of the files of a folder, as the Hub has them."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
