"""Laws of trainings that go wrong: they go back, go on with smaller micro-batches, or stop and say why."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from builders.models import same_tensors
from builders.runs import digits, digits_model, read_lines, short_recipe, short_training
from builders.torchrun import TORCHRUN, started
from builders.trainings import EVERYTHING, STEPS_PER_EPOCH, max_difference, save_only_at, stop_at, student_and_teacher
from vitrim.errors import NonFiniteLoss, NotEnoughMemory
from vitrim.pipeline import compress, fit
from vitrim.recipe import TrainRecipe
from vitrim.training.loop import TrainingLoop
from vitrim.training.train import train

Run = Callable[..., nn.Module]


def spoil_loss(patch: pytest.MonkeyPatch, step: int, min_rate: float = 0.0, value: float = float("nan")) -> None:
    """Let the loss of update `step` be NaN, at learning rates above `min_rate`."""
    terms = TrainingLoop.loss_terms

    def spoiled(self: TrainingLoop, *arguments: Any) -> dict[str, torch.Tensor]:
        found = terms(self, *arguments)
        if self.step == step and max(group["lr"] for group in self.optimizer.param_groups) > min_rate:
            name = list(found)[-1]
            found[name] = found[name] * value
        return found

    patch.setattr(TrainingLoop, "loss_terms", spoiled)


def spoil_once(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the loss of update `step` be NaN at the first time."""
    terms, spoiled_steps = TrainingLoop.loss_terms, []

    def spoiled(self: TrainingLoop, *arguments: Any) -> dict[str, torch.Tensor]:
        found = terms(self, *arguments)
        if self.step == step and not spoiled_steps:
            spoiled_steps.append(step)
            return {name: value * torch.nan for name, value in found.items()}
        return found

    patch.setattr(TrainingLoop, "loss_terms", spoiled)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Trains a student with everything that uses random numbers, in a run folder, with changes of its settings."""
    student, arguments = student_and_teacher()

    def training(folder: str | None = "run", **changes: Any) -> nn.Module:
        run_dir = {"run_dir": tmp_path / folder} if folder else {}
        return train(student, digits(), replace(EVERYTHING, **changes), **arguments, **run_dir)

    yield training


def rates(folder: Path) -> list[float]:
    return [row["learning_rate"] for row in read_lines(folder / "metrics.jsonl") if "event" not in row]


def test_a_loss_that_is_not_a_number_once_leads_back_and_to_half_the_rate(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run("plain")
    spoil_once(monkeypatch, 4)
    trained = run()
    assert not same_tensors(plain, trained)
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    (event,) = [row for row in rows if "event" in row]
    assert (event["event"], event["epoch"], event["step"]) == ("non-finite loss", 2, 4)
    assert "step 4 (epoch 2)" in event["note"] and "half the learning rate" in event["note"]
    assert "the loss term" in event["note"] and event["note"] in capsys.readouterr().err
    before, after = rates(tmp_path / "plain"), rates(tmp_path / "run")
    assert after == [before[0], *(pytest.approx(rate / 2) for rate in before[1:])]


def test_a_stage_without_a_checkpoint_goes_back_to_its_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had begun with half the rate."""
    half = run(None, learning_rate=EVERYTHING.learning_rate / 2, min_learning_rate=EVERYTHING.min_learning_rate / 2)
    spoil_once(monkeypatch, 2)
    assert max_difference(half, run(None, checkpoint_minutes=60.0)) < 1e-6


@pytest.mark.slow
def test_without_a_run_folder_a_training_goes_back_as_with_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        spoil_once(patch, 7)
        with_folder = run("with")
    spoil_once(monkeypatch, 7)
    assert same_tensors(with_folder, run(None))


def test_everything_is_put_back_also_the_best_epoch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going back from a step, and a run that is stopped there and goes on with half the rate, are the same."""
    best = {"keep_epoch": "best", "evaluate_every": 1}
    with monkeypatch.context() as patch:
        save_only_at(patch, 2 * STEPS_PER_EPOCH)
        spoil_once(patch, 8)
        trained = run(**best)
    with monkeypatch.context() as patch:
        save_only_at(patch, 2 * STEPS_PER_EPOCH)
        spoil_once(patch, 8)
        stop_after_event(patch)
        with pytest.raises(KeyboardInterrupt):
            run("killed", **best)
    assert same_tensors(trained, run("killed", **best))
    one, other = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "killed"))
    assert [without_speed(row) for row in one] == [without_speed(row) for row in other]


def stop_after_event(patch: pytest.MonkeyPatch) -> None:
    """Let the training be interrupted before its first update after it went back."""
    update = TrainingLoop.update

    def stopping(self: TrainingLoop, *arguments: Any) -> None:
        if self.safety.events.all:
            raise KeyboardInterrupt
        update(self, *arguments)

    patch.setattr(TrainingLoop, "update", stopping)


def without_speed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("images_per_second", "seconds")}


@pytest.mark.parametrize("killed_at", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 8))])
def test_a_run_that_went_back_and_is_killed_ends_with_the_same_weights(
    killed_at: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = EVERYTHING.learning_rate
    spoil_loss(monkeypatch, 4, min_rate=0.4 * rate)  # the cosine at step 4 leaves about 0.6 of the peak
    trained = run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, killed_at)
        run("killed")
    assert same_tensors(trained, run("killed"))


def test_the_third_time_stops_and_says_what_happened(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_loss(monkeypatch, 4, value=float("inf"))
    told = (
        r"step 4 \(epoch 2\) of train, at a learning rate of .*the loss term relations is .*halved 2 times.*checkpoint"
    )
    with pytest.raises(NonFiniteLoss, match=told):
        run()
    with safe_open(tmp_path / "run" / "train.checkpoint.safetensors", framework="pt") as file:
        assert int(file.metadata()["step"]) == 4
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_a_gradient_that_is_not_finite_is_found_where_the_loss_is_finite(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = TrainingLoop.update

    def spoiled(self: TrainingLoop, *arguments: Any) -> None:
        weight = next(self.model.parameters())
        handle = weight.register_hook(lambda gradient: gradient * torch.inf) if self.step == 4 else None
        update(self, *arguments)
        if handle:
            handle.remove()

    monkeypatch.setattr(TrainingLoop, "update", spoiled)
    with pytest.raises(NonFiniteLoss, match="the norm of its gradient is"):
        run()


# Memory


def limit_memory(patch: pytest.MonkeyPatch, max_images: int, *, from_step: int = 0, error: Any = None) -> list[int]:
    """Let forward passes of a training on more images run out of memory. Returns the sizes of the passes."""
    terms, sizes = TrainingLoop.loss_terms, []

    def limited(self: TrainingLoop, images: torch.Tensor, *arguments: Any) -> dict[str, torch.Tensor]:
        found = terms(self, images, *arguments)
        if len(images) > max_images and self.step >= from_step:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        sizes.append(len(images))
        return found

    patch.setattr(TrainingLoop, "loss_terms", limited)
    return sizes


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 4 bytes.")


@pytest.mark.parametrize(
    ("batch_size", "error"),
    [(24, None), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((24, CPU_ERROR), ("auto", MemoryError())))],
)
def test_too_little_memory_halves_the_micro_batches_and_changes_nothing_else(
    batch_size: Any, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = digits_model(), short_training(epochs=2, batch_size=batch_size, clip_gradient=1.0)
    plain = train(model, digits(48), settings)
    sizes = limit_memory(monkeypatch, 6, from_step=1, error=error)
    trained = train(model, digits(48), settings, run_dir=tmp_path)
    assert sizes[-1] == 6 and max_difference(plain, trained) < 2e-5 < max_difference(plain, model)
    events = [row for row in read_lines(tmp_path / "metrics.jsonl") if "event" in row]
    assert all(row["event"] == "out of memory" and row["step"] == 1 for row in events) and len(events) >= 2
    assert "micro-batches of 6 images" in events[-1]["note"]


@pytest.mark.slow
def test_smaller_micro_batches_are_kept_after_a_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        limit_memory(patch, 4, from_step=4)  # of 10
        trained = run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        limit_memory(patch, 4, from_step=4)
        stop_at(patch, 6)
        run("killed")
    sizes = limit_memory(monkeypatch, 4)
    assert same_tensors(trained, run("killed"))
    assert set(sizes) == {4}  # 20 images are divided into 2, then into 5 parts


def test_a_pair_of_images_that_does_not_fit_is_said_in_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, 1)
    with pytest.raises(
        NotEnoughMemory, match=r"Out of memory on cpu in a training with 2 images in one pass.*smaller images"
    ) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_a_lack_of_memory_while_weights_change_goes_back_to_a_good_state(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, failed = run("plain"), []
    step = torch.optim.AdamW.step

    def failing(self: torch.optim.AdamW, *arguments: Any) -> Any:
        found = step(self, *arguments)
        failed.append(0)
        if len(failed) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    assert max_difference(plain, run(drop_path=0.3)) < 0.1 and len(failed) == 1 + 3 * STEPS_PER_EPOCH


# Reports, and several processes


@pytest.mark.slow
def test_the_report_and_the_log_say_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in the depth search, and where a distillation ends below its start."""
    dense = train(digits_model(depth=4), digits(), short_training(epochs=30, learning_rate=1e-2))
    spoil_once(monkeypatch, 0)
    destroying = short_training(learning_rate=1.0, clip_gradient=0.0)
    recipe = short_recipe(keep=0.8, blocks="auto", width_training=destroying, depth_training=destroying)
    report = compress(dense, digits(), recipe, tmp_path / "run").report
    notes, err = report["notes"], capsys.readouterr().err
    assert any("depth-search-0: The loss or its gradient was not finite at step 0" in note for note in notes)
    (worse,) = [note for note in notes if "below the" in note]
    assert "of the model that it started from" in worse and "chance does not explain this" in worse
    assert f"warning: {worse}" in err
    assert worse in (tmp_path / "run" / "report.md").read_text()


def test_train_says_what_went_wrong_and_whether_the_model_became_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = train(digits_model(), digits(), short_training(epochs=30, learning_rate=1e-2))
    spoil_once(monkeypatch, 1)
    recipe = TrainRecipe(training=short_training(learning_rate=1.0, clip_gradient=0.0))
    fit(dense, digits(), recipe, tmp_path)
    first = capsys.readouterr().err
    assert "warning: train: after training, top-1 is" in first and "with half the learning rate" in first
    fit(dense, digits(), recipe, tmp_path)
    assert first.splitlines()[-1][20:] in capsys.readouterr().err  # without the time


SEVERAL = """
import sys, torch
from builders.runs import digits, digits_model, short_training
from vitrim.runs.processes import end, this_process
from vitrim.saving.checkpoint import save
from vitrim.training.loop import TrainingLoop
from vitrim.training.train import train

terms, rank, done = TrainingLoop.loss_terms, this_process().process_index, []

def failing(self, images, *arguments):
    found = terms(self, images, *arguments)
    if len(images) > 2 and rank == 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    if self.step == 4 and rank == 1 and not done:
        done.append(0)
        return {name: value * torch.nan for name, value in found.items()}
    return found

TrainingLoop.loss_terms = failing
settings = short_training(epochs=3, checkpoint_minutes=0.0)
for run_dir in (sys.argv[1] + "/run", None):
    done.clear()
    model = train(digits_model(), digits(), settings, run_dir=run_dir)
    total = sum(float(value.double().abs().sum()) for value in model.state_dict().values())
    print("total", rank, total, flush=True)
end(0)
"""


@pytest.mark.slow
def test_several_processes_go_back_and_divide_together(tmp_path: Path) -> None:
    """Although only one of them has a bad loss, or too little memory."""
    file = tmp_path / "script.py"
    file.write_text(SEVERAL)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with started([*TORCHRUN, str(file), str(tmp_path)], PYTHONPATH=path) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    totals = [line.split()[2] for line in out.splitlines() if line.startswith("total")]
    assert len(totals) == 4 and len(set(totals)) == 2, (totals, err)  # with a run folder, and without
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "event" in row] == [4]
    assert "micro-batches of 2 images" in err
