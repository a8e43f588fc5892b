"""Run folders: any `run.json` makes a run that goes on, or a UserError."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import damaged, json_values, mutated, tried
from vitrim.errors import UserError
from vitrim.recipe import Recipe, to_table
from vitrim.runs.files import RUN
from vitrim.runs.folder import RunFolder

IDENTITY = {
    "command": "compress",
    "model": {"architecture": "vit", "weights": "0123"},
    "data": {"name": "flowers", "training images": 100, "fingerprint": "4567"},
    "recipe": to_table(Recipe()),
}


def assert_opened_or_refused(path: Path, text: str) -> None:
    path.mkdir(exist_ok=True)
    (path / "scores.safetensors").touch()  # a run with a result; a fresh one may be replaced
    (path / RUN).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        RunFolder(path, IDENTITY, before={"recipe": {"seed": 0}}, ignored=["recipe.latency.rounds"])
    except UserError as problem:
        assert "\n" not in str(problem) and len(str(problem)) < 3500


@tried(60)
@given(document=st.one_of(mutated(IDENTITY), json_values))
def test_any_json_is_a_run_or_is_refused(document: object, tmp_path: Path) -> None:
    assert_opened_or_refused(tmp_path / "run", json.dumps(document))


@tried(60)
@given(text=st.one_of(damaged(json.dumps(IDENTITY)), st.text()))
def test_any_text_is_a_run_or_is_refused(text: str, tmp_path: Path) -> None:
    assert_opened_or_refused(tmp_path / "run", text)
