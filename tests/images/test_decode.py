import errno
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from deploykit.errors import InputError
from deploykit.images.decode import DecodeError, Failure, decode_rgb, exif_orientation

FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]


def noise(height: int = 8, width: int = 11, channels: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(file_format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(noise())).save(stream, file_format, **options)
    return stream.getvalue()


def written(folder: Path, content: bytes, name: str = "x.jpg") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def as_in_training(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def failure_of(path: Path) -> Failure:
    with pytest.raises(DecodeError) as caught:
        decode_rgb(path)
    assert isinstance(caught.value, InputError)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.failure.reason
    return caught.value.failure


def of_mode(mode: str) -> Image.Image:
    image = Image.fromarray(noise())
    if mode == "I;16":
        return Image.fromarray((noise()[..., 0].astype(np.uint16) * 257).copy())
    if mode == "RGBA":
        return Image.fromarray(noise(channels=4))
    return image.convert(mode)


@pytest.mark.parametrize("file_format", FORMATS)
def test_decode_rgb_formats_as_pillow(tmp_path: Path, file_format: str) -> None:
    path = written(tmp_path, encoded(file_format))
    decoded = decode_rgb(path)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(decoded, as_in_training(path))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_decode_rgb_modes_as_pillow(tmp_path: Path, mode: str) -> None:
    path = written(tmp_path, encoded("JPEG" if mode == "CMYK" else "PNG", of_mode(mode)))
    assert mode_of(path) == mode
    np.testing.assert_array_equal(decode_rgb(path), as_in_training(path))


def test_decode_rgb_ignores_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter
    path = written(tmp_path, encoded("JPEG", Image.fromarray(noise(8, 20)), exif=exif))
    assert decode_rgb(path).size == (20, 8)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP"])
def test_decode_rgb_takes_first_frame(tmp_path: Path, file_format: str) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    data = encoded(file_format, red, save_all=True, append_images=[blue])
    pixels = np.asarray(decode_rgb(written(tmp_path, data)))
    np.testing.assert_allclose(pixels, np.asarray(red), atol=3)


def test_decode_rgb_transparent_palette_without_warning(tmp_path: Path) -> None:
    path = written(tmp_path, encoded("PNG", of_mode("P"), transparency=b"\x00\x80\xff"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = as_in_training(path)
    assert caught, "Pillow no longer warns here: this test needs another file"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_rgb(path), expected)


def test_decode_rgb_of_a_large_image_without_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # the photo has 88
    assert decode_rgb(path).size == (11, 8)


def test_decode_rgb_decompression_bomb_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    failure = failure_of(path)
    assert failure.status == "too-large"
    assert "88 pixels" in failure.reason


@pytest.mark.parametrize("where", ["load", "convert"])
def test_decode_rgb_beyond_memory_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = written(tmp_path, encoded("BMP", of_mode("L")))

    def no_memory(self: ImageFile.ImageFile, *args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, where, no_memory)
    assert failure_of(path).status == "too-large"


@pytest.mark.parametrize("file_format", FORMATS)
def test_decode_rgb_truncated_file(tmp_path: Path, file_format: str) -> None:
    photo = Image.fromarray(noise(64, 64))
    data = encoded(file_format, photo)
    assert failure_of(written(tmp_path, data[: len(data) * 9 // 10])).status == "truncated"


def test_decode_rgb_empty_file_is_truncated(tmp_path: Path) -> None:
    assert failure_of(written(tmp_path, b"")) == Failure("truncated", "The file is empty.")


def test_decode_rgb_damaged_data_is_corrupt(tmp_path: Path) -> None:
    data = bytearray(encoded("PNG"))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    assert failure_of(written(tmp_path, bytes(data))).status == "corrupt"


def test_decode_rgb_damaged_header_is_corrupt(tmp_path: Path) -> None:
    failure = failure_of(written(tmp_path, b"\xff\xd8\xff\xe0" + bytes(40)))
    assert failure.status == "corrupt"
    assert "JPEG" in failure.reason


def test_decode_rgb_other_file_is_unsupported(tmp_path: Path) -> None:
    failure = failure_of(written(tmp_path, b"<html><body>404 Not Found</body></html>"))
    assert failure.status == "unsupported"
    assert "<html><body>404" in failure.reason


def test_decode_rgb_runs_no_postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object, **options: object) -> None:
        raise AssertionError("Ghostscript runs what a photo holds")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    failure = failure_of(written(tmp_path, encoded("EPS")))
    assert failure.status == "unsupported"
    assert "PostScript" in failure.reason


def test_decode_rgb_unconvertible_mode_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, encoded("PNG", of_mode("L")))

    def refuse(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError("conversion from La to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", refuse)
    assert failure_of(path).status == "unsupported"


def test_decode_rgb_missing_file_has_vanished(tmp_path: Path) -> None:
    assert failure_of(tmp_path / "gone.jpg").status == "vanished"
    file = written(tmp_path, b"no folder", "folder")
    assert failure_of(file / "x.jpg").status in {"vanished", "unreadable"}  # Windows differs


def test_decode_rgb_dangling_link_has_vanished(tmp_path: Path) -> None:
    link = tmp_path / "link.jpg"
    try:
        link.symlink_to("gone.jpg")
    except OSError as exc:
        pytest.skip(f"this system does not let us make links: {exc}")
    failure = failure_of(link)
    assert failure.status == "vanished"
    assert "link" in failure.reason


def test_decode_rgb_folder_is_unreadable(tmp_path: Path) -> None:
    failure = failure_of(tmp_path)
    assert failure.status == "unreadable"
    assert "was not listed" in failure.reason


def test_decode_rgb_in_a_closed_folder_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulated, because permission bits do not bind root.
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        for access in ("open", "stat", "is_dir"):
            patch.setattr(Path, access, refuse)
        with pytest.raises(DecodeError, match="Permission denied") as caught:
            decode_rgb(tmp_path / "x.jpg")
    assert caught.value.failure.status == "unreadable"


@pytest.mark.parametrize("where", ["open", "load"])
def test_decode_rgb_on_a_failing_disk_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = written(tmp_path, encoded("PNG"))

    def fail(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    owner = Path if where == "open" else ImageFile.ImageFile
    monkeypatch.setattr(owner, where, fail)
    failure = failure_of(path)
    assert failure.status == "unreadable"
    assert "Input/output error" in failure.reason


@pytest.mark.parametrize("file_format", FORMATS)
def test_decode_rgb_of_random_damage(tmp_path: Path, file_format: str) -> None:
    rng = np.random.default_rng(1)
    good = np.frombuffer(encoded(file_format), np.uint8)
    outcomes = set()
    for _ in range(150):
        data = good.copy()
        data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4, dtype=np.uint8)
        path = written(tmp_path, data[: rng.integers(1, len(data) + 1)].tobytes())
        try:
            outcomes.add(decode_rgb(path).mode)
        except DecodeError as exc:
            outcomes.add(exc.failure.status)
    assert outcomes - {"RGB"}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles in /proc")
@pytest.mark.parametrize("content", [encoded("GIF"), encoded("PNG")[:70], b"nonsense"])
def test_decode_rgb_closes_its_file(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)

    def handles() -> list[str]:
        links = Path("/proc/self/fd").iterdir()
        return [str(link.resolve()) for link in links]

    try:
        image = decode_rgb(path)
    except DecodeError:
        image = None
    assert str(path.resolve()) not in handles()
    del image


RACE = """
import sys
from pathlib import Path
from PIL import Image
from deploykit.images.decode import decode_rgb

class Ids(list):
    def copy(self):  # Image.open takes stock of the decoders that it has tried
        Image.init()  # and in this very moment another thread has imported them all
        return super().copy()

Image.ID = Ids(Image.ID)
decode_rgb(Path(sys.argv[1]))
"""


def test_decode_rgb_first_webp_on_two_threads(tmp_path: Path) -> None:
    path = written(tmp_path, encoded("WEBP"))
    command = [sys.executable, "-c", RACE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("told", "found"), [(None, 1), (1, 1), (6, 6)])
def test_exif_orientation_of_jpeg(tmp_path: Path, told: int | None, found: int) -> None:
    exif = Image.Exif()
    if told is not None:
        exif[0x0112] = told
    path = written(tmp_path, encoded("JPEG", exif=exif))
    assert exif_orientation(path) == found


def test_exif_orientation_of_a_broken_header(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xd8 broken", b"no photo"):
        with pytest.raises(DecodeError):
            exif_orientation(written(tmp_path, content))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_decode_rgb_without_free_file_handles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = written(tmp_path, encoded("PNG", of_mode("L")))

    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", refuse)
        with pytest.raises(InputError, match=r"x\.jpg cannot be opened: .*open files") as caught:
            decode_rgb(path)
    assert not isinstance(caught.value, DecodeError)
    assert "limit of open files" in str(caught.value.hint)


def test_decode_rgb_draft_is_smaller(tmp_path: Path) -> None:
    image = Image.new("RGB", (1000, 600), (10, 200, 30))
    jpeg = written(tmp_path, encoded("JPEG", image))
    assert decode_rgb(jpeg).size == (1000, 600)
    draft = decode_rgb(jpeg, draft=256)
    assert draft.size == (500, 300)
    assert max(abs(a - b) for a, b in zip(draft.getpixel((9, 9)), (10, 200, 30), strict=True)) < 4  # type: ignore[arg-type]
    assert decode_rgb(written(tmp_path, encoded("PNG", image)), draft=256).size == (1000, 600)
