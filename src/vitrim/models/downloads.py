"""Weights that a library downloads: a check that the network answers, and what to do without a network.

The libraries wait for each file, and try again several times. So the network is asked once, for a few seconds, before
they begin. If it does not answer, they use their caches alone. The time of a download is not limited.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from huggingface_hub import constants

from vitrim.errors import SettingError, UserError

ANSWER_SECONDS = 5.0  # to connect and to begin an answer
REMEMBERED_SECONDS = 60.0  # how long one answer is valid for further files of the same host
GATEWAY_ERRORS = (407, 502, 503, 504)  # of a proxy that does not reach the server

_asked: dict[str, tuple[float, str]] = {}  # by host: when it was asked, and why it cannot be reached


def hub_url(repository: str, file: str) -> str:
    """Address of a file in a repository of the Hugging Face Hub."""
    return f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"


@contextmanager
def from_network(weights: str, url: str, advice: str, *, cached: Path | None = None) -> Iterator[None]:
    """A context in which a library loads weights, from its cache if the network does not answer.

    Args:
        weights: what is loaded, for the message.
        url: of the file, on a server that must answer.
        advice: what to do with the file if there is no network.
        cached: where the library keeps the file, if it is no file of the Hugging Face Hub. If it is there, no network
            is needed.

    Raises:
        SettingError: the weights are not in the cache, and the network does not answer.
    """
    if cached is not None and cached.is_file():
        yield
        return
    is_on_hub = url.startswith(constants.ENDPOINT)
    problem = "HF_HUB_OFFLINE is set" if is_on_hub and constants.is_offline_mode() else why_unreachable(url)
    if problem and not is_on_hub:
        raise SettingError(_message(weights, problem, url, advice))
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(problem)
    try:
        yield
    except (OSError, UserError) as error:
        if not problem or not isinstance(error if isinstance(error, OSError) else error.__cause__, OSError):
            raise
        raise SettingError(_message(weights, problem, url, advice)) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def why_unreachable(url: str) -> str:
    """Why the server of a file does not answer, in a few words; empty if it answers, whatever it says."""
    host = urlsplit(url).netloc
    asked, problem = _asked.get(host, (0.0, ""))
    if not asked or time.monotonic() - asked > REMEMBERED_SECONDS:
        problem = _ask(url)
        _asked[host] = time.monotonic(), problem
    return problem


def _ask(url: str) -> str:
    host, found = urlsplit(url).netloc, []
    thread = Thread(target=lambda: found.append(_answer(url)), daemon=True)  # looking up a name may take longer
    thread.start()
    thread.join(ANSWER_SECONDS + 1)
    return found[0] if found else f"{host} did not answer within {ANSWER_SECONDS:g} s"


def _answer(url: str) -> str:
    host = urlsplit(url).netloc
    try:
        with urlopen(Request(url, method="HEAD"), timeout=ANSWER_SECONDS):
            return ""
    except HTTPError as error:
        return f"{host} cannot be reached (HTTP {error.code})" if error.code in GATEWAY_ERRORS else ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):  # it answers; the library may trust other certificates
            return ""
        if isinstance(reason, TimeoutError):
            return f"{host} did not answer within {ANSWER_SECONDS:g} s"
        if isinstance(reason, socket.gaierror):
            return f"the name {host} is not found, so there is no network"
        return f"{host} cannot be reached ({getattr(reason, 'strerror', None) or reason})"


def _message(weights: str, problem: str, url: str, advice: str) -> str:
    return (
        f"The pretrained weights of {weights} are not in the cache and cannot be downloaded: {problem.rstrip('.')}. "
        f"On a machine with a network, download {url} . {advice}"
    )
