"""Odd and broken image files, made here, and the row that each should have."""

import io
import itertools
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

_seeds = itertools.count()


@dataclass(frozen=True)
class OddFile:
    """A file's contents, and what its row should say.

    Attributes:
        name: Its name.
        content: Its bytes.
        status: Its row's status.
        reason: A part of its row's reason.
    """

    name: str
    content: bytes
    status: str = "ok"
    reason: str = ""


def photo(height: int = 48, width: int = 64, channels: int = 3) -> Image.Image:
    """A picture unlike any other: a row that got its neighbour's answer would show."""
    pixels = np.random.default_rng(next(_seeds)).integers(0, 256, (height, width, channels))
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(file_format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or photo()).save(stream, file_format, **options)
    return stream.getvalue()


def animated(file_format: str, **options: Any) -> bytes:
    return encoded(file_format, save_all=True, append_images=[photo(), photo()], **options)


def part(content: bytes, fraction: float) -> bytes:
    return content[: int(len(content) * fraction)]


def patched(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG of exactly these chunks, whether they make sense or not."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def grey(dtype: type[np.generic], scale: float) -> Image.Image:
    return Image.fromarray((np.asarray(photo().convert("L"), np.float64) * scale).astype(dtype))


def _good_files() -> list[OddFile]:
    """Files that have a prediction, though not each viewer shows them."""
    Image.init()
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: to be turned by a quarter
    noise = np.random.default_rng(99).integers(0, 256, (6, 1 + 8 * 6), dtype=np.uint8)
    noise[:, 0] = 0  # each line's filter: none
    contents = {
        "1-bit.png": encoded("PNG", photo().convert("1")),
        "grey.png": encoded("PNG", photo().convert("L")),
        "grey-alpha.png": encoded("PNG", photo().convert("LA")),
        "alpha.png": encoded("PNG", photo(channels=4)),
        "palette.png": encoded("PNG", photo().convert("P")),
        "palette-alpha.png": encoded("PNG", photo().convert("P"), transparency=b"\x00\x80\xff"),
        "grey-16-bit.png": encoded("PNG", grey(np.uint16, 257)),
        "rgb-16-bit.png": png(8, 6, bits=16, data=noise.tobytes()),
        "animated.png": animated("PNG"),
        "animated-with-cover.png": animated("PNG", default_image=True),
        "one-pixel.png": encoded("PNG", photo(1, 1)),
        "thin.png": encoded("PNG", photo(1, 3000)),
        "no-end.png": encoded("PNG")[:-12],
        "trailing.png": encoded("PNG") + b"trailing garbage" * 100,
        "cmyk.jpg": encoded("JPEG", photo().convert("CMYK")),
        "grey.jpg": encoded("JPEG", photo().convert("L")),
        "progressive.jpg": encoded("JPEG", progressive=True),
        "rotated.jpg": encoded("JPEG", exif=rotated),
        "trailing.jpg": encoded("JPEG") + b"trailing garbage" * 100,
        "two-views.mpo": animated("MPO"),
        "animated.gif": animated("GIF"),
        "animated.webp": animated("WEBP"),
        "alpha.webp": encoded("WEBP", photo(channels=4), lossless=True),
        "top-down.bmp": _upside_down(encoded("BMP")),
        "palette.bmp": encoded("BMP", photo().convert("P")),
        "pages.tiff": animated("TIFF"),
        "grey-16-bit.tif": encoded("TIFF", grey(np.uint16, 257)),
        "float.tif": encoded("TIFF", grey(np.float32, 1 / 255)),
        "cmyk.tif": encoded("TIFF", photo().convert("CMYK")),
        "lab.tif": encoded("TIFF", photo().convert("LAB")),
        "fax.tif": encoded("TIFF", photo().convert("1"), compression="group4"),
        "jpeg-inside.tif": encoded("TIFF", compression="jpeg"),
        "text.ppm": b"P3 2 1 255  10 20 30  40 50 60\n",
        "png-named.jpg": encoded("PNG"),
        "jpeg-named.png": encoded("JPEG"),
        "icon-named.png": encoded("ICO"),
        "targa-named.bmp": encoded("TGA"),
    }
    if features.check("jpg_2000"):
        contents["wavelets.jp2"] = encoded("JPEG2000")
    if "AVIF" in Image.SAVE:
        contents["video-frame.avif"] = encoded("AVIF")
    return [OddFile(name, content) for name, content in contents.items()]


def _upside_down(bmp: bytes) -> bytes:
    """A BMP whose height is negative: its first line is the top one."""
    (height,) = struct.unpack("<i", bmp[22:26])
    return patched(bmp, 22, struct.pack("<i", -height))


def _cut_files() -> list[OddFile]:
    """Files that end too early."""
    cut = {
        "in-tables.jpg": encoded("JPEG")[:300],
        "at-the-end.jpg": encoded("JPEG")[:-2],
        "progressive.jpg": part(encoded("JPEG", progressive=True), 0.3),
        "hollow.png": png(3000, 3000, data=bytes(10)),
    }
    for file_format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        cut[f"in-half.{file_format.lower()}"] = part(encoded(file_format), 0.5)
    cut_in_header = {
        "in-marker.jpg": ("JPEG", encoded("JPEG")[:4]),
        "in-signature.png": ("PNG", encoded("PNG")[:4]),
        "after-header.png": ("PNG", encoded("PNG")[:33]),
        "after-header.gif": ("GIF", encoded("GIF")[:13]),
        "before-directory.tif": ("TIFF", part(encoded("TIFF", compression="tiff_lzw"), 0.5)),
    }
    return [
        OddFile("empty.jpg", b"", "truncated", "The file is empty"),
        *(
            OddFile(f"cut-{name}", content, "truncated", "The file ends too early")
            for name, content in cut.items()
        ),
        *(
            OddFile(f"cut-{name}", content, "corrupt", f"It begins as {kind}, but its header")
            for name, (kind, content) in cut_in_header.items()
        ),
    ]


def _damaged_files() -> list[OddFile]:
    """Files with wrong bytes in them."""
    jpeg, whole, tiff = encoded("JPEG"), encoded("PNG"), encoded("TIFF")
    lzw = encoded("TIFF", compression="tiff_lzw")
    deflate = encoded("TIFF", compression="tiff_deflate")
    samples = tiff.index(struct.pack("<HHI", 277, 3, 1)) + 8  # the entry "samples per pixel"
    frame = jpeg.index(b"\xff\xc0") + 5  # height and width, two bytes each
    damaged = {
        "crc-of-header.png": ("PNG, but its header", patched(whole, 29, b"\0\0")),
        "zlib.png": ("broken", patched(whole, whole.index(b"IDAT") + 4, b"\0")),
        "pixels.png": ("broken", patched(whole, 300, bytes(50))),
        "lzw.tif": ("cannot be decoded", patched(lzw, len(lzw) // 2, b"\xff" * 50)),
        "deflate.tif": ("cannot be decoded", patched(deflate, 2000, b"\xff" * 50)),
        "99-samples.tif": ("TIFF, but its header", patched(tiff, samples, b"\x63")),
        "7-bits.bmp": ("pixel depth", patched(encoded("BMP"), 28, b"\x07")),
        "numbers.ppm": ("cannot be decoded", b"P3 2 1 255  10 20 x  40 50 60\n"),
        "0x0.png": ("PNG, but its header", png(0, 0)),
        "0x0.jpg": ("JPEG, but its header", patched(jpeg, frame, bytes(4))),
    }
    bombs = {
        "bomb.png": ("2500000000", png(50_000, 50_000, bits=1, colour=0)),
        "bomb.jpg": ("4294836225", patched(jpeg, frame, b"\xff" * 4)),
        "bomb.gif": ("4294836225", patched(encoded("GIF"), 6, b"\xff" * 4)),
        "bomb.bmp": (
            "3600000000",
            patched(encoded("BMP"), 18, struct.pack("<ii", 60_000, 60_000)),
        ),
    }
    return [
        *(OddFile(name, content, "corrupt", why) for name, (why, content) in damaged.items()),
        *(
            OddFile(name, content, "too-large", f"{pixels} pixels")
            for name, (pixels, content) in bombs.items()
        ),
    ]


def _strangers() -> list[OddFile]:
    """Files that are no photos, whatever their names say."""
    contents = {
        "text.jpg": (b"not an image", "No image format"),
        "line.jpg": (b"\n", "No image format"),
        "zeros.jpg": (bytes(5000), "It holds zeros"),
        "._a.jpg": (b"\0\x05\x16\x07\0\x02" + bytes(100), "It is what macOS keeps beside"),
        "page.png": (b"<!DOCTYPE html><html>404</html>", "a web page"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "document.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        "archive.jpg": (b"PK\x03\x04" + bytes(40), "a ZIP archive"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "converted to JPEG"),
        "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "converted to JPEG"),
        "clip.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99), "a video"),
        "mpeg.jpg": (b"\0\0\x01\xb3\x10\x01\x20" + bytes(50), "No image format"),
        "drawing.jpg": (encoded("EPS"), "PostScript"),
        "measurements.jpg": (b"\x89HDF\r\n\x1a\n" + bytes(100), "No image format"),
    }
    return [
        OddFile(name, content, "unsupported", reason)
        for name, (content, reason) in contents.items()
    ]


ODD_FILES = [*_good_files(), *_cut_files(), *_damaged_files(), *_strangers()]
