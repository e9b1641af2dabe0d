import _thread
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.errors import UsageError
from deploykit.images import batches
from deploykit.images.batches import read_batch, read_batches
from deploykit.images.decode import decode_rgb, decoded_rgb
from deploykit.images.preprocess import preprocess
from deploykit.images.scan import ImageFile, scan_images
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.threads import StageClock

PREPROCESSING = Preprocessing(resize=(8, 8))


@pytest.fixture
def photos(tmp_path: Path) -> tuple[ImageFile, ...]:
    """23 photos of different sizes; numbers 0, 4, 5 and 22 are broken."""
    for i in range(23):
        pixels = np.random.default_rng(i).integers(0, 256, (6 + i, 9 + i % 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    for i in (0, 4, 5, 22):
        (tmp_path / f"{i:02}.png").write_bytes(b"broken")
    return scan_images(tmp_path).files


def alone(file: ImageFile) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return preprocess(decode_rgb(file.path), PREPROCESSING)


def reading_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("deploykit-read")]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.001)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 23, 64])
@pytest.mark.parametrize("threads", [1, 4])
def test_read_batches_reads_every_file_once(
    photos: tuple[ImageFile, ...], batch_size: int, threads: int
) -> None:
    files: list[ImageFile] = []
    for batch in read_batches(photos, PREPROCESSING, batch_size=batch_size, threads=threads):
        assert 1 <= len(batch.files) <= batch_size
        assert len(batch.failures) == len(batch.files)
        assert batch.images.shape == (len(batch.readable), 8, 8, 3)
        assert batch.images.dtype == np.uint8
        for file, image in zip(batch.readable, batch.images, strict=True):
            np.testing.assert_array_equal(image, alone(file))
        files += batch.files
    assert tuple(files) == photos
    assert not reading_threads()


def test_read_batches_failures_keep_their_places(photos: tuple[ImageFile, ...]) -> None:
    failures = [
        failure
        for batch in read_batches(photos, PREPROCESSING, batch_size=6)
        for failure in batch.failures
    ]
    broken = [i for i, failure in enumerate(failures) if failure is not None]
    assert broken == [0, 4, 5, 22]
    assert {failures[i].status for i in broken} == {"unsupported"}  # type: ignore[union-attr]


def test_read_batch_packs_readable_images(photos: tuple[ImageFile, ...]) -> None:
    buffer = np.zeros((9, 8, 8, 3), np.uint8)
    batch = read_batch(photos[2:8], PREPROCESSING, buffer, StageClock())
    assert batch.files == photos[2:8]
    assert [failure is None for failure in batch.failures] == [True, True, False, False, True, True]
    assert np.shares_memory(batch.images, buffer)
    assert len(batch.images) == 4
    for file, image in zip(batch.readable, batch.images, strict=True):
        np.testing.assert_array_equal(image, alone(file))


def test_read_batches_reuses_few_buffers(photos: tuple[ImageFile, ...]) -> None:
    files = [file for file in photos if file.name not in {"00.png", "04.png", "05.png", "22.png"}]
    before = None
    places = set()
    for batch in read_batches(files * 3, PREPROCESSING, batch_size=2, threads=2):
        if before is not None:
            for file, image in zip(before.readable, before.images, strict=True):
                np.testing.assert_array_equal(image, alone(file))
        places.add(batch.images.__array_interface__["data"][0])
        before = batch
    assert len(places) == 4


def test_read_batches_takes_files_as_needed(photos: tuple[ImageFile, ...]) -> None:
    taken: list[ImageFile] = []

    def feed() -> Iterator[ImageFile]:
        for file in photos:
            taken.append(file)
            yield file

    reading = read_batches(feed(), PREPROCESSING, batch_size=2, threads=1)
    assert not taken
    next(reading)
    assert len(taken) == 6
    next(reading)
    assert len(taken) == 8
    reading.close()


def test_read_batches_reads_ahead(
    photos: tuple[ImageFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def recording(path: Path) -> AbstractContextManager[Image.Image]:
        read.append(path)
        return decoded_rgb(path)

    monkeypatch.setattr(batches, "decoded_rgb", recording)
    good = photos[6:18]
    reading = read_batches(good, PREPROCESSING, batch_size=2, threads=1)
    next(reading)
    wait_until(lambda: len(read) == 6)  # the batch that we have, and two more
    reading.close()


@pytest.mark.parametrize("batch_size", [1, 32])
def test_read_batches_uses_all_threads(
    photos: tuple[ImageFile, ...], monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    together = threading.Barrier(5, timeout=10)

    def meeting(path: Path) -> AbstractContextManager[Image.Image]:
        together.wait()
        return decoded_rgb(path)

    monkeypatch.setattr(batches, "decoded_rgb", meeting)
    reading = read_batches(photos[6:16], PREPROCESSING, batch_size=batch_size, threads=5)
    assert sum(len(batch.images) for batch in reading) == 10


def test_read_batches_closed_ends_its_threads(photos: tuple[ImageFile, ...]) -> None:
    reading = read_batches(photos, PREPROCESSING, batch_size=2, threads=3)
    next(reading)
    assert reading_threads()
    reading.close()
    assert not reading_threads()


def test_read_batches_interrupted_ends_its_threads(
    photos: tuple[ImageFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupting(path: Path) -> AbstractContextManager[Image.Image]:
        if path == photos[7].path:
            _thread.interrupt_main()
        return decoded_rgb(path)

    monkeypatch.setattr(batches, "decoded_rgb", interrupting)
    with pytest.raises(KeyboardInterrupt):
        list(read_batches(photos, PREPROCESSING, batch_size=2, threads=3))
    assert not reading_threads()


def test_read_batches_raises_bugs_of_its_threads(
    photos: tuple[ImageFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(batches, "preprocess", buggy)
    with pytest.raises(ZeroDivisionError):
        list(read_batches(photos[1:4], PREPROCESSING, batch_size=2))
    assert not reading_threads()


def test_read_batches_of_a_too_large_image(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(tmp_path / "thread.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "whole.png")
    preprocessing = Preprocessing(resize=80, crop_size=(8, 8))
    (batch,) = read_batches(scan_images(tmp_path).files, preprocessing, batch_size=4)
    assert batch.failures[0] is not None
    assert batch.failures[0].status == "too-large"
    assert [file.name for file in batch.readable] == ["whole.png"]


def test_read_batches_out_of_memory_on_one_image(
    photos: tuple[ImageFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(batches, "preprocess", no_memory)
    (batch,) = read_batches(photos[1:3], PREPROCESSING, batch_size=4)
    assert [failure.status for failure in batch.failures if failure] == ["too-large", "too-large"]
    assert batch.images.shape == (0, 8, 8, 3)


@pytest.mark.parametrize(("batch_size", "threads"), [(0, 1), (4, 0), (-1, None)])
def test_read_batches_refuses_numbers_below_one(batch_size: int, threads: int | None) -> None:
    with pytest.raises(UsageError, match="reads nothing"):
        next(read_batches([], PREPROCESSING, batch_size=batch_size, threads=threads))


@pytest.mark.parametrize("batch_size", [10**15, 10**17])
def test_read_batches_refuses_batches_beyond_memory(batch_size: int) -> None:
    with pytest.raises(UsageError, match="GiB") as caught:
        next(read_batches([], PREPROCESSING, batch_size=batch_size))
    assert "smaller" in str(caught.value.hint)
