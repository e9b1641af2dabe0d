"""``golden.npz``: the few images by which any machine can test a bundle."""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.bundle.folder import GOLDEN, Bundle
from deploykit.bundle.packed import ZIP_ERRORS
from deploykit.errors import BundleError
from deploykit.parity.measures import decides
from deploykit.specs.heads import BaseHead
from deploykit.specs.model import PRECISIONS
from deploykit.specs.session import ImageBatch, Logits
from deploykit.system.files import open_file

GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class Golden:
    """What ``golden.npz`` holds: images, and what the reference answered.

    Attributes:
        images: (N, H, W, 3) of the preprocessing's type.
        logits: (N, K) float32.
    """

    images: ImageBatch
    logits: Logits


def choose_golden(images: ImageBatch, reference: Logits, head: BaseHead) -> Golden:
    """Choose the images that let any machine test a bundle by itself.

    Those whose margin decides at every precision come first: a self-test on images that cannot
    flip decidedly would show nothing.
    """
    clear = np.all([decides(reference, head, precision) for precision in PRECISIONS], axis=0)
    order = np.argsort(~clear, kind="stable")[:GOLDEN_IMAGES]
    return Golden(images[order], reference[order])


def write_golden(golden: Golden, path: Path) -> None:
    """Write ``golden.npz``."""
    # In C's order, which is all that the reader takes: a network may end in a transposed tensor.
    images, logits = map(np.ascontiguousarray, (golden.images, golden.logits))
    np.savez(path, images=images, logits=logits)


def read_golden(bundle: Bundle) -> Golden:
    """Read a bundle's ``golden.npz``.

    Raises:
        BundleError: It is missing, changed, or not what the manifest describes.
    """
    path = bundle.checked(GOLDEN)
    preprocessing = bundle.manifest.preprocessing
    shape, dtype = (*preprocessing.input_size, 3), np.dtype(preprocessing.pixel_type).str
    classes = bundle.manifest.architecture.classes
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            images = _read_member(archive, size, "images.npy", dtype, shape)
            logits = _read_member(archive, size, "logits.npy", "<f4", (classes,))
        if len(images) != len(logits):
            raise ValueError(f"it has {len(images)} images and logits for {len(logits)}")
        for name, numbers in (("images", images), ("logits", logits)):
            if not np.isfinite(numbers).all():
                raise ValueError(f"its {name} are not all finite")
    except (OSError, *ZIP_ERRORS) as exc:
        raise BundleError(f"{path} is damaged: {exc}.", hint="Export the bundle again.") from exc
    if len(images) == 0:
        raise BundleError(
            f"{path} holds no image, so that nothing can be compared with it.",
            hint="Export the bundle again, or name photos: --images DIR",
        )
    return Golden(images, logits)


#: What NumPy writes before the numbers: its own reader takes any Python literal for it.
_HEADER = re.compile(
    rb"\{'descr': '([^']*)', 'fortran_order': False, 'shape': \(([0-9, ]{1,99})\), \} *\n"
)


def _read_member(
    archive: zipfile.ZipFile, largest: int, name: str, dtype: str, shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Read an array as :func:`write_golden` writes it: not compressed, so as large as the file.

    Args:
        archive: The archive.
        largest: Its size in bytes.
        name: Of the array's file in it.
        dtype: What the array must have, as NumPy writes it.
        shape: What an element of its first axis must have.

    Returns:
        (N, *shape), whatever N is.

    Raises:
        ValueError: It is another one.
        Exception: As ``zipfile`` raises them; see :data:`deploykit.bundle.packed.ZIP_ERRORS`.
    """
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    if member.file_size > largest:
        raise ValueError(f"{name} claims {member.file_size} bytes, more than the file has")
    content = archive.read(member)
    if content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError(f"{name} is no array of NumPy's format 1.0")
    start = 10 + int.from_bytes(content[8:10], "little")
    header = _HEADER.fullmatch(content[10:start])
    if header is None:
        raise ValueError(f"{name} begins with {content[10:start][:100]!r}")
    found = header[1].decode("ascii"), tuple(int(n) for n in header[2].split(b",") if n.strip())
    if found[0] != dtype or found[1][1:] != shape:
        raise ValueError(
            f"{name} is {found[0]} of shape {found[1]}, not {dtype} of shape "
            f"(N, {', '.join(map(str, shape))})"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(found[1]).copy()
