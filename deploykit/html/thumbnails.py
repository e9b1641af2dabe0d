"""Small pictures for a page: which photos get one, and how they are made."""

from __future__ import annotations

import contextlib
import heapq
import io
import zlib
from contextlib import closing
from typing import TYPE_CHECKING

from PIL import Image

from deploykit.errors import InputError
from deploykit.images.batches import default_threads
from deploykit.images.decode import decoded_rgb
from deploykit.images.scan import ImageFile
from deploykit.images.sources import SourceFile
from deploykit.system.progress import Progress, Step, silent
from deploykit.system.threads import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from deploykit.specs.prediction import Prediction

#: Up to this many photos all get a thumbnail: about 7 MB of page.
MOST_THUMBNAILS = 2000
_LOWEST_MARGINS = 800
_WRONG = 800
_SAMPLES = 400

#: Of the longer side, in pixels: cards show it at about this size.
_SIDE = 128
_QUALITY = 60
# Decoded at no less than this many times the side and then resized, photos look as good.
_REDUCING_GAP = 2


class ThumbnailChoice:
    """Which rows of a stream get a thumbnail, in memory that does not grow with the stream.

    All of them, up to ``MOST_THUMBNAILS``. Of more, the lowest margins, the wrong ones that the
    network was surest of, and a sample of each class: the rows that a person looks for.

    Args:
        classes: K, which says how many of a class are a sample.
    """

    def __init__(self, classes: int) -> None:
        self._first: list[tuple[int, str]] = []
        self._readable = 0
        self._lowest_margins = _Smallest(_LOWEST_MARGINS)
        self._wrong = _Smallest(_WRONG)
        self._samples: dict[str, _Smallest] = {}
        self._sample_size = max(1, _SAMPLES // classes)

    @property
    def complete(self) -> bool:
        """Whether every readable image gets one."""
        return self._readable <= MOST_THUMBNAILS

    def add(self, index: int, row: Prediction) -> None:
        """Consider a row.

        Args:
            index: Its place in the stream.
            row: The row; one without a prediction gets no thumbnail.
        """
        if not row.ok or row.margin is None:
            return
        self._readable += 1
        image = (index, row.path)
        if self.complete:
            self._first.append(image)
        self._lowest_margins.add(row.margin, image)
        if row.truth is not None and {*row.truth} != {*row.decided}:
            self._wrong.add(-row.margin, image)
        for label in row.decided or ("",):
            if label in self._samples or len(self._samples) < _SAMPLES:
                sample = self._samples.setdefault(label, _Smallest(self._sample_size))
                sample.add(zlib.crc32(row.path.encode("utf-8", "backslashreplace")), image)

    def chosen(self) -> list[tuple[int, str]]:
        """The place and the path of each row that gets one, in the stream's order."""
        if self.complete:
            return self._first
        groups = (self._lowest_margins, self._wrong, *self._samples.values())
        return sorted({image for group in groups for image in group})


class _Smallest:
    """The images with the smallest keys of all that were added."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, tuple[int, str]]] = []  # by the negative key: largest on top

    def add(self, key: float, image: tuple[int, str]) -> None:
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (-key, image))
        else:
            heapq.heappushpop(self._heap, (-key, image))

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return (image for _, image in self._heap)


def make_thumbnails(
    images: Sequence[tuple[int, str]],
    root: Path,
    progress: Progress = silent,
    file_at: Callable[[int], ImageFile] | None = None,
) -> Iterator[tuple[int, bytes | None]]:
    """Make small JPEG files on threads, a few ahead of whoever consumes them.

    Args:
        images: The place and the path of each row.
        root: The folder that the paths are relative to.
        progress: Called after every thumbnail.
        file_at: Gives the file of a place; None where all are files below the root.

    Yields:
        Each place with its JPEG; None where the file gives no pixels any more.
    """

    def make(image: tuple[int, str]) -> tuple[int, bytes | None]:
        index, name = image
        file = ImageFile(root, name) if file_at is None else file_at(index)
        return index, _thumbnail(file)

    threads = default_threads()
    made = in_order(make, images, threads=threads, ahead=4 * threads, name="deploykit-thumbnail")
    with closing(made):
        for done, thumbnail in enumerate(made, 1):
            yield thumbnail
            progress(Step("making thumbnails", done, len(images), unit="images"))


def _thumbnail(file: ImageFile) -> bytes | None:
    try:
        with contextlib.ExitStack() as held:
            # What is in an archive has only a name: as a path it could lead to another file.
            data = held.enter_context(file.held()) if isinstance(file, SourceFile) else None
            draft = _REDUCING_GAP * _SIDE
            image = held.enter_context(decoded_rgb(file.path, draft=draft, data=data))
            # In two steps, the first of whole pixels: several times as fast for a large one.
            image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
    except InputError:
        return None
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()
