"""What a step of distillation costs: beside a bare loop written by hand, beside its parts, and in waiting for data.

Every turn of the loop is a whole epoch, so that making its batches counts, however many of them are made together.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.costs.ratios import Ratio, Tally, seconds_in_turns, tally
from vitrim.data.images import ImageData, ImageSet
from vitrim.losses import DistillationLoss
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.surgery import prune
from vitrim.training import TrainingSettings, _Loop

KEEP = 0.7
VIT_TI, VIT_S, VIT_B = (f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
SMALL = {"img_size": 64, "patch_size": 8, "num_classes": 200}
LARGE = {"img_size": 224, "patch_size": 16, "num_classes": 1000}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A student of KEEP of the teacher's units, its teacher, and images for one epoch of `steps` steps."""

    name: str
    teacher: nn.Module
    student: nn.Module
    plan: PruningPlan
    data: ImageData
    settings: TrainingSettings
    steps: int

    @classmethod
    def make(
        cls, name: str, architecture: str, sizes: dict[str, int], *, batch_size: int, steps: int, compile: bool = False
    ) -> "Case":
        torch.manual_seed(0)
        teacher = create_model(architecture, **sizes).eval()  # type: ignore[arg-type]
        plan = even_plan(teacher)
        return cls(
            name=name,
            teacher=teacher,
            student=prune(teacher, plan),
            plan=plan,
            data=noise(batch_size * steps, sizes["img_size"], sizes["num_classes"]),
            settings=TrainingSettings(batch_size=batch_size, epochs=1, warmup_epochs=0, compile=compile),
            steps=steps,
        )

    @classmethod
    def small(cls, *, smoke: bool, steps: int) -> "Case":
        """ViT-S/8 at 64 x 64, or a tiny one."""
        if smoke:
            return cls.make("a tiny ViT", VIT_TI, TINY, batch_size=8, steps=steps)
        return cls.make("ViT-S/8 at 64 x 64", VIT_S, SMALL, batch_size=16, steps=steps)

    @property
    def setting(self) -> str:
        return f"{self.name}, {KEEP:.0%} of the units kept, batch {self.settings.batch_size}, {where()}"


def where() -> str:
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}"


def even_plan(model: nn.Module) -> PruningPlan:
    """KEEP of every block's units, in eights where there are that many."""
    structure = describe(model)

    def kept(count: int) -> range:
        return range(max(1, round(KEEP * count)) if count < 64 else round(KEEP * count / 8) * 8)

    blocks = tuple(
        KeptBlock.of(index, {group.key: kept(group.count) for group in block.groups})
        for index, block in enumerate(structure.blocks)
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def noise(num_images: int, side: int, num_classes: int) -> ImageData:
    """Random pixels in memory."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num_images, 3, side, side), dtype=torch.uint8, generator=generator)
    return _data(ImageSet(labels=torch.arange(num_images) % num_classes, pixels=pixels), num_classes)


def jpegs(folder: Path, num_images: int, num_classes: int, side: int = 256) -> ImageData:
    """Files of smooth noise, about as large as photographs of that size."""
    random = np.random.default_rng(0)
    files = []
    for index in range(num_images):
        coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        files.append(str(folder / f"{index}.jpg"))
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return _data(ImageSet(labels=torch.arange(num_images) % num_classes, files=tuple(files)), num_classes)


def _data(images: ImageSet, num_classes: int) -> ImageData:
    classes = tuple(str(label) for label in range(num_classes))
    return ImageData(name="noise", classes=classes, train=images, validation=images)


class OurLoop:
    """The training loop, opened: epochs and single updates can be asked for."""

    def __init__(self, case: Case, stack: ExitStack, *, data: ImageData | None = None) -> None:
        student, teacher = copy.deepcopy(case.student).requires_grad_(True), copy.deepcopy(case.teacher)
        loss = DistillationLoss.between(
            case.settings.distillation, describe(student), describe(case.teacher), case.plan
        )
        self.loop = _Loop(student, data or case.data, case.settings, loss, teacher, None, "benchmark", 0)
        self.forwards = self.loop._forwards(stack)
        self.sums: dict[str, Tensor] = {}

    def batches(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """From the first step on."""
        self.loop.step = 0
        return self.loop._batches()

    def update(self, batch: list[tuple[Tensor, Tensor]]) -> None:
        self.loop._update(batch, *self.forwards, self.sums)

    def epoch(self) -> None:
        for batch in self.batches():
            self.update(batch)

    def seconds_waiting(self) -> tuple[float, float]:
        """Seconds of an epoch spent in asking for batches, the first one left out, and seconds in all."""
        batches = self.batches()
        self.update(next(batches))
        start, waited = time.perf_counter(), 0.0
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            self.update(batch)
        if self.loop.device.type == "cuda":
            torch.cuda.synchronize()
        return waited, time.perf_counter() - start


class BareLoop:
    """The same mathematics as one writes it for one experiment: hooks, ready-made batches, no moving average."""

    def __init__(self, case: Case, batch: tuple[Tensor, Tensor]) -> None:
        self.images = batch[0]
        device = self.images.device
        self.teacher, self.settings = copy.deepcopy(case.teacher).to(device).eval(), case.settings
        self.student = copy.deepcopy(case.student).to(device).requires_grad_(True).train()
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=self.settings.learning_rate, weight_decay=0.05, fused=True
        )
        self.bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.states: dict[nn.Module, list[Tensor]] = {self.student: [], self.teacher: []}
        self.handles = [
            block.register_forward_hook(lambda *found, into=into: into.append(found[2]))
            for model, into in self.states.items()
            for block in model.blocks  # type: ignore[union-attr]
        ]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def step(self) -> None:
        self.loss().backward()
        self.update()

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self) -> Tensor:
        wanted = self.ask_teacher()
        with self.bf16:
            logits = self.student(self.images).float()
        soft = F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
        hidden = [
            (F.mse_loss(mine, theirs, reduction="none").flatten(1).mean(1) / theirs.flatten(1).var(1)).mean()
            for mine, theirs in zip(*self.states.values(), strict=True)
        ]
        for states in self.states.values():
            states.clear()
        return soft + torch.stack(hidden).mean()

    def ask_teacher(self) -> Tensor:
        with torch.no_grad(), self.bf16:
            return self.teacher(self.images).float()


@contextmanager
def both_loops(case: Case) -> Iterator[tuple[OurLoop, BareLoop]]:
    """Ours and the bare one, each with a student of its own, after a first step, in which the moments are made."""
    with ExitStack() as stack:
        ours = OurLoop(case, stack)
        batch = next(ours.batches())
        bare = BareLoop(case, batch[0])
        stack.callback(bare.close)
        ours.update(batch)
        bare.step()
        yield ours, bare


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one step without its batch: calls of torch, bytes alive at most, and bytes kept for the backward pass."""

    calls: int
    peak_bytes: int
    saved_bytes: int


def count_step(step: Callable[[], None], model: nn.Module) -> Counts:
    found: Tally = tally(step)
    return Counts(calls=found.calls, peak_bytes=found.peak_bytes, saved_bytes=saved_bytes(step, model))


def saved_bytes(run: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward passes of a run, each storage once, weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def needed_bytes(bare: BareLoop) -> int:
    """What the student's forward pass keeps by itself, and one state of the teacher for each block compared."""

    def forward() -> None:
        with bare.bf16:
            bare.student(bare.images).sum().backward()
        bare.optimizer.zero_grad()

    plain = saved_bytes(forward, bare.student)
    bare.ask_teacher()
    states = sum(state.nbytes for state in bare.states[bare.teacher])
    for found in bare.states.values():
        found.clear()
    return plain + states


def measure_distillation(*, smoke: bool = False, device: str = "cpu") -> list[Ratio]:
    """Speed, memory and waiting of the training loop; `device` must be the one on which vitrim trains."""
    case = Case.small(smoke=smoke, steps=2 if smoke else 3)
    with both_loops(case) as (ours, bare):
        assert ours.loop.device.type == torch.device(device).type
        rows = [*_counted(case, ours, bare), *_timed(case, ours, bare, rounds=2 if smoke else 5, device=device)]
    return [*rows, *_waiting(smoke=smoke)]


def _counted(case: Case, ours: OurLoop, bare: BareLoop) -> list[Ratio]:
    batch = next(ours.batches())
    mine = count_step(lambda: ours.update(batch), ours.loop.model)
    theirs = count_step(bare.step, bare.student)
    about = {"section": "distillation", "setting": case.setting}
    return [
        Ratio.counted(
            mine.peak_bytes / theirs.peak_bytes,
            measure="peak bytes of a step",
            against="the bare loop",
            bound=1.02,
            **about,
        ),
        Ratio.counted(
            mine.saved_bytes / needed_bytes(bare),
            measure="bytes kept for the backward pass",
            against="the student's forward pass and the teacher's states",
            bound=1.01,
            **about,
        ),
        Ratio.counted(mine.calls / theirs.calls, measure="calls of torch", against="the bare loop", **about),
    ]


def _timed(case: Case, ours: OurLoop, bare: BareLoop, *, rounds: int, device: str) -> list[Ratio]:
    def student() -> None:
        with bare.bf16:
            logits = bare.student(bare.images)
        bare.states[bare.student].clear()
        F.cross_entropy(logits.float(), labels).backward()

    def teacher() -> None:
        bare.ask_teacher()
        bare.states[bare.teacher].clear()

    def optimiser() -> None:
        nn.utils.clip_grad_norm_(bare.student.parameters(), 1.0)
        bare.optimizer.step()

    def repeated(run: Callable[[], object]) -> Callable[[], None]:
        def turn() -> None:
            for _ in range(case.steps):
                run()

        return turn

    labels = torch.arange(len(bare.images), device=bare.images.device) % case.settings.batch_size
    labels %= int(describe(bare.student).num_classes)
    seconds = seconds_in_turns(
        {
            "ours": ours.epoch,
            "bare": repeated(bare.step),
            "student": repeated(student),
            "teacher": repeated(teacher),
            "optimiser": repeated(optimiser),
            "batches": lambda: list(ours.batches()),
            "average": repeated(lambda: ours.loop.ema and ours.loop.ema.update(ours.loop.model, step=1)),
        },
        rounds=rounds,
        device=device,
    )
    parts = seconds["student"] + seconds["teacher"] + seconds["optimiser"] + seconds["batches"]
    about = {"section": "distillation", "setting": f"{case.setting}, {rounds} rounds of {case.steps} steps"}
    rate = {"measure": "images per second", "at_least": True, **about}
    share = {"against": "", "unit": "%", **about}
    return [
        Ratio.timed(seconds["bare"] / seconds["ours"], against="the bare loop", bound=0.95, **rate),
        Ratio.timed(parts / seconds["ours"], against="the sum of the parts alone", bound=0.90, **rate),
        Ratio.timed(100 * seconds["batches"] / seconds["ours"], measure="making batches, of a step", **share),
        Ratio.timed(100 * seconds["average"] / seconds["ours"], measure="moving average, of a step", **share),
    ]


def _waiting(*, smoke: bool) -> list[Ratio]:
    """Shares of the time that the loop is blocked in asking for a batch."""
    steps = 4 if smoke else 6
    memory = Case.small(smoke=smoke, steps=steps)
    shape = ("a tiny ViT", VIT_TI, {**TINY, "img_size": 64}) if smoke else ("ViT-S/16 at 224 x 224", VIT_S, LARGE)
    files = Case.make(*shape, batch_size=8, steps=steps)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        found = jpegs(Path(folder), 8 * steps, len(files.data.classes))
        waited = {
            "small images in memory": (memory, OurLoop(memory, stack)),
            "a folder of JPEGs of 256 x 256": (files, OurLoop(files, stack, data=found)),
        }
        return [
            Ratio.counted(
                100 * np.divide(*loop.seconds_waiting()),
                section="distillation",
                measure=f"waiting for {name}, of the time",
                against="",
                unit="%",
                bound=2.0,
                setting=f"{case.setting}, {steps} steps, the first left out; 2 % is what one step in fifty costs",
            )
            for name, (case, loop) in waited.items()
        ]
