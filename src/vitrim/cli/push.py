"""`vitrim push`: puts the model of a finished run on the Hugging Face Hub."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

from cyclopts import Parameter

from vitrim.cli.values import refuse_empty
from vitrim.errors import SettingError


def push(
    run: Annotated[Path, Parameter(help="folder of a finished run of train or compress, or of one of its sizes")],
    repository: Annotated[str, Parameter(help="USER/NAME on the Hugging Face Hub; it is created if it does not exist")],
    *,
    private: Annotated[bool, Parameter(help="create a private repository (default: public)")] = False,
    license: Annotated[
        str | None,
        Parameter(help="license of the model, e.g. apache-2.0 (default: that of the base weights, if timm states it)"),
    ] = None,
    base_model: Annotated[
        str | None, Parameter(help="USER/NAME of the base weights (default: as the commands of the runs say)")
    ] = None,
    exports: Annotated[
        bool,
        Parameter(
            negative="--no-exports",
            help="also upload the exported files beside the model (default: yes)",
        ),
    ] = True,
    branch: Annotated[str, Parameter(help="branch; it is created if it does not exist (default: main)")] = "main",
    output: Annotated[
        str | None,
        Parameter(name=["-o", "--output"], help="write the files to this folder, and upload nothing (default: upload)"),
    ] = None,
) -> None:
    """Upload the model of a run to the Hugging Face Hub, with a model card made from the report.

    Example: `vitrim push runs/flowers-small USER/flowers-small`

    Paths of your machine and images are left out. Without a network or a token, the files are written to RUN-hub.
    """
    from vitrim.cli.tables import print_line
    from vitrim.sharing.folder import Sharing, remove_folder, write_folder
    from vitrim.sharing.push import Upload, check_branch, check_repository, upload, upload_command, why_not_now

    refuse_empty(SimpleNamespace(license=license, base_model=base_model, branch=branch, output=output))
    check_repository(repository)
    check_branch(branch)
    if base_model:
        check_repository(base_model)
    to = Upload(repository=repository, private=private, branch=branch)
    default = run.resolve().with_name(f"{run.resolve().name}-hub")
    sharing = Sharing(repository=repository, license=license, base=base_model, exports=exports)
    folder = write_folder(run, Path(output) if output else default, sharing)
    command = upload_command(folder, to)
    if output:
        print_line(f"files written to {output}; upload them with: {command}")
        return
    try:
        if problem := why_not_now():
            raise SettingError(f"Nothing was uploaded: {problem}.")
        print_line(f"uploaded to {upload(folder, to)}")
    except SettingError as problem:
        raise SettingError(f"{problem} The files are in {folder}. Upload them later: {command}") from None
    remove_folder(folder)
