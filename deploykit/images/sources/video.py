"""Frames of a video, one every so many seconds."""

from __future__ import annotations

import re
import threading
from array import array
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from deploykit.errors import UsageError
from deploykit.images.sources.containers import DamagedError, Member, UnreadableError, check_size
from deploykit.system.deps import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEFAULT_EVERY = Fraction(1)
_MILLISECONDS = {"": 1000, "s": 1000, "ms": 1, "m": 60_000, "min": 60_000, "h": 3_600_000}
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]*)")
#: What lies further ahead is looked for from the key frame before it.
_DECODED_SECONDS = 5
#: FFmpeg's names of the files that say how long they are; of others it guesses.
_ANNOUNCED = frozenset({"asf", "matroska", "mov"})
#: What a whole file may be shorter than it says.
_MISSING_SECONDS = 1


def parsed_every(text: str | float) -> Fraction:
    """Seconds from ``2s``, ``500ms``, ``1m`` or a number.

    Raises:
        UsageError: It is none, or nothing.
    """
    match = _TIME.fullmatch(str(text).strip())
    unit = _MILLISECONDS.get(match[2], 0) if match else 0
    seconds = Fraction(match[1]) * unit / 1000 if match else Fraction(0)
    if not seconds:
        raise UsageError(f"--every {text} is no time.", hint="Write it as 2s, 500ms or 1m.")
    return seconds


class Video:
    """See :class:`~deploykit.images.sources.containers.Container`.

    ``at`` is a frame's own time stamp.

    Args:
        every: Seconds from one frame that is listed to the next.
    """

    threads, before_names = 1, "@"

    def __init__(self, every: Fraction = DEFAULT_EVERY) -> None:
        self._every = every
        self._lock = threading.Lock()
        self._open: _Frames | None = None

    def members(self, place: Path, count: Callable[[], None]) -> Iterator[Member]:  # noqa: ARG002
        """List the first frame, and then the first that is as many seconds later, and so on.

        No frame is decoded: the packets have their times.
        """
        av = need("av")
        with place.open("rb") as file:
            try:
                with av.open(file) as video:
                    stream = video.streams.video[0]
                    base = stream.time_base
                    times, end = _times(video, stream)
                    missing = _announced(video, av.time_base) - end
            except (av.FFmpegError, IndexError, ValueError) as exc:
                raise DamagedError(str(exc)) from exc
        if not times or not base:
            raise DamagedError("it has no frames")
        start = wanted = min(times)
        for time in sorted(times):  # packets come in the order of decoding
            if time >= wanted:
                seconds = (time - start) * base
                yield Member(_shown(seconds), time)
                wanted = start + (seconds // self._every + 1) * self._every / base
        if missing > _MISSING_SECONDS:
            raise DamagedError(f"its last {float(missing):.1f} s are missing")

    def read(self, place: Path, at: int, size: int | None) -> bytes:  # noqa: ARG002
        """A frame as a PPM file: its pixels as they are, upright as players show it."""
        with self._lock:
            if self._open is None or self._open.place != place:
                self._close()
                self._open = _Frames(place)
            try:
                return self._open.frame(at)
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """See :class:`~deploykit.images.sources.containers.Container`."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class _Frames:
    """An open video.

    Attributes:
        place: The file.
    """

    def __init__(self, place: Path) -> None:
        av = need("av")
        self.place = place
        self._file = place.open("rb")
        try:
            self._video = av.open(self._file)
        except av.FFmpegError as exc:
            self._file.close()
            raise UnreadableError("corrupt", f"The video cannot be opened: {exc}.") from exc
        self._stream = self._video.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._frames: Iterator[Any] | None = None
        self._time = 0

    def frame(self, at: int) -> bytes:
        """The frame of a time stamp."""
        av = need("av")
        ahead = (at - self._time) * (self._stream.time_base or 0)
        try:
            if self._frames is None or not 0 < ahead <= _DECODED_SECONDS:
                self._video.seek(at, stream=self._stream)
                self._frames = self._video.decode(self._stream)
            for frame in self._frames:
                if frame.pts is not None and frame.pts >= at:
                    self._time = frame.pts
                    if frame.pts > at:
                        break
                    return _ppm(frame)
        except av.FFmpegError as exc:
            raise UnreadableError("corrupt", f"The frame cannot be decoded: {exc}.") from exc
        raise UnreadableError("corrupt", "The video has no such frame any more.")

    def close(self) -> None:
        self._video.close()
        self._file.close()


def _times(video: Any, stream: Any) -> tuple[array[int], Fraction]:
    """When each frame is shown, in the order of decoding; and where the last of all streams ends.

    In seconds is only the latter.
    """
    times, end = array("q"), Fraction(0)
    for packet in video.demux():
        if packet.pts is None:
            continue
        if packet.stream_index == stream.index:
            times.append(packet.pts)
        end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
    return times, end


def _announced(video: Any, base: int) -> Fraction:
    """Where the file says that it ends, in seconds; 0 where it does not."""
    if not _ANNOUNCED.intersection(video.format.name.split(",")):
        return Fraction(0)
    return Fraction((video.duration or 0) + (video.start_time or 0), base)


def _shown(seconds: Fraction) -> str:
    """``00:00:12.000``."""
    milliseconds = round(seconds * 1000)
    minutes, left = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{left // 1000:02}.{left % 1000:03}"


def _ppm(frame: Any) -> bytes:
    import numpy as np

    check_size(3 * frame.width * frame.height)
    pixels = frame.to_ndarray(format="rgb24")
    # What a phone was held like stands beside the frames, counter-clockwise.
    pixels = np.rot90(pixels, frame.rotation // 90)
    height, width = pixels.shape[:2]
    header = f"P6 {width} {height} 255\n"
    return header.encode() + bytes(pixels.tobytes())
