"""Images in a column of bytes of a Parquet file, Hugging Face's layout among them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from deploykit.errors import ImagesError
from deploykit.images.sources.containers import DamagedError, Member, UnreadableError, check_size
from deploykit.system.deps import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")
_NAMES = ("path", "name", "file_name", "filename", "file", "image_path", "__key__")
_LABEL = "label"
_ROWS_OF_NAMES = 4096
#: Pages of a column are read as they are needed, so that no group is in memory as a whole.
_BUFFER_BYTES = 2**20
_ROWS_AHEAD = 8


class Parquet:
    """See :class:`~deploykit.images.sources.containers.Container`.

    ``at`` is the number of a row.

    A row can be read only behind those of its group before it, hence by one thread that goes
    through them in order.
    """

    threads, before_names = 1, "/"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: _Column | None = None

    def members(self, place: Path, count: Callable[[], None]) -> Iterator[Member]:  # noqa: ARG002
        """List the rows; those without an image, too."""
        with place.open("rb") as stream:
            file = _opened(place, stream)
            _, name, label = _columns(place, file.schema_arrow)
            wanted = list(filter(None, (name, label)))
            at = 0
            if not wanted:
                rows = int(file.metadata.num_rows)
                digits = len(str(max(0, rows - 1)))
                yield from (Member(f"{row:0{digits}}", row) for row in range(rows))
                return
            for batch in _batches(file, batch_size=_ROWS_OF_NAMES, columns=wanted):
                names = _values(batch, name) if name else [None] * len(batch)
                labels = _values(batch, label) if label else [None] * len(batch)
                for given, known in zip(names, labels, strict=True):
                    yield Member(str(at) if given is None else str(given), at, label=known)
                    at += 1

    def read(self, place: Path, at: int, size: int | None) -> bytes:  # noqa: ARG002
        """See :class:`deploykit.images.sources.containers.Container`."""
        with self._lock:
            if self._open is None or self._open.place != place or self._open.next > at:
                self._close()
                self._open = _Column(place)
            try:
                value = self._open.value(at)
            except BaseException:
                self._close()
                raise
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
            if value is None and path:
                raise UnreadableError("vanished", f"The row has no bytes, but a path: {path}.")
        if not value:
            raise UnreadableError("truncated", "The row has no bytes.")
        check_size(len(value))
        return bytes(value)

    def close(self) -> None:
        """See :class:`~deploykit.images.sources.containers.Container`."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class _Column:
    """The images of a file, row by row.

    Attributes:
        place: The file.
        next: The row that can be read next, or any behind.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.next = place, 0
        self._stream = place.open("rb")
        self._file = _opened(place, self._stream)
        self._column = _columns(place, self._file.schema_arrow)[0]
        self._group_stop = 0
        self._rows: Iterator[Any] = iter(())

    def value(self, at: int) -> Any:
        """What a row has in the column: bytes, a struct, or None."""
        if at >= self._group_stop:
            self._begin_group_of(at)
        try:
            while self.next < at:
                next(self._rows)
                self.next += 1
            found = next(self._rows)
        except StopIteration:
            raise UnreadableError("vanished", f"The file has no row {at}.") from None
        self.next += 1
        return found.as_py()

    def close(self) -> None:
        self._rows = iter(())  # what reads the group ends before its file does
        self._file.close()
        self._stream.close()

    def _begin_group_of(self, at: int) -> None:
        start = 0
        for group in range(self._file.metadata.num_row_groups):
            stop = start + self._file.metadata.row_group(group).num_rows
            if start <= at < stop:
                batches = _batches(
                    self._file,
                    batch_size=_ROWS_AHEAD,
                    row_groups=[group],
                    columns=[self._column],
                )
                self._rows = (value for batch in batches for value in batch.column(0))
                self.next, self._group_stop = start, stop
                return
            start = stop
        raise UnreadableError("vanished", f"The file has no row {at}.")


def _opened(place: Path, stream: Any) -> Any:
    pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    try:
        return parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as exc:
        raise DamagedError(f"{place}: {exc}") from exc


def _batches(file: Any, **options: Any) -> Iterator[Any]:
    # Looked up now: a file that is still open when Python ends is left when pyarrow has no names.
    failures = need("pyarrow").ArrowException, OSError
    try:
        yield from file.iter_batches(use_threads=False, **options)
    except failures as exc:
        raise DamagedError(str(exc)) from exc


def _values(batch: Any, column: str) -> list[Any]:
    """A column's values, or those of a struct's field: ``image.path``."""
    name, _, field = column.partition(".")
    values = batch.column(batch.schema.get_field_index(name)).to_pylist()
    return [value and value.get(field) for value in values] if field else values


def _columns(place: Path, schema: Any) -> tuple[str, str | None, str | None]:
    """The columns of images, of names, and of classes; None where there is none.

    Raises:
        ImagesError: It has no column of images, or several and none is called like one.
    """
    types = need("pyarrow").types
    texts = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = [field for field in schema if holds_bytes(field.type)]
    called = [field for known in _IMAGES for field in found if field.name.lower() == known]
    if not called and len(found) != 1:
        there = ", ".join(field.name for field in found) or "no column of bytes"
        raise ImagesError(
            f"{place} does not say which column has the images: {there}.",
            hint="Call the column of the files' bytes image.",
        )
    image = (called or found)[0]
    name = next((text for known in _NAMES for text in texts if text.lower() == known), None)
    if name is None and types.is_struct(image.type) and image.type.get_field_index("path") >= 0:
        name = f"{image.name}.path"
    return image.name, name, _LABEL if _LABEL in texts else None
