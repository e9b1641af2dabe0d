"""``golden.npz``: the few images by which any machine can test a bundle."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import GOLDEN, Bundle
from deploykit.errors import BundleError
from deploykit.parity.measures import decides
from deploykit.specs.model import PRECISIONS
from deploykit.specs.session import ImageBatch, Logits

GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class Golden:
    """What ``golden.npz`` holds: images, and what the reference answered.

    Attributes:
        images: (N, H, W, 3) uint8.
        logits: (N, K) float32.
    """

    images: ImageBatch
    logits: Logits


def choose_golden(images: ImageBatch, reference: Logits) -> Golden:
    """Choose the images that let any machine test a bundle by itself.

    Those whose margin decides at every precision come first: a self-test on images that cannot
    flip decidedly would show nothing.
    """
    clear = np.all([decides(reference, precision) for precision in PRECISIONS], axis=0)
    order = np.argsort(~clear, kind="stable")[:GOLDEN_IMAGES]
    return Golden(images[order], reference[order])


def write_golden(golden: Golden, path: Path) -> None:
    """Write ``golden.npz``."""
    np.savez(path, images=golden.images, logits=golden.logits)


def read_golden(bundle: Bundle) -> Golden:
    """Read a bundle's ``golden.npz``.

    Raises:
        BundleError: It is missing, changed, or not what the manifest describes.
    """
    path = bundle.checked(GOLDEN)
    try:
        # Opened here, because NumPy leaves a file open that turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            golden = Golden(data["images"], data["logits"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        raise BundleError(f"{path} is damaged: {exc}.", hint="Export the bundle again.") from exc
    size, classes = bundle.manifest.preprocessing.input_size, bundle.manifest.architecture.classes
    count = len(golden.images)
    if count == 0:
        raise BundleError(
            f"{path} holds no image, so that nothing can be compared with it.",
            hint="Export the bundle again, or name photos: --images DIR",
        )
    if golden.images.shape != (count, *size, 3) or golden.logits.shape != (count, classes):
        raise BundleError(
            f"{path} holds images {golden.images.shape} and logits {golden.logits.shape}, "
            f"not (N, {size[0]}, {size[1]}, 3) and (N, {classes}).",
            hint="Export the bundle again.",
        )
    return golden
