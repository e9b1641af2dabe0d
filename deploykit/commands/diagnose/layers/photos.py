"""The photos to walk on: those that were named, then a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.errors import UsageError
from deploykit.images.scan import sample_images
from deploykit.proof.photos import Photos, bundle_photos, listed_photos
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import Progress, Step


@dataclass(frozen=True, eq=False)
class Sample:
    """Photos in memory, each of which shows other pixels.

    Attributes:
        names: Of the N photos.
        images: (N, H, W, 3) uint8.
        named: How many of them, at the beginning, were asked for by name.
        population: How many photos there are where they come from, but for copies that were read.
    """

    names: tuple[str, ...]
    images: ImageBatch
    named: int
    population: int


def drawn_sample(
    bundle: Bundle, images: Path | None, first: Sequence[str], limit: int, progress: Progress
) -> Sample:
    """Read photos from where :func:`deploykit.proof.photos.bundle_photos` finds them.

    Args:
        bundle: The bundle.
        images: A folder of photos; None for the one recorded at export while it is there, else the
            golden images.
        first: Names of photos that come before any other; others' names are left out.
        limit: How many photos at most.
        progress: Called with what is being done.

    Raises:
        ImagesError: There is no photo, or none can be read.
    """
    try:
        folder = listed_photos(bundle, images, progress)
    except UsageError:  # no folder is known: the golden images are there always
        photos = bundle_photos(bundle, images, limit=None, progress=progress)
        return _ordered(photos, first, limit, photos.count, progress)
    files = {file.name: file for file in folder.files}
    known = [name for name in dict.fromkeys(first) if name in files]
    wanted = [files.pop(name) for name in known[:limit]]
    if len(wanted) < limit:
        wanted += sample_images(list(files.values()), limit - len(wanted))
    photos = folder.read(wanted, bundle.manifest.preprocessing)
    return _ordered(photos, first, limit, len(folder.files), progress)


def _ordered(
    photos: Photos, first: Sequence[str], limit: int, population: int, progress: Progress
) -> Sample:
    """Draw photos, those with a name of the first before all others."""
    drawn: dict[str, ImageBatch] = {}
    for names, images in photos:
        drawn.update(zip(names, images.copy(), strict=True))  # the buffer behind them is reused
        progress(Step("reading photos", len(drawn), photos.count))
    duplicates = photos.drawn().duplicates  # refuses to go on without any
    named = [name for name in dict.fromkeys(first) if name in drawn]
    names = tuple([*dict.fromkeys([*named, *drawn])][:limit])
    return Sample(
        names=names,
        images=np.stack([drawn[name] for name in names]),
        named=len({*named} & {*names}),
        population=population - duplicates,
    )
