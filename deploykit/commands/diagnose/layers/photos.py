"""The images to diagnose layers on: those that were named, then a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.errors import UsageError
from deploykit.images.scan import sample_images
from deploykit.proof.photos import bundle_photos, listed_photos
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import Progress

#: Some of those that are read may be duplicates, or unreadable.
_READ_FOR_EACH = 4


def drawn_images(
    bundle: Bundle, images: Path | None, first: Sequence[str], limit: int, progress: Progress
) -> ImageBatch:
    """Read images, each of which has other pixels.

    Args:
        bundle: The bundle.
        images: A folder; None for the one recorded at export while it is there, else the golden
            images.
        first: Names of images that come before any other; unknown names are ignored.
        limit: How many images at most.
        progress: Called with what is being done.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        ImagesError: There is no image, or none can be read.
    """
    count = _READ_FOR_EACH * limit
    try:
        folder = listed_photos(bundle, images, progress)
    except UsageError:  # no folder is known: the golden images are there always
        photos = bundle_photos(bundle, images, limit=count, progress=progress)
    else:
        files = {file.name: file for file in folder.files}
        wanted = [files.pop(name) for name in dict.fromkeys(first) if name in files][:count]
        if len(wanted) < count:
            wanted += sample_images(list(files.values()), count - len(wanted))
        photos = folder.read(wanted, bundle.manifest.preprocessing)
    drawn: dict[str, ImageBatch] = {}
    for names, batch in photos:
        drawn.update(zip(names, batch.copy(), strict=True))  # the buffer behind them is reused
    photos.drawn()  # refuses to go on without any
    order = [*dict.fromkeys([*(name for name in first if name in drawn), *drawn])]
    return np.stack([drawn[name] for name in order[:limit]])
