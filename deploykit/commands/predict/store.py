"""Where the files of a run's folder are: on this machine, or objects of cloud storage.

Each file appears whole. Of two that make the same one, both are told which is there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploykit.system.cloud import CloudPath
from deploykit.system.files import open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader, BufferedWriter


class Store(Protocol):
    """A folder with one of parts in it. What fails raises an OSError."""

    def create(self, path: Path, data: bytes) -> bool:
        """Make a file, unless there is one of its name; tell whether it was made."""
        ...

    def put(self, path: Path, data: bytes) -> None:
        """Make a file, or replace it."""
        ...

    @contextmanager
    def writing(self) -> Iterator[tuple[BufferedWriter, Callable[[Path], None]]]:
        """Write a file in pieces; it appears when the name that it is to have is told."""
        ...

    @contextmanager
    def reading(self, path: Path) -> Iterator[BufferedReader]:
        """Open a file, to read any part of it."""
        ...

    def names(self, folder: Path) -> list[str]:
        """What is in a folder; nothing where there is none."""
        ...

    def remove(self, paths: list[Path]) -> None:
        """Remove files, and folders that hold nothing else."""
        ...


def store_of(folder: Path, parts: Path) -> Store:
    """The store of a run's folder.

    Args:
        folder: It need not be there yet.
        parts: The folder of its parts.
    """
    return _Cloud() if isinstance(folder, CloudPath) else _Local(folder, parts)


class _Local:
    def __init__(self, folder: Path, parts: Path) -> None:
        self._folder, self._parts = folder, parts

    def create(self, path: Path, data: bytes) -> bool:
        with self._partial(path) as partial:
            partial.write_bytes(data)
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                if path.exists():
                    return False
                partial.replace(path)
        return True

    def put(self, path: Path, data: bytes) -> None:
        with self._partial(path) as partial:
            partial.write_bytes(data)
            partial.replace(path)

    @contextmanager
    def writing(self) -> Iterator[tuple[BufferedWriter, Callable[[Path], None]]]:
        self._parts.mkdir(parents=True, exist_ok=True)
        with self._partial(self._folder / "list") as partial, partial.open("wb") as stream:

            def keep(path: Path) -> None:
                stream.close()
                partial.replace(path)

            yield stream, keep

    @contextmanager
    def reading(self, path: Path) -> Iterator[BufferedReader]:
        with open_file(path) as stream:
            yield stream

    def names(self, folder: Path) -> list[str]:
        with suppress(FileNotFoundError):
            return os.listdir(folder)  # noqa: PTH208  # a million of them
        return []

    def remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        if self._parts.exists():
            shutil.rmtree(self._parts)
        with suppress(OSError):  # something else is in it
            self._folder.rmdir()

    @staticmethod
    @contextmanager
    def _partial(path: Path) -> Iterator[Path]:
        """Where to write what is to be moved; it is gone then, or removed."""
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            yield partial
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


class _Cloud:
    def __init__(self) -> None:
        self._copies = Path(tempfile.mkdtemp(prefix="deploykit-"))
        weakref.finalize(self, shutil.rmtree, self._copies, ignore_errors=True)

    def create(self, path: Path, data: bytes) -> bool:
        try:
            _object(path).write_bytes(data, new=True)
        except FileExistsError:
            return False
        return True

    def put(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    @contextmanager
    def writing(self) -> Iterator[tuple[BufferedWriter, Callable[[Path], None]]]:
        copy = self._copies / secrets.token_hex(4)
        with copy.open("wb") as stream:

            def keep(path: Path) -> None:
                stream.close()
                _object(path).upload(copy)
                copy.replace(copy.with_name(path.name))

            yield stream, keep

    @contextmanager
    def reading(self, path: Path) -> Iterator[BufferedReader]:
        copy = self._copies / path.name
        if not copy.exists():  # whose name follows from what is in it
            partial = copy.with_name(secrets.token_hex(4))
            _object(path).download(partial)
            partial.replace(copy)
        with copy.open("rb") as stream:
            yield stream

    def names(self, folder: Path) -> list[str]:
        return _object(folder).names()

    def remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


def _object(path: Path) -> CloudPath:
    if not isinstance(path, CloudPath):
        raise TypeError(f"{path} is no object")
    return path
