"""Commands that a careless or hostile person gives. Each must be refused in one sentence, and nothing may be run."""

import json
import os
import pickle
import random
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.torture.runner import Ended, run
from tools.torture.scene import MODEL, Scene
from tools.torture.verdict import EXECUTED, LOST, RIGHT, Case, Record, refusal

MARKER = "vitrim-torture-executed"  # a file that code from a file would write
SECONDS = 60.0
ABSURD = {
    "whole": (
        *("1.5", "1e3", "0x10", "", " ", "nan", "inf", "-inf", "-1", "-0.5", "ten", "1,000", "1_0_0", "²"),
        *(
            "9" * 5000,
            str(10**30),
            "-" + "9" * 30,
            "True",
            "None",
            "[]",
            "1\n2",
            "\x1b[31m5",
            "\u0663\u066b\u0665",
            "1" * 100,
        ),
    ),
    "fraction": (
        *("0", "-0.1", "1.1", "70", "70%", "nan", "inf", "-inf", "", "1e-400", "1e400", "0.5.5", "half", "0,5"),
        *("9" * 5000, "1e-320", "[0.5]", "true", "0.5 0.6", "\x01"),
    ),
}
OPTIONS = {  # with kinds of values that no command accepts
    "compress": {
        "--keep": "fraction",
        "--keep-params": "fraction",
        "--keep-macs": "fraction",
        "--epochs": "whole",
        "--batch-size": "whole",
        "--seed": "whole",
        "--num-workers": "whole",
        "--multiple-of": "whole",
    },
    "train": {"--epochs": "whole", "--batch-size": "whole", "--num-classes": "whole", "--img-size": "whole"},
    "evaluate": {"--eval-batch": "whole", "--num-workers": "whole"},
}
SETTINGS = (
    *("training.learning_rate=nan", "training.epochs=1.5", "training.epochs=" + "9" * 5000, "training.nothing=1"),
    *("training.batch_size=[[[]]]", "training.batch_size=" + "[" * 100_000, "=", "a=", "training=1", "training.=1"),
    *("training.epochs", "training.learning_rate=1e400", "training.epochs=true", "training.augmentation.crop=7"),
    *("training.epochs=-1", "training.weight_decay=-1", "training.warmup_epochs=1e9", "training.ema_decay=2"),
    *("training.drop_path=-1", "seed=" + str(2**70), "training.precision='fp8'", "training.epochs='10'"),
    *("training.learning_rate=0", "training.epochs=1\ntraining.seed=2", "training.learning_rate='''", "\x01=1"),
)
MODEL_ARGUMENTS = (
    *("depth=100000", "depth=-1", "depth=0", "embed_dim=7", "num_heads=0", "num_heads=5", "detph=6", "depth=1.5"),
    *("embed_dim=" + str(10**12), "patch_size=0", "patch_size=1000", "img_size=0", "img_size=-5", "mlp_ratio=-1"),
    *(
        "mlp_ratio=nan",
        "depth=" + "9" * 5000,
        "norm_layer=nothing",
        "act_layer=os.system",
        "checkpoint_path=/etc/passwd",
    ),
    *("pretrained_cfg={}", "pretrained_cfg_overlay={'url': 'file:///etc/passwd'}", "in_chans=0", "in_chans=-3"),
    *("depth=[1]", "depth=" + "[" * 100_000, "embed_dim=None", "num_classes=-1", "drop_rate=7", "global_pool=nothing"),
)


def bad_input(scene: Scene, record: Record, count: int) -> None:
    """Give each command values and files that it must refuse."""
    cases = list(_cases(scene))
    random.Random(0).shuffle(cases)
    for kind, name, make in cases[:count]:
        if record.has(kind, name):
            continue
        folder = scene.case("bad")
        words = make(folder)
        ended = run(words, folder, seconds=SECONDS)
        record.add(_judged(kind, name, folder, ended))


def hostile_files(scene: Scene, record: Record, count: int) -> None:
    """Give commands files and folders that try to run code, to escape, or to hang."""
    for name, make in list(_hostile(scene))[-count:]:
        if record.has("hostile file", name):
            continue
        folder = scene.case("hostile")
        words = make(folder)
        ended = run(words, folder, seconds=SECONDS)
        record.add(_judged("hostile file", name, folder, ended, may_work=name.startswith("may work")))


def _judged(kind: str, name: str, folder: Path, ended: Ended, *, may_work: bool = False) -> Case:
    verdict = refusal(ended)
    if may_work and ended.status == 0 and not ended.has_traceback:
        verdict = RIGHT
    if list(folder.rglob(MARKER)) or Path("/tmp", MARKER).exists():
        verdict = EXECUTED
    left = [path for path in folder.rglob("model.safetensors") if "out" in path.parts]
    if verdict == RIGHT and left and not may_work:
        verdict = LOST  # what is refused must leave nothing half-made
    about = "" if verdict == RIGHT else f"status {ended.status}, {ended.seconds:.0f} s: {ended.message[-400:]}"
    return Case(kind=kind, name=name[:120], verdict=verdict, about=about)


Make = Callable[[Path], list[str]]


def _cases(scene: Scene) -> Iterator[tuple[str, str, Make]]:
    base = {
        "compress": [str(scene.dense), "--data", "digits", "-o", "out"],
        "train": ["vit_tiny_patch16_224", "--data", "digits", "-o", "out"],
        "evaluate": [str(scene.dense), "--data", "digits"],
    }
    for command, options in OPTIONS.items():
        for option, values in options.items():
            for value in ABSURD[values]:
                words = [command, *base[command], f"{option}={value}"]
                yield "bad value", f"{command} {option} {value[:40]!r} {len(value)}", lambda _, words=words: words
    for setting in SETTINGS:
        words = ["train", *MODEL, "--data", "digits", "-o", "out", f"--set={setting}"]
        yield "bad setting", f"{setting[:60]!r} {len(setting)}", lambda _, words=words: words
    for argument in MODEL_ARGUMENTS:
        words = ["train", "vit_tiny_patch16_224", "--data", "digits", "-o", "out", f"--model-arg={argument}"]
        yield "bad model argument", f"{argument[:60]!r} {len(argument)}", lambda _, words=words: words
    yield from _bad_paths(scene)


def _bad_paths(scene: Scene) -> Iterator[tuple[str, str, Make]]:
    """Each option that takes a file gets what is no such file."""
    uses = {
        "MODEL": lambda path: ["evaluate", path, "--data", "digits"],
        "--data": lambda path: ["evaluate", str(scene.dense), "--data", path],
        "--scores": lambda path: [*scene.command(), "--scores", path],
        "--recipe": lambda path: [*scene.command(), "--recipe", path],
        "--teacher": lambda path: [*scene.command(), "--teacher", path],
        "--against": lambda path: ["evaluate", str(scene.dense), "--data", "digits", "--against", path],
        "plan -o": lambda path: ["plan", str(scene.dense), "--data", "digits", "--keep", "0.5", "-o", path],
        "export -o": lambda path: ["export", str(scene.dense), "--format", "torch-export", "-o", path],
        "compress -o": lambda path: [*scene.command()[:-1], path],
    }
    for what, make in BAD_FILES.items():
        for option, use in uses.items():
            if option.endswith("-o") and what in ("missing", "name of 300 characters", "empty folder"):
                continue
            if (option, what) == ("plan -o", "plan of another run"):  # a plan may be replaced by a plan
                continue

            def words(folder: Path, make=make, use=use) -> list[str]:  # type: ignore[no-untyped-def]
                return use(os.fspath(make(folder, scene)))

            yield "bad file", f"{option} {what}", words


def _file(content: bytes, name: str) -> Callable[[Path, Scene], Path]:
    def make(folder: Path, scene: Scene) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _fifo(folder: Path, scene: Scene) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _socket(folder: Path, scene: Scene) -> Path:
    with socket.socket(socket.AF_UNIX) as opened:
        os.chdir(folder)  # the names of sockets are short
        opened.bind("socket")
    return folder / "socket"


def _loop(folder: Path, scene: Scene) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def _empty_folder(folder: Path, scene: Scene) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _copied(name: str) -> Callable[[Path, Scene], Path]:
    def make(folder: Path, scene: Scene) -> Path:
        return Path(shutil.copy(scene.finished / name, folder / Path(name).name))

    return make


BAD_FILES: dict[str, Callable[[Path, Scene], Path]] = {
    "missing": lambda folder, scene: folder / "missing",
    "empty file": _file(b"", "empty.safetensors"),
    "random bytes": _file(bytes(range(256)) * 40, "random.pth"),
    "text": _file(b"hello\n", "hello.txt"),
    "broken JSON": _file(b'{"a": [', "broken.json"),
    "deep JSON": _file(b"[" * 200_000, "deep.json"),
    "deep TOML": _file(b"a = " + b"[" * 100_000, "deep.toml"),
    "not UTF-8": _file(b"seed = '\xff\xfe'", "latin.toml"),
    "header of 2**60 bytes": _file((2**60).to_bytes(8, "little") + b"{}", "huge.safetensors"),
    "FIFO": _fifo,
    "socket": _socket,
    "link in a loop": _loop,
    "empty folder": _empty_folder,
    "/dev/zero": lambda folder, scene: Path("/dev/zero"),
    "/dev/full": lambda folder, scene: Path("/dev/full"),
    "/proc/self/mem": lambda folder, scene: Path("/proc/self/mem"),
    "name of 300 characters": lambda folder, scene: folder / ("x" * 300),
    "control characters": _file(b"\x1b[2J", "\x1b[31m\nred.json"),
    "name that is not UTF-8": _file(b"{}", os.fsdecode(b"\xff\xfe.json")),
    "plan of another run": _copied("plan.json"),
    "report": _copied("report.json"),
    "checkpoint of weights": _copied("model/model.safetensors"),
}


class Runs:
    """An object whose pickle writes the marker when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {MARKER}",)


CODE = f"open({MARKER!r}, 'w')\n"


def _hostile(scene: Scene) -> Iterator[tuple[str, Make]]:
    for name, write in {"pickle": _pickle, "torch zip": _zip_pickle, "npz": _npz}.items():
        for command in ("inspect", "evaluate", "train"):

            def words(folder: Path, write=write, command=command) -> list[str]:  # type: ignore[no-untyped-def]
                options = [] if command == "inspect" else ["--data", "digits"]
                return [command, str(write(folder)), "--arch", "vit_tiny_patch16_224", *options]

            yield f"{name}, {command}", words
    for library, write_folder in FOLDERS.items():

        def in_folder(folder: Path, write_folder=write_folder) -> list[str]:  # type: ignore[no-untyped-def]
            write_folder(folder / "hostile", scene)
            return ["evaluate", "hostile", "--data", "digits"]

        yield f"may work: {library}", in_folder
    for name, archive in {"..": "../escaped.png", "absolute": f"/tmp/{MARKER}"}.items():

        def in_archive(folder: Path, archive=archive) -> list[str]:  # type: ignore[no-untyped-def]
            with zipfile.ZipFile(folder / "images.zip", "w") as opened:
                opened.writestr(archive, b"no image")
            return ["evaluate", str(scene.dense), "--data", "images.zip"]

        yield f"zip with {name}", in_archive


def _pickle(folder: Path) -> Path:
    (folder / "weights.pth").write_bytes(pickle.dumps({"model": Runs()}))
    return folder / "weights.pth"


def _zip_pickle(folder: Path) -> Path:
    import torch

    torch.save({"state_dict": {"weight": torch.zeros(2)}, "more": Runs()}, folder / "weights.pt")
    return folder / "weights.pt"


def _npz(folder: Path) -> Path:
    import numpy as np

    np.savez(folder / "weights.npz", weight=np.array([Runs()], dtype=object))
    return folder / "weights.npz"


def _auto_map(folder: Path, scene: Scene) -> None:
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    config = {
        "model_type": "vit",
        "architectures": ["Hostile"],
        "auto_map": {"AutoConfig": "code.Hostile", "AutoModelForImageClassification": "code.Hostile"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(scene.finished / "model" / "model.safetensors", folder)


def _unknown_auto_map(folder: Path, scene: Scene) -> None:
    _auto_map(folder, scene)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "hostile"}))


def _own_folder(change: Callable[[dict[str, object]], object]) -> Callable[[Path, Scene], None]:
    def make(folder: Path, scene: Scene) -> None:
        shutil.copytree(scene.finished / "model", folder)
        (folder / "digests.json").unlink(missing_ok=True)
        (folder / "modeling.py").write_text(CODE)
        file = folder / "config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))

    return make


FOLDERS: dict[str, Callable[[Path, Scene], None]] = {
    "auto_map": _auto_map,
    "auto_map of an unknown type": _unknown_auto_map,
    "own folder with code": _own_folder(lambda config: None),
    "checkpoint_path": _own_folder(
        lambda config: config["vitrim"]["model_args"].update(checkpoint_path="/etc/passwd")  # type: ignore[index]
    ),
    "architecture with a path": _own_folder(
        lambda config: config["vitrim"].update(architecture="../../os.system")  # type: ignore[attr-defined]
    ),
    "another library": _own_folder(lambda config: config["vitrim"].update(library="os")),  # type: ignore[attr-defined]
    "overlay": _own_folder(
        lambda config: config["vitrim"]["model_args"].update(  # type: ignore[index]
            pretrained=True, pretrained_cfg_overlay={"file": "/etc/passwd"}
        )
    ),
    "layers by name": _own_folder(
        lambda config: config["vitrim"].update(  # type: ignore[attr-defined]
            changes={"head": {"layers": [{"class": "os.system", "arguments": {"command": f"touch {MARKER}"}}]}}
        )
    ),
}
