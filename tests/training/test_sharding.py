"""Laws of divided weights (FSDP2): the results and checkpoints are those of one process, and ordinary."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders.models import same_tensors
from builders.runs import digits, digits_model, read_lines, short_training
from builders.torchrun import TORCHRUN, started
from vitrim.errors import SettingError
from vitrim.saving.checkpoint import load
from vitrim.training.train import train

SCRIPT = """
import sys
import torch
from builders.runs import digits, short_training
from builders.trainings import ALL_TERMS, student_and_teacher
from vitrim.runs.processes import end, this_process
from vitrim.saving.checkpoint import save
from vitrim.training.loop import TrainingLoop
from vitrim.training.train import train

folder, stop, spoil = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
update, terms, spoiled = TrainingLoop.update, TrainingLoop.loss_terms, []

def stopping(self, *arguments):
    if self.step == stop:
        raise KeyboardInterrupt
    update(self, *arguments)

def spoiling(self, *arguments):
    found = terms(self, *arguments)
    if self.step == spoil and not spoiled:
        spoiled.append(0)
        found["soft"] = found["soft"] * torch.nan
    return found

TrainingLoop.update, TrainingLoop.loss_terms = stopping, spoiling
student, arguments = student_and_teacher()
before = {name: value.clone() for name, value in arguments["teacher"].state_dict().items()}
settings = short_training(
    epochs=3, batch_size=24, accumulate=2, warmup_epochs=1, learning_rate=3e-3, ema_decay=0.9, layer_decay=0.8,
    checkpoint_minutes=0.0, distillation=ALL_TERMS, evaluate_every=1, shard=True,
)
try:
    trained = train(student, digits(72), settings, **arguments, run_dir=folder)
except KeyboardInterrupt:
    end(0)
    sys.exit()
assert type(trained) is type(student) and all(value.requires_grad for value in trained.parameters())
assert all(torch.equal(value, before[name]) for name, value in arguments["teacher"].state_dict().items())
if this_process().is_main_process:
    save(trained, folder + "/model")
end(0)
"""


def run(folder: Path, num_processes: int, *, stop: int = -1, spoil: int = -1) -> None:
    folder.mkdir(exist_ok=True)
    file = folder.parent / "script.py"
    file.write_text(SCRIPT)
    launcher = TORCHRUN if num_processes == 2 else (sys.executable,)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with started([*launcher, str(file), str(folder), str(stop), str(spoil)], PYTHONPATH=path) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert list(one) == list(other)
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "train.checkpoint.safetensors")


@pytest.mark.slow
def test_divided_weights_train_to_those_of_one_process_and_any_number_goes_on(tmp_path: Path) -> None:
    one, two, first_two, first_one = (tmp_path / name for name in ("one", "two", "first two", "first one"))
    run(one, 1)
    run(two, 2)
    for folder, numbers in ((first_two, (2, 1)), (first_one, (1, 2))):
        run(folder, numbers[0], stop=4)
        run(folder, numbers[1])
    for folder in (two, first_two, first_one):
        assert difference(checkpoint(one), checkpoint(folder)) < 1e-5
        assert difference(load(one / "model").state_dict(), load(folder / "model").state_dict()) < 1e-5
    losses = [[row["loss"] for row in read_lines(folder / "metrics.jsonl")] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_divided_weights_go_back_as_those_of_one_process(tmp_path: Path) -> None:
    run(tmp_path / "one", 1, spoil=4)
    run(tmp_path / "two", 2, spoil=4)
    rows = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [[row["step"] for row in found if "event" in row] for found in rows] == [[4], [4]]
    assert difference(checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")) < 1e-5


def test_one_process_has_nothing_to_divide() -> None:
    results = [train(digits_model(), digits(), short_training(shard=shard)) for shard in (False, True)]
    assert same_tensors(*results)


def test_what_does_not_work_with_divided_weights_is_refused() -> None:
    for changes in ({"compile": True}, {"batch_size": "auto"}):
        with pytest.raises(SettingError, match="shard is true"):
            short_training(shard=True, **changes)
