"""Laws of the file of scores: it is read as it was written, and other files are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.models import build, random_batches
from builders.scores import assert_same_scores
from vitrim.errors import CheckpointMismatch
from vitrim.importance.criteria import score
from vitrim.importance.scores import Scores
from vitrim.models import describe


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


def changed(scores: Scores, **changes: object) -> Scores:
    return replace(scores, **changes)  # type: ignore[arg-type]


def test_scores_that_cannot_be_ranked_or_are_of_another_model_are_refused() -> None:
    model = build(depth=2)
    structure, scores = describe(model), score(model, random_batches(), "taylor")
    scores.check(structure)
    heads, neurons, blocks = scores.heads, scores.neurons, scores.blocks
    broken = {
        "heads of block 1 is infinite or not a number": {"heads": (heads[0], heads[1] * np.nan)},
        "neurons of block 0 is infinite": {"neurons": (neurons[0] / 0.0, neurons[1])},
        "neurons of block 0 is negative": {"neurons": (neurons[0] - 1e9, neurons[1])},
        "blocks is infinite": {"blocks": np.array([np.inf, 1.0])},
        "have 3 blocks, but the model has 2": {"blocks": np.ones(3), "heads": (*heads, heads[0])},
        "have 1 heads of block 1": {"heads": (heads[0], heads[1][:1])},
        "have -1 neurons of block 1": {"neurons": (neurons[0],)},
        "have -1 neurons of block 0": {"neurons": (neurons[0][None], neurons[1])},
        "are of other, but the model is": {"model": "other"},
    }
    for message, changes in broken.items():
        with np.errstate(all="ignore"), pytest.raises(CheckpointMismatch, match=message):
            changed(scores, **changes).check(structure)
    assert blocks is scores.blocks


def test_exact_scores_may_be_negative() -> None:
    """Without a unit, the loss may be lower."""
    model = build(depth=1)
    scores = score(model, [], "random")
    changed(scores, criterion="exact", neurons=(-scores.neurons[0],)).check(describe(model))


def test_the_digest_depends_on_everything_but_the_file(tmp_path: Path) -> None:
    scores = score(build(depth=2), random_batches(), "taylor")
    scores.save(tmp_path / "scores.safetensors")
    assert Scores.load(tmp_path / "scores.safetensors").digest() == scores.digest()
    others = [{"criterion": "fisher"}, {"num_images": 1}, {"weights": "x"}, {"blocks": scores.blocks + 1}]
    digests = {changed(scores, **changes).digest() for changes in others}
    assert len(digests | {scores.digest()}) == 5


def test_a_file_with_other_than_floats_is_refused(tmp_path: Path) -> None:
    scores = score(build(depth=1), [], "random")
    file = tmp_path / "scores.safetensors"
    about = {"model": scores.model, "criterion": "random", "num_images": "many"}
    arrays = {"heads.0": scores.heads[0], "neurons.0": scores.neurons[0], "blocks": scores.blocks}
    for changes, metadata in (({}, about), ({"blocks": np.ones(1, dtype=np.int64)}, {**about, "num_images": "0"})):
        save_file({**arrays, **changes}, file, metadata=metadata)
        with pytest.raises(CheckpointMismatch, match="does not hold scores"):
            Scores.load(file)
    with pytest.raises(CheckpointMismatch, match="does not hold scores"):
        Scores.load(tmp_path)
