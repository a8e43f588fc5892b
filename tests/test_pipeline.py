"""Laws of the whole method: the budget holds, a rerun continues the run, and folders with other content are safe."""

import copy
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.models import has_hooks, same_tensors
from builders.runs import (
    RANDOM,
    RECIPES,
    FinishedRun,
    Stopped,
    digits,
    digits_model,
    files_in,
    one_class_model,
    read_lines,
    short_recipe,
    short_training,
    smallest_step,
    stop,
)
from builders.teachers import cnn
from vitrim import compress_run, depth, pipeline, planning
from vitrim.compress_run import Compressed
from vitrim.costs.counting import count_cost
from vitrim.data.augmentation import AugmentationSettings
from vitrim.errors import FolderInUse, SettingError
from vitrim.importance.criteria import ImportanceSettings
from vitrim.importance.scores import Scores
from vitrim.losses import DistillationSettings
from vitrim.models import describe
from vitrim.pipeline import compress, fit, plan_only
from vitrim.plan import PruningPlan
from vitrim.recipe import TrainRecipe, load_recipe
from vitrim.recovery.recover import RecoverySettings
from vitrim.runs.files import DIGESTS, read_json, write_text
from vitrim.saving.checkpoint import fingerprint, load
from vitrim.surgery import prune
from vitrim.training.loop import TrainingLoop

SLOW = {
    "multiple of 8",
    "multiply-adds",
    "no recovery",
    "parameters",
    "two blocks",
}  # recipes like others, which are tested in the slow run


# The result


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RECIPES]
)
def test_the_result_meets_the_budget(name: str, finished_run: Any) -> None:
    run: FinishedRun = finished_run(name)
    whole, limit = count_cost(run.dense), run.recipe.budget.limit(count_cost(run.dense))
    for model in (run.result.model, load(run.folder / "model"), prune(run.dense, run.result.plan)):
        cost = count_cost(model)
        assert cost.params == sum(value.numel() for value in model.parameters())
        assert cost.params <= limit.params and cost.macs <= limit.macs
        params, macs = smallest_step(run.dense, run.recipe.budget.neuron_step)
        near_params = limit.params - cost.params < max(0.005 * whole.params, params)
        near_macs = limit.macs - cost.macs < max(0.005 * whole.macs, macs)
        assert near_params or near_macs
    num_removed = run.recipe.depth.blocks
    if num_removed != "auto":
        assert len(run.result.model.blocks) == len(run.result.plan.blocks) == 4 - num_removed
    for block in run.result.plan.blocks:
        assert len(block.neurons) % run.recipe.budget.neuron_step == 0


def test_the_plan_in_the_folder_is_the_plan_of_the_model(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    plan = PruningPlan.from_json((run.folder / "plan.json").read_text())
    assert plan == run.result.plan
    assert describe(prune(run.dense, plan)).blocks == describe(run.result.model).blocks
    assert same_tensors(run.result.model, load(run.folder / "model"))
    assert not list(run.folder.glob("*.checkpoint.safetensors"))
    assert load_recipe(run.folder / "recipe.toml") == run.recipe


def test_if_removing_the_blocks_is_enough_the_width_is_kept(tmp_path: Path) -> None:
    dense = digits_model(depth=4)
    result = compress(dense, digits(), short_recipe(keep=0.9, blocks=2), tmp_path)
    blocks = describe(dense).blocks
    assert [(len(kept.heads), len(kept.neurons)) for kept in result.plan.blocks] == [
        (blocks[kept.block].heads.count, blocks[kept.block].neurons.count) for kept in result.plan.blocks
    ]


def test_a_grey_model_is_compressed_with_grey_images(tmp_path: Path) -> None:
    colours = digits()
    parts = {
        name: replace(getattr(colours, name), pixels=getattr(colours, name).pixels[:, :1])
        for name in ("train", "validation")
    }
    recipe = short_recipe(keep=0.7, recovery=RecoverySettings(enabled=False))
    recipe = replace(recipe, width_training=short_training(augmentation=AugmentationSettings()))
    found = compress(digits_model(in_chans=1, depth=2), replace(colours, **parts), recipe, tmp_path)
    assert describe(load(tmp_path / "model")).in_chans == describe(found.model).in_chans == 1
    assert "1 channel" in " ".join(found.report["notes"])


def test_the_dense_model_is_not_changed(finished_run: Any) -> None:
    run: FinishedRun = finished_run("auto")
    assert same_tensors(run.dense_before, run.dense)
    assert all(module.training for module in run.dense.modules())
    assert all(value.grad is None and value.requires_grad for value in run.dense.parameters())
    assert not has_hooks(run.dense)


# Interrupted and repeated runs


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Compressed]:
    """Returns the result of a run that was not interrupted, by the number of blocks; each is made once."""

    def compressed(blocks: Any) -> Compressed:
        recipe = short_recipe(blocks=blocks, width_training=RANDOM, depth_training=RANDOM)
        return compress(digits_model(depth=4), digits(), recipe, tmp_path_factory.mktemp("uninterrupted") / "run")

    return cache(compressed)


@pytest.mark.parametrize(
    "stage", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("depth-search-1", "width")), "depth"]
)
def test_a_rerun_after_a_crash_ends_like_an_uninterrupted_run(
    stage: str, uninterrupted: Callable[[Any], Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = "auto" if "search" in stage else 1
    recipe = short_recipe(blocks=blocks, width_training=RANDOM, depth_training=RANDOM)
    dense, expected = digits_model(depth=4), uninterrupted(blocks)
    train = TrainingLoop.run

    def crashing(self: TrainingLoop) -> Any:
        if self.job.stage == stage:
            raise Stopped
        return train(self)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(TrainingLoop, "run", crashing)
        compress(dense, digits(), recipe, tmp_path / "run")
    before = files_in(tmp_path / "run")
    assert "report.json" not in before and "model/config.json" not in before
    torch.manual_seed(5)  # a new process has another random state
    scored = []
    score = planning.score
    monkeypatch.setattr(planning, "score", lambda model, *a, **o: scored.append(model) or score(model, *a, **o))
    again = compress(dense, digits(), recipe, tmp_path / "run")
    assert same_tensors(expected.model, again.model)
    assert expected.plan == again.plan
    assert not any(same_tensors(model, dense) for model in scored)
    assert (tmp_path / "run" / "scores.safetensors").read_bytes() == before["scores.safetensors"]
    rows = [(row["stage"], row["epoch"]) for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(rows) == len(set(rows))
    assert [s["name"] for s in expected.report["stages"]] == [s["name"] for s in again.report["stages"]]
    assert [s["top1"] for s in expected.report["stages"]] == [s["top1"] for s in again.report["stages"]]


def test_a_finished_run_is_read_and_not_repeated(finished_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run: FinishedRun = finished_run("depth")
    before = files_in(run.folder)
    for name in ("train", "recover", "evaluate", "measure_latencies"):
        monkeypatch.setattr(compress_run, name, stop)
    for name in ("score", "recover", "allocate", "measure_latencies", "rank_blocks_for_removal"):
        monkeypatch.setattr(planning, name, stop)
    for name in ("run_job", "rank_blocks_for_removal"):
        monkeypatch.setattr(depth, name, stop)
    second = compress(run.dense, digits(), run.recipe, run.folder)
    assert same_tensors(run.result.model, second.model)
    assert (run.result.plan, run.result.report) == (second.plan, second.report)
    assert files_in(run.folder) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"recipe": short_recipe(keep=0.5)}, "recipe.budget.params was 0.7, now 0.5"),
        ({"model": digits_model(depth=4, seed=1)}, "model.weights was"),
        ({"data": digits(50)}, "data.training images was 60, now 50"),
    ],
    ids=["recipe", "model", "data"],
)
def test_another_run_in_the_same_folder_is_refused(other: dict[str, Any], message: str, finished_run: Any) -> None:
    run: FinishedRun = finished_run("width")
    before = files_in(run.folder)
    arguments = {"model": run.dense, "data": digits(), "recipe": run.recipe, **other}
    with pytest.raises(FolderInUse, match=message):
        compress(**arguments, run_dir=run.folder)
    assert files_in(run.folder) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FolderInUse, match="not empty"):
        compress(digits_model(), digits(), short_recipe(), tmp_path)
    assert files_in(tmp_path) == {"thesis.tex": b"precious"}


# Scores, plans, training


def test_scores_of_an_earlier_run_are_used(finished_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: FinishedRun = finished_run("width")
    dense, data = run.dense, digits()
    scores = Scores.load(run.folder / "scores.safetensors")
    scored = []
    score = planning.score
    monkeypatch.setattr(planning, "score", lambda model, *a, **o: scored.append(model) or score(model, *a, **o))
    again = compress(dense, data, run.recipe, tmp_path / "again", scores=scores)
    assert not any(same_tensors(model, dense) for model in scored)
    assert same_tensors(run.result.model, again.model)
    other = compress(dense, data, short_recipe(keep=0.5), tmp_path / "other", scores=scores)
    assert count_cost(other.model).params < count_cost(again.model).params
    (tmp_path / "again" / "report.json").unlink()
    for changed in (None, replace(scores, blocks=2 * scores.blocks)):
        with pytest.raises(FolderInUse, match="a run with other settings: scores was"):
            compress(dense, data, run.recipe, tmp_path / "again", scores=changed)


def test_other_arguments_or_another_preprocessing_of_a_model_are_another_run(finished_run: Any, tmp_path: Path) -> None:
    """The weights are the same, and the model computes something else."""
    run: FinishedRun = finished_run("width")
    shutil.copytree(run.folder, tmp_path / "run")
    other = digits_model(depth=4, act_layer="relu")
    other.load_state_dict(run.dense.state_dict())
    with pytest.raises(FolderInUse, match=r"model\.arguments\.act_layer was null, now \"relu\""):
        compress(other, digits(), run.recipe, tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    table = json.loads(file.read_text())
    table["model"]["images"]["crop_pct"] = 0.123
    file.write_text(json.dumps(table))
    (tmp_path / "run" / DIGESTS).unlink()  # with it, the file would be written again
    with pytest.raises(FolderInUse, match=r"model\.images\.crop_pct was 0\.123"):
        compress(run.dense, digits(), run.recipe, tmp_path / "run")
    for key in ("arguments", "changes", "images"):  # an earlier version did not note them
        del table["model"][key]
    file.write_text(json.dumps(table))
    (tmp_path / "run" / DIGESTS).unlink(missing_ok=True)
    compress(run.dense, digits(), run.recipe, tmp_path / "run")


def test_a_second_run_in_a_folder_is_refused_while_the_first_works(tmp_path: Path) -> None:
    refused = []

    def second(*arguments: Any, **options: Any) -> Any:
        try:
            compress(digits_model(), digits(), short_recipe(), tmp_path / "run")
        except FolderInUse as problem:
            refused.append(str(problem))

    def measure(*arguments: Any, **options: Any) -> Any:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("vitrim.compress_run.measure_pace", measure)
        compress(digits_model(), digits(), short_recipe(), tmp_path / "run")
    assert len(refused) == 1 and "is in use by process" in refused[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("blocks", [pytest.param(0, marks=pytest.mark.slow), 2, "auto"])
def test_plan_only_returns_a_plan_within_the_budget(blocks: Any) -> None:
    dense, recipe = digits_model(depth=4), short_recipe(keep=0.4, blocks=blocks)
    plan = plan_only(dense, digits(), recipe).plan
    cost, limit = count_cost(prune(dense, plan)), recipe.budget.limit(count_cost(dense))
    assert cost.params <= limit.params and cost.macs <= limit.macs
    assert len(plan.blocks) == 4 - (blocks if isinstance(blocks, int) else 0)


def test_fit_trains_once_and_then_reads_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = digits_model(), TrainRecipe(training=short_training(epochs=2))
    trained = fit(model, digits(), recipe, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    reports = ["report.html", "report.json", "report.md"]
    own = ["evaluation.json", "forecast.json", "metrics.jsonl", "model", "recipe.toml"]
    assert names == ["details.json", "digests.json", *own, *reports, "run.json"]
    monkeypatch.setattr(pipeline, "train", stop)
    assert same_tensors(trained, fit(model, digits(), recipe, tmp_path))
    with pytest.raises(FolderInUse, match=r"recipe\.seed was 0, now 1"):
        fit(model, digits(), replace(recipe, seed=1), tmp_path)


def test_fit_says_again_that_the_images_chose_the_epoch_and_refuses_another_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = TrainRecipe(training=short_training(epochs=2, evaluate_every=1, keep_epoch="best"))
    for _ in range(2):  # trained, and read
        fit(digits_model(), digits(), recipe, tmp_path)
        assert re.search(
            r"top-1 .* of epoch \d, which was chosen on these 50 images; model in", capsys.readouterr().err
        )
    with pytest.raises(FolderInUse, match=r"epochs_between_evaluations\.training was 1, now 2"):
        fit(digits_model(), digits(), TrainRecipe(training=replace(recipe.training, evaluate_every=2)), tmp_path)
    with pytest.raises(FolderInUse, match=r'recipe\.training\.keep_epoch was "best", now "last"'):
        fit(digits_model(), digits(), TrainRecipe(training=replace(recipe.training, keep_epoch="last")), tmp_path)


def test_distillations_show_the_validation_accuracy_and_keep_the_last_epoch_by_default(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    rows = read_lines(run.folder / "metrics.jsonl")
    assert {"width", "depth"} <= {row["stage"] for row in rows} and all("top1" in row for row in rows)
    assert not list(run.folder.glob("*.kept-epoch.json"))


def test_the_report_says_if_the_images_chose_an_epoch(tmp_path: Path) -> None:
    training = short_training(evaluate_every=1, keep_epoch="best")
    result = compress(digits_model(), digits(), short_recipe(width_training=training), tmp_path)
    (note,) = [note for note in result.report["notes"] if "is kept" in note]
    assert re.match(r"width: epoch [12] of 2 is kept, .* chosen on these 50 images", note)
    assert f"* {note}" in (tmp_path / "report.md").read_text()


def test_fit_names_the_classes_that_are_never_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = digits(num_validation=450)
    fit(one_class_model(), data, TrainRecipe(training=short_training(epochs=0)), tmp_path)
    assert "validation: 9 of 10 classes have 0 % accuracy: " in capsys.readouterr().err


def test_a_finished_training_of_an_earlier_version_is_read_whichever_epoch_it_would_keep_now(tmp_path: Path) -> None:
    recipe = TrainRecipe(training=short_training(evaluate_every=0))
    fit(digits_model(), digits(), recipe, tmp_path)
    record = read_json(tmp_path / "run.json")
    del record["recipe"]["training"]["keep_epoch"]
    for keep_epoch in ("best", "last"):
        (tmp_path / "digests.json").unlink()
        write_text(tmp_path / "run.json", json.dumps(record))
        settings = replace(recipe.training, evaluate_every="auto", keep_epoch=keep_epoch)
        fit(digits_model(), digits(), TrainRecipe(training=settings), tmp_path)


# Teachers from elsewhere


def test_other_teachers_give_the_labels_and_the_dense_model_the_hidden_states(tmp_path: Path) -> None:
    few = ImportanceSettings(num_images=20, batch_size=20, steps=1)
    dense, recipe, teachers = digits_model(), short_recipe(blocks=1, importance=few), [cnn(), digits_model(seed=1)]
    before = copy.deepcopy([dense, *teachers])
    result = compress(dense, digits(), recipe, tmp_path / "run", teacher=teachers)
    assert all(same_tensors(*pair) for pair in zip([dense, *teachers], before, strict=True))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["stage"] for row in rows] == ["width", "depth"] and all(row["hidden"] > 0 for row in rows)
    names = ["resnet10t", "vit_tiny_patch16_224"]
    record = read_json(tmp_path / "run" / "run.json")
    for found in (record, result.report, read_json(tmp_path / "run" / "model" / "config.json")["vitrim"]["provenance"]):
        assert [teacher["name"] for teacher in found["teachers"]] == names
        assert found["teachers"][1]["weights"] == fingerprint(teachers[1])
    text = (tmp_path / "run" / "report.md").read_text()
    target = result.report["target"]
    assert "* resnet10t (weights " in text and target["sentence"] in text and target["control"] in text
    page = re.sub("</?bdi>", "", (tmp_path / "run" / "report.html").read_text())
    assert target["num_teachers"] == 2 and target["control"] in page
    with pytest.raises(FolderInUse, match="teachers was"):
        compress(dense, digits(), recipe, tmp_path / "run", teacher=teachers[:1])


@pytest.mark.slow
def test_the_dense_model_as_its_own_teacher_changes_nothing(finished_run: Any, tmp_path: Path) -> None:
    run: FinishedRun = finished_run("width")
    again = compress(run.dense, digits(), run.recipe, tmp_path / "run", teacher=run.dense)
    assert again.plan == run.result.plan and same_tensors(again.model, run.result.model)
    assert "teachers" not in run.result.report and "teachers" not in read_json(run.folder / "run.json")


def test_a_teacher_that_would_not_be_used_is_refused(tmp_path: Path) -> None:
    training = short_training(distillation=DistillationSettings(soft=0.0))
    with pytest.raises(SettingError, match=r"resnet10t would not be used.* distillation\.soft is 0"):
        compress(digits_model(), digits(), short_recipe(width_training=training), tmp_path / "run", teacher=cnn())
    for settings, reason in ((training, "soft is 0"), (short_training(epochs=0), "epochs is 0")):
        with pytest.raises(SettingError, match=f"would not be used, because .*{reason}"):
            fit(digits_model(), digits(), TrainRecipe(training=settings), tmp_path / "run", teacher=cnn())
    assert not (tmp_path / "run").exists()


def test_fit_learns_from_a_teacher(tmp_path: Path) -> None:
    recipe = TrainRecipe(training=short_training(epochs=1))
    fit(digits_model(), digits(), recipe, tmp_path, teacher=cnn())
    (row,) = read_lines(tmp_path / "metrics.jsonl")
    assert row["soft"] == row["loss"]
    with pytest.raises(FolderInUse, match="teachers was"):
        fit(digits_model(), digits(), recipe, tmp_path)
