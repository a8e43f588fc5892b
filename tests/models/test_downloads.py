"""Without a network, loading pretrained weights ends soon, names the file that would do, and still uses the cache."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants

from builders.families_timm import build_row
from builders.families_transformers import HUGGINGFACE
from builders.models import same_tensors
from vitrim.errors import SettingError
from vitrim.models import downloads
from vitrim.saving.opening import open_model

ANSWER_SECONDS = 0.3


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that accepts connections and never answers. No name is cached; there is no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", ANSWER_SECONDS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0), backlog=20) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_is_given_up(silent_server: str) -> None:
    began = time.monotonic()
    assert f"did not answer within {ANSWER_SECONDS} s" in downloads.why_unreachable(f"{silent_server}/file")
    assert time.monotonic() - began < 5


def test_a_closed_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "Connection refused" in downloads.why_unreachable(f"http://127.0.0.1:{port}/file")


@pytest.mark.parametrize(
    "status, reachable", [("404 Not Found", True), ("403 Forbidden", True), ("502 Bad Gateway", False)]
)
def test_any_answer_of_the_server_itself_is_enough(status: str, reachable: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        thread = Thread(target=answer)
        thread.start()
        problem = downloads.why_unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/file")
        thread.join()
    assert (problem == "") is reachable


@pytest.mark.parametrize(
    "name, found",
    [
        ("vit_small_patch16_224", r"/resolve/main/model\.safetensors .*--arch vit_small_patch16_224"),
        ("timm:hf-hub:someone/small-vit", r"someone/small-vit/resolve/main/config\.json .*pass this folder"),
        ("transformers:someone/small-vit", r"someone/small-vit/resolve/main/config\.json .*pass this folder"),
    ],
)
@pytest.mark.parametrize("offline", [True, False])
def test_weights_of_the_hub_without_a_network(
    name: str, found: str, offline: bool, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(SettingError, match=found) as problem:
        open_model(name, pretrained=True)
    assert ("HF_HUB_OFFLINE is set" if offline else "did not answer") in str(problem.value)
    assert constants.HF_HUB_OFFLINE is offline


def test_weights_of_torchvision_without_a_network(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ViT_B_16_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(downloads, "why_unreachable", lambda url: "there is no network")
    with pytest.raises(SettingError, match=r"--arch torchvision:vit_b_16") as problem:
        open_model("torchvision:vit_b_16", pretrained=True)
    assert ViT_B_16_Weights.DEFAULT.url in str(problem.value)


def test_the_cache_of_the_hub_is_used_without_a_network(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_row(HUGGINGFACE["transformers ViT"], dtype=torch.float32)
    repository = tmp_path / "models--someone--small-vit"
    model.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    assert same_tensors(open_model("transformers:someone/small-vit"), model)
    assert time.monotonic() - began < 10


def test_what_is_in_the_cache_needs_no_network(silent_server: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with downloads.from_network("it", f"{silent_server}/file", "", cached=tmp_path / "file"):
        pass


def test_a_wrong_argument_is_named_without_a_network(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    with pytest.raises(SettingError, match="does not take these arguments"):
        open_model("vit_tiny_patch16_224", pretrained=True, model_args={"colour": 1})
