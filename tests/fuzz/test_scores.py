"""Files of scores: any metadata and any arrays make scores, or a CheckpointMismatch."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from builders.fuzz import damaged, tried
from vitrim.errors import CheckpointMismatch
from vitrim.importance.scores import Scores

ABOUT = {"model": "vit", "criterion": "fisher", "num_images": "20", "weights": ""}
ARRAYS: dict[str, Any] = {
    "blocks": np.ones(2),
    **{f"{kind}.{i}": np.ones(3) for kind in ("heads", "neurons") for i in (0, 1)},
}
odd_arrays = st.sampled_from(
    [np.zeros(()), np.zeros(0), np.full(2, np.nan), np.full((2, 2), np.inf), np.ones(2, dtype=np.int64), -np.ones(2)]
)
keys = st.sampled_from([*ARRAYS, "heads.-1", "heads.x", "more.0.heads.1", "more.", "", "heads.99"])
valid_texts = st.text().map(lambda text: text.replace("\0", ""))


def assert_scores_or_refused(path: Path) -> None:
    try:
        scores = Scores.load(path)
    except CheckpointMismatch as problem:
        assert "\n" not in str(problem) and len(str(problem)) < 3500
        return
    again = path.with_name("again.safetensors")
    scores.save(again)
    found = Scores.load(again)
    assert (found.model, found.criterion, found.num_images) == (scores.model, scores.criterion, scores.num_images)


@tried(60)
@given(
    about=st.dictionaries(st.one_of(st.sampled_from(list(ABOUT)), valid_texts), valid_texts, max_size=2),
    missing=st.sets(st.sampled_from([*ABOUT, *ARRAYS]), max_size=1),
    arrays=st.dictionaries(keys, odd_arrays, max_size=2),
)
def test_any_metadata_and_arrays_make_scores_or_are_refused(
    about: dict[str, str], missing: set[str], arrays: dict[str, Any], tmp_path: Path
) -> None:
    tensors = {key: value for key, value in {**ARRAYS, **arrays}.items() if key not in missing}
    metadata = {key: value for key, value in {**ABOUT, **about}.items() if key not in missing}
    save_file(tensors, tmp_path / "scores.safetensors", metadata=metadata)
    assert_scores_or_refused(tmp_path / "scores.safetensors")


@tried(60)
@given(
    content=st.one_of(
        st.binary(max_size=100),
        damaged(save(ARRAYS, ABOUT).decode("latin-1")).map(lambda text: text.encode("latin-1", "replace")),
    )
)
def test_any_bytes_make_scores_or_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "scores.safetensors").write_bytes(content)
    assert_scores_or_refused(tmp_path / "scores.safetensors")
