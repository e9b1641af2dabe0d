import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.images import memory
from deploykit.images.decode import decode_rgb, rgb_of
from deploykit.images.memory import MemoryBudget, _budget, decoding_budget, decoding_bytes


class Holder(threading.Thread):
    """Takes bytes, tells when it has them, and keeps them until it is told to give them back."""

    def __init__(self, budget: MemoryBudget, size: int) -> None:
        super().__init__(daemon=True)
        self._budget, self._size = budget, size
        self.has, self._end = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self._budget.taking(self._size):
            self.has.set()
            self._end.wait(10)

    def give_back(self) -> None:
        self._end.set()
        self.join(10)


def test_memory_budget_small_pass_freely() -> None:
    budget = MemoryBudget(100)
    holders = [Holder(budget, 25) for _ in range(4)]
    assert all(holder.has.wait(10) for holder in holders)
    for holder in holders:
        holder.give_back()


def test_memory_budget_large_wait_in_order() -> None:
    budget = MemoryBudget(100)
    first = Holder(budget, 30)
    assert first.has.wait(10)
    large = Holder(budget, 80)
    assert not large.has.wait(0.05)
    small = Holder(budget, 10)  # there is room, but the large one would wait for ever
    assert not small.has.wait(0.05)
    first.give_back()
    assert large.has.wait(10)
    assert small.has.wait(10)
    large.give_back()
    small.give_back()


def test_memory_budget_of_more_than_there_is_runs_alone() -> None:
    budget = MemoryBudget(100)
    huge = Holder(budget, 10**12)
    assert huge.has.wait(10)
    other = Holder(budget, 1)
    assert not other.has.wait(0.05)
    huge.give_back()
    assert other.has.wait(10)
    other.give_back()


def test_memory_budget_after_an_error() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(MemoryError), budget.taking(100):
        raise MemoryError
    with budget.taking(100):
        pass


def header(file_format: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, file_format)
    return Image.open(stream)


def test_decoding_bytes_by_the_header() -> None:
    assert decoding_bytes(header("JPEG")) == 8 * 8 * 8
    assert decoding_bytes(header("WEBP")) == 8 * 8 * 18
    # An icon of 8x8 may hold an image of any size.
    assert decoding_bytes(header("ICO", (16, 16))) >= 2 * (Image.MAX_IMAGE_PIXELS or 0)


def test_decoding_budget_holds_one_of_the_largest_and_a_photo_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    largest = 8 * 2 * (Image.MAX_IMAGE_PIXELS or 0)
    for cpus, limit in [(1, largest), (64, 16 * 24_000_000 * 8)]:
        monkeypatch.setattr(memory, "usable_cpus", lambda cpus=cpus: cpus)
        _budget.cache_clear()
        try:
            assert decoding_budget()._limit == limit
        finally:
            _budget.cache_clear()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_decode_rgb_of_rgb_makes_no_copy(
    tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 11, 3), dtype=np.uint8)
    path = tmp_path / "x"
    Image.fromarray(pixels).save(path, file_format)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))

    def copied(*args: object) -> Image.Image:
        raise AssertionError("a copy")

    for name in ("copy", "convert"):
        monkeypatch.setattr(Image.Image, name, copied)
    decoded = decode_rgb(path)
    assert type(decoded) is Image.Image  # not Pillow's reader of the file
    np.testing.assert_array_equal(decoded, expected)
    own = Image.fromarray(pixels)
    assert rgb_of(own, "own").im is own.im


# What one image takes is less than half of what four threads at once would. The peak is Linux's:
# the one that ``getrusage`` tells begins with that of the process that started this one.
PEAK = """
import sys
from pathlib import Path
from PIL import Image
from deploykit.images import memory
from deploykit.images.batches import read_batches
from deploykit.images.scan import scan_images
from deploykit.specs.preprocessing import Preprocessing

Image.MAX_IMAGE_PIXELS = 18_000_000
memory.usable_cpus = lambda: 1

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

files = scan_images(Path(sys.argv[1])).files
size = Preprocessing(resize=(8, 8))
(warm,) = read_batches(files[:1], size, batch_size=8, threads=4)
assert warm.failures == (None,)
before = peak()
(batch,) = read_batches(files[1:], size, batch_size=8, threads=4)
assert batch.failures == (None,) * 6, batch.failures
print(before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of memory")
def test_read_batches_of_large_images_takes_memory_for_one(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    bomb = tmp_path / "1.tif"
    Image.new("1", (6000, 5900)).save(bomb, compression="group4")
    for number in range(2, 7):
        (tmp_path / f"{number}.tif").write_bytes(bomb.read_bytes())
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    one = 6000 * 5900 * 5
    assert after - before < 1.5 * one
