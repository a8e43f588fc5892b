"""Uploads, with the real client and a server on this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

import vitrim
from builders.command_line import call, error_line
from builders.hub import Hub, hub_on_this_machine
from builders.runs import finish_run
from builders.standalone import modeling_of
from vitrim.runs.damage import check_folder
from vitrim.runs.digests import write_text_noted
from vitrim.sharing.push import check_branch, check_repository


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_run("width", tmp_path_factory.mktemp("push") / "run").folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_on_this_machine() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


def downloaded(hub: Hub, folder: Path) -> Path:
    folder.mkdir()
    for name, content in hub.files["main"].items():
        (folder / name).write_bytes(content)
    return folder


def test_what_is_uploaded_can_be_loaded_everywhere(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(capsys, "push", run, "me/small", "--private")
    assert (status, out) == (0, f"uploaded to {hub.endpoint}/me/small\n"), err
    assert hub.is_private and not (run.parent / "run-hub").exists()
    folder = downloaded(hub, tmp_path / "copy")
    assert check_folder(folder) == []
    images = torch.zeros(2, 3, 8, 8)
    expected = vitrim.load(run)(images)
    for model in (
        vitrim.load(folder),
        timm.create_model(f"local-dir:{folder}").eval(),
        modeling_of(folder).load_model(),
    ):
        torch.testing.assert_close(model(images), expected)


def test_to_push_again_replaces_the_files_and_names_others(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["main"] = {"old.onnx": b"", "README.md": b"old", ".gitattributes": b""}
    for _ in range(2):
        status, _, err = call(capsys, "push", run, "me/small")
        assert status == 0 and "old.onnx" in err and ".gitattributes" not in err
    assert hub.files["main"]["README.md"].startswith(b"---\n") and "old.onnx" in hub.files["main"]


def test_exported_files_are_left_out_on_request(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text_noted(run / "model" / "model.txt", "exported")
    for options, is_there in (((), True), (("--no-exports",), False)):
        status, _, err = call(capsys, "push", run, "me/small", "-o", tmp_path / "hub", *options)
        assert status == 0 and (tmp_path / "hub" / "model.txt").exists() == is_there, err


def test_files_of_the_user_in_the_folder_stay(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.parent / "run-hub"

    def upload(*_: object) -> str:
        (folder / "notes.txt").write_text("precious")
        return "there"

    monkeypatch.setattr("vitrim.sharing.push.upload", upload)
    assert call(capsys, "push", run, "me/small")[0] == 0 and (folder / "notes.txt").is_file()
    assert "it has notes.txt" in error_line(call(capsys, "push", run, "me/small")[2])
    shutil.rmtree(folder)


def test_a_branch_is_created(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "push", run, "me/small", "--branch", "v2")[0] == 0
    assert "config.json" in hub.files["v2"] and not hub.files["main"]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/repos/create", 401, "does not accept the token"),
        ("/api/repos/create", 403, "may not write to me"),
        ("/api/models/me/small/commit", 403, "may not write to me"),
        ("/api/models/me/small/preupload", 404, "has no me"),
        ("/api/models/me/small/commit", 400, "status 400"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_and_the_files_stay(
    path: str, status: int, message: str, run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refusals[path] = status
    found, out, err = call(capsys, "push", run, "me/small")
    assert (found, out) == (2, "")
    folder = run.parent / "run-hub"
    assert message in error_line(err) and f"hf upload me/small {folder}" in error_line(err)
    assert (folder / "README.md").is_file()
    shutil.rmtree(folder)


def test_without_a_network_or_a_token_the_files_are_written(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "huggingface_hub could not upload to http://127.0.0.1:9" in error_line(
        call(capsys, "push", run, "me/small")[2]
    )
    monkeypatch.setattr("vitrim.sharing.push.get_token", lambda: None)
    assert "not logged in" in error_line(call(capsys, "push", run, "me/small")[2])
    assert (run.parent / "run-hub" / "model.safetensors").is_file()


def test_a_public_repository_is_not_used_for_a_private_model(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.is_private = False
    status, _, err = call(capsys, "push", run, "me/small", "--private")
    assert status == 2 and "exists and is public" in error_line(err)
    assert not hub.files["main"]


@pytest.mark.parametrize("name", ["small", "a/b/c", "me/", "me/a b", "me/--x", ""])
def test_wrong_names_are_refused(name: str) -> None:
    with pytest.raises(vitrim.UserError, match="no name of a repository"):
        check_repository(name)


@pytest.mark.parametrize("name", ["main", "v2", "feature/a.b", "HEADS", "a@b"])
def test_names_of_branches_are_those_of_git(name: str) -> None:
    assert check_branch(name) == name


@pytest.mark.parametrize(
    "name", ["../x", "a..b", "/a", "a/", "-a", ".a", "a/.b", "a.lock/b", "a b", "@", "a@{b", "a:b", ""]
)
def test_wrong_branches_are_refused(name: str) -> None:
    with pytest.raises(vitrim.UserError, match="no name of a branch"):
        check_branch(name)


@pytest.mark.parametrize("option", ["--branch", "--license", "--base-model", "-o"])
def test_empty_texts_are_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "push", tmp_path, "me/small", option, "")
    assert status == 2 and "empty" in error_line(err)
