"""Uploads the folder of a repository to the Hugging Face Hub. What can go wrong there becomes one sentence."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from vitrim.asking import asking, reason
from vitrim.errors import SettingError, UserError
from vitrim.runs.progress import log
from vitrim.sharing.folder import files_in

MESSAGE = "Upload a model of vitrim"
KEPT_BY_HUB = (".gitattributes",)
BRANCH = "main"
NO_BRANCH = re.compile(r"^[-/]|^@?$|^HEAD$|[/.]$|//|\.\.|@\{|[\x00-\x20\x7f~^:?*\[\\]")  # what git refuses


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Where a folder is uploaded.

    Attributes:
        repository: such as `USER/NAME`. It is created if it does not exist.
        private: whether others may not see it. A public repository is not made private.
        branch: is created if it does not exist.
    """

    repository: str
    private: bool = False
    branch: str = BRANCH


def check_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        SettingError: the Hub has no repositories of such a name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as problem:
        raise SettingError(f"{name!r} is no name of a repository: {reason(problem)}.") from None
    if name.count("/") != 1:
        raise SettingError(f"{name!r} is no name of a repository; expected USER/NAME.")
    return name


def check_branch(name: str) -> str:
    """Return the name of a branch, which git must accept (`git help check-ref-format`).

    Raises:
        SettingError: git has no branches of such a name.
    """
    if NO_BRANCH.search(name) or any(part.startswith(".") or part.endswith(".lock") for part in name.split("/")):
        raise SettingError(f"--branch is {name!r}, which is no name of a branch; expected a name such as main or v2.")
    return name


def why_not_now() -> str:
    """Why nothing can be uploaded, in a few words; empty if it can be tried."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    if not get_token():
        return "you are not logged in to the Hugging Face Hub (`hf auth login`, or the variable HF_TOKEN)"
    return ""


def upload(folder: Path, to: Upload) -> str:
    """Upload all files of a folder in one commit. Nothing is deleted there; to push again is safe.

    Returns:
        The address of the repository.

    Raises:
        SettingError: says what the Hub has answered, or that it cannot be reached.
    """
    api = HfApi()
    with _explained(to.repository):
        url = api.create_repo(to.repository, private=to.private or None, exist_ok=True)
        if to.private and not api.repo_info(to.repository).private:
            raise SettingError(
                f"{to.repository} exists and is public, but --private was given. Make it private on its page, or "
                "choose another name."
            )
        if to.branch != BRANCH:
            api.create_branch(to.repository, branch=to.branch, exist_ok=True)
        # one commit, so that an interrupted upload changes nothing; `upload_folder` may make several
        operations = [CommitOperationAdd(name, folder / name) for name in files_in(folder)]
        api.create_commit(to.repository, operations, commit_message=MESSAGE, revision=to.branch)
        there = api.list_repo_files(to.repository, revision=to.branch)
    if others := sorted(set(there) - set(files_in(folder)) - set(KEPT_BY_HUB)):
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        log(f"{to.repository} also has files that this push did not write: {', '.join(others[:5])}{more}")
    return str(url)


def upload_command(folder: Path, to: Upload) -> str:
    """The command of huggingface_hub that uploads a folder."""
    words = ["hf", "upload", to.repository, str(folder)]
    words += ["--private"] if to.private else []
    return shlex.join([*words, *(["--revision", to.branch] if to.branch != BRANCH else [])])


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """A context in which the Hub is asked. Raises SettingError."""
    try:
        yield
    except UserError:
        raise
    except LocalTokenNotFoundError:
        raise SettingError(f"Nothing was uploaded: {why_not_now() or 'there is no token'}.") from None
    except HfHubHTTPError as problem:
        status = problem.response.status_code if problem.response is not None else 0
        raise SettingError(f"Nothing was uploaded: {_answer(status, repository, problem)}.") from problem
    except Exception:  # of the network, in one of several packages, or the Hub refuses the metadata of the card
        with asking("huggingface_hub", f"upload to {constants.ENDPOINT}"):
            raise


def _answer(status: int, repository: str, problem: HfHubHTTPError) -> str:
    user = repository.partition("/")[0]
    known = {
        401: "the Hub does not accept the token; log in again with `hf auth login`",
        403: f"the token may not write to {user}; use a token with the role write, and a name of yours",
        404: f"the Hub has no {user}, or the token may not see {repository}",
        409: f"the Hub has another commit at the moment; repeat the command ({repository})",
        413: "a file is larger than the Hub accepts",
        429: "the Hub has had too many requests; repeat the command later",
    }
    if status in known:
        return known[status]
    said = getattr(problem, "server_message", None) or reason(problem)
    return f"the Hub answered with status {status}: {' '.join(str(said).split())[:200].rstrip('.')}"
