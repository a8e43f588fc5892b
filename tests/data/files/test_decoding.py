"""Laws of decoding: processes return what threads return, and need nothing from the main module."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders.images import save_image
from vitrim.data.files import decoding
from vitrim.data.files.decoding import SizesDiffer, check_files, decode_files


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Twelve files of 8 x 6 pixels, of which the fourth is broken."""
    files = [str(save_image(tmp_path / f"{i}.png", seed=i, size=(8, 6))) for i in range(12)]
    Path(files[3]).write_bytes(Path(files[3]).read_bytes()[:60])
    return files


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few files are many, so that processes decode them."""
    monkeypatch.setattr(decoding, "MIN_FILES_FOR_PROCESSES", 12)
    monkeypatch.setattr(decoding, "FILES_PER_TASK", 5)
    monkeypatch.setattr(decoding, "num_cores", lambda: 3)


def mapped(folder: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)


def test_processes_decode_the_pixels_of_threads_and_report_the_same_files(
    files: list[str], processes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = np.zeros((12, 3, 8, 6), dtype=np.uint8)
    broken = decode_files(files, threads, "")
    assert broken.nonzero()[0].tolist() == [3] and threads.any(axis=(1, 2, 3)).tolist() == (~broken).tolist()
    pixels = mapped(tmp_path, (12, 3, 8, 6))
    monkeypatch.setattr(decoding, "ThreadPoolExecutor", None)
    assert np.array_equal(decode_files(files, pixels, ""), broken) and np.array_equal(pixels, threads)
    assert np.array_equal(check_files(files, True, ""), broken)


def test_an_image_of_another_size_ends_the_work_of_processes(files: list[str], processes: None, tmp_path: Path) -> None:
    save_image(Path(files[8]), size=(6, 8))
    with pytest.raises(SizesDiffer):
        decode_files(files, mapped(tmp_path, (12, 3, 8, 6)), "")


@pytest.mark.slow
def test_a_script_needs_no_guard_around_its_calls(files: list[str], tmp_path: Path) -> None:
    """Python's own processes would run the script again, and again in each of them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from vitrim.data.files import decoding\n"
        "decoding.MIN_FILES_FOR_PROCESSES, decoding.num_cores = 1, lambda: 3\n"
        "pixels = np.lib.format.open_memmap(sys.argv[1], mode='w+', dtype=np.uint8, shape=(12, 3, 8, 6))\n"
        "print('broken', decoding.decode_files(sys.argv[2:], pixels, '').sum())\n"
    )
    command = [sys.executable, "-W", "error", str(script), str(tmp_path / "pixels.npy"), *files]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "broken 1\n" and not found.stderr
