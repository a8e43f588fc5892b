"""Laws of compiled training: one graph for all widths, the same numbers, and never eager without a word."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from builders.families_timm import build_row
from builders.models import build, has_hooks, plan_of_sizes, random_images
from builders.rows import ROWS
from builders.runs import digits, short_training
from builders.trainings import ALL_TERMS, max_difference, student_and_teacher
from vitrim.errors import SettingError
from vitrim.hooks import recorded_states
from vitrim.models import describe
from vitrim.surgery import prune
from vitrim.training import compiling
from vitrim.training.compiling import CompileSchedule, compile_errors, compiled_blocks, has_equal_blocks
from vitrim.training.train import train

CUDA = torch.device("cuda")
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it compiles


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(compiling, "_compiled_before", set())
    monkeypatch.setattr(compiling, "_not_worth_compiling", set())
    yield
    torch.compiler.reset()


SIZES = [[(2, 8), (3, 12)], [(4, 20), (2, 24)], [(3, 5), (2, 7)], [(2, 9), (4, 16)]]  # heads and neurons of each block


def student(number: int = 0) -> nn.Module:
    dense = build(depth=2)
    plan = plan_of_sizes(describe(dense).model, SIZES[number])
    return prune(dense, plan).requires_grad_(True).train()


def gradients(model: nn.Module) -> list[Tensor]:
    """Those of a training step."""
    model.zero_grad()
    model(random_images()).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_students_of_all_widths_share_the_compiled_block() -> None:
    compiled = []
    for number in range(len(SIZES)):
        model = student(number)
        expected = gradients(model)
        with compiled_blocks({model: describe(model)}, backend="aot_eager"):
            found = gradients(model)
        assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(expected, found, strict=True))
        compiled.append(num_graphs())
    assert compiled[0] <= 3  # constant widths, then dynamic ones
    assert compiled[1:] == [compiled[1]] * 3 and compiled[1] <= 4


def test_hooks_see_the_hidden_states_of_compiled_blocks_and_blocks_are_as_before_afterwards() -> None:
    model = student()
    structure = describe(model)
    names = [block.name for block in structure.blocks]
    with recorded_states(model, names) as states:
        model(random_images())
        expected = dict(states)
        with compiled_blocks({model: structure}, backend="aot_eager"):
            model(random_images())
            assert num_graphs() > 0
            found = dict(states)
    assert all(torch.allclose(expected[name], found[name], atol=1e-12) for name in names)
    assert not has_hooks(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_hooks_inside_a_compiled_block_are_called_also_if_other_blocks_have_none() -> None:
    model = student()
    structure = describe(model)
    names = [structure.blocks[-1].qkv]
    with compiled_blocks({model: structure}, backend="aot_eager"):
        model(random_images())
        with recorded_states(model, names) as states:
            model(random_images())
    assert list(states) == names


def test_too_many_graphs_are_an_error_and_not_an_eager_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MAX_GRAPHS", 1)
    model = student()
    with compiled_blocks({model: describe(model)}, backend="aot_eager"), pytest.raises(compile_errors()):
        gradients(model)


def test_blocks_of_models_with_stages_differ_in_more_than_widths() -> None:
    for dense in (build(), student(), build_row(ROWS["torchvision ViT"])):
        assert has_equal_blocks(dense, describe(dense))
    swin = build_row(ROWS["Swin"])
    assert not has_equal_blocks(swin, describe(swin))
    assert not schedule("auto", swin).may_start


def test_a_model_that_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small, arguments = student_and_teacher()
    forward = type(small.blocks[0]).forward

    def breaking(self: nn.Module, x: Tensor, **unused: object) -> Tensor:
        torch._dynamo.graph_break()
        return forward(self, x)

    monkeypatch.setattr(type(small.blocks[0]), "forward", breaking)
    with pytest.raises(SettingError, match=r"compile is true, but torch.compile cannot .* Set compile to auto"):
        train(small, digits(), short_training(epochs=1, compile=True), **arguments)


# When a training is compiled: the times of updates are given here, in seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def schedule(setting: compiling.Compile, model: nn.Module | None = None) -> CompileSchedule:
    model = build() if model is None else model
    return CompileSchedule({model: describe(model)}, setting, CUDA, "train")


def run(
    planned: CompileSchedule, num_steps: int, eager: float, compiled: float, monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """Whether each update ran compiled."""
    clock, ran = Clock(), []
    monkeypatch.setattr(compiling.time, "monotonic", clock)

    def update() -> None:
        ran.append(planned.is_compiled)
        clock.now += compiled if planned.is_compiled else eager

    for step in range(1, num_steps + 1):
        planned.run(update, lambda: None)
        if step % 20 == 0:
            planned.observe(step, num_steps)
            clock.now += 1000.0  # an evaluation
            planned.restart_clock(step)
    planned.close()
    return ran


def test_a_training_is_compiled_if_enough_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(run(schedule("auto"), 100, 1.0, 0.5, monkeypatch))  # 60 s are left
    long = run(schedule("auto"), 300, 1.0, 0.5, monkeypatch)
    assert long == [False] * 40 + [True] * 260
    assert any(run(schedule("auto"), 100, 1.0, 0.5, monkeypatch))  # the graph is there already
    assert not any(run(schedule(False), 300, 1.0, 0.5, monkeypatch))
    assert all(run(schedule(True), 3, 1.0, 0.5, monkeypatch))


def test_compiled_training_that_is_slower_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = run(schedule("auto"), 300, 1.0, 1.2, monkeypatch)
    assert slow == [False] * 40 + [True] * 40 + [False] * 220
    assert "1.20 times as long" in capsys.readouterr().err
    assert not any(run(schedule("auto"), 300, 1.0, 0.5, monkeypatch))  # it is not tried again


def test_auto_goes_on_eager_if_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned, discarded, ran = schedule("auto"), [], []
    monkeypatch.setattr(compiling, "MIN_SECONDS_TO_COMPILE", 0.0)
    for step in (10, 20):
        planned.observe(step, 1000)
    assert planned.is_compiled

    def update() -> None:
        if planned.is_compiled:
            raise TorchDynamoException("no compiler")
        ran.append(1)

    planned.run(update, lambda: discarded.append(1))
    planned.observe(30, 1000)
    assert (len(ran), len(discarded), planned.is_compiled) == (1, 1, False)
    assert "torch.compile cannot do it: no compiler" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_and_eager_training_compute_the_same() -> None:
    small, arguments = student_and_teacher()
    settings = {"epochs": 1, "distillation": ALL_TERMS, "ema_decay": 0.5, "drop_path": 0.3, "evaluate_every": 1}
    eager = train(small, digits(), short_training(**settings), **arguments)
    compiled = train(small, digits(), short_training(**settings, compile=True), **arguments)
    assert max_difference(eager, compiled) < 1e-4
    assert list(eager.state_dict()) == list(compiled.state_dict())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_and_eager_training_compute_the_same_on_a_gpu() -> None:
    small, arguments = student_and_teacher()
    settings = {"epochs": 1, "distillation": ALL_TERMS, "ema_decay": 0.0, "drop_path": 0.3, "precision": "fp32"}
    eager = train(small, digits(), short_training(**settings), **arguments)
    compiled = train(small, digits(), short_training(**settings, compile=True), **arguments)
    assert max_difference(eager, compiled) < 1e-3
    assert num_graphs() > 0


def test_a_system_without_a_compiler_trains_eager(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*arguments: object, **options: object) -> None:
        raise RuntimeError("torch.compile is not supported here.")

    monkeypatch.setattr(torch, "compile", unsupported)
    assert not any(run(schedule("auto"), 300, 1.0, 0.5, monkeypatch))
    assert "cannot do it: torch.compile is not supported here\n" in capsys.readouterr().err
    with pytest.raises(SettingError, match=r"not supported here\. Set compile to auto or false"):
        run(schedule(True), 3, 1.0, 0.5, monkeypatch)
