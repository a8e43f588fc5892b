"""Laws of the file of scores: it is read as it was written, and other files are refused."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.models import build, random_batches
from builders.scores import assert_same_scores
from vitrim.errors import CheckpointMismatch
from vitrim.importance.criteria import score
from vitrim.importance.scores import Scores


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    scores = score(build(depth=2), random_batches(), "taylor")
    scores.save(tmp_path / "scores.safetensors")
    back = Scores.load(tmp_path / "scores.safetensors")
    assert_same_scores(back, scores)
    assert (back.model, back.criterion, back.num_images) == (scores.model, "taylor", 12)
    assert [len(heads) for heads in back.heads] == [len(heads) for heads in scores.heads]


def test_the_order_of_more_than_ten_blocks_is_kept(tmp_path: Path) -> None:
    scores = score(build(depth=12), [], "random")
    scores.save(tmp_path / "scores.safetensors")
    assert_same_scores(Scores.load(tmp_path / "scores.safetensors"), scores)


def test_files_without_scores_are_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    for name in ("weights.safetensors", "broken.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointMismatch, match=name):
            Scores.load(tmp_path / name)
