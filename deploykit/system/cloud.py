"""Objects of cloud storage and the web by their URLs, through fsspec.

Credentials are the environment's, or those of fsspec's own configuration: no option names any.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from deploykit.errors import DeploykitError, UsageError
from deploykit.system.deps import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if sys.platform == "win32":
    from pathlib import WindowsPath as _SystemPath
else:
    from pathlib import PosixPath as _SystemPath

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(?=[^/])")
#: Where fsspec's package for a protocol has another name than fsspec itself.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's account",
}
_CREDENTIALS["s3a"], _CREDENTIALS["gcs"] = _CREDENTIALS["s3"], _CREDENTIALS["gs"]
#: What an exception of a service's own library is called that has no credentials.
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound"}
)
_REFUSED = frozenset({401, 403})


class CloudPath(_SystemPath):
    """A path that leads to an object by its URL; other paths lead to files.

    What it asks of the service raises an OSError, which names bucket or object.
    """

    def __str__(self) -> str:
        """The URL, as it was given: a key may have two slashes, and a path has not."""
        given: str = self.__dict__.get("given", "")
        return given or super().__str__().replace(os.sep, "/").replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Callable[[str], Path], tuple[str]]:
        return as_path, (str(self),)

    @property
    def protocol(self) -> str:
        """``s3``."""
        return str(self).partition("://")[0].lower()

    @property
    def is_web(self) -> bool:
        """Whether a web server answers, which lists nothing and takes nothing."""
        return self.protocol in ("http", "https")

    @property
    def key(self) -> str:
        """What fsspec's file system calls it: ``bucket/photos/a.jpg``, and a URL of the web."""
        return str(self) if self.is_web else str(self).partition("://")[2]

    def absolute(self) -> Self:
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> Self:  # noqa: ARG002  # as of Path
        """Itself."""
        return self

    def is_symlink(self) -> bool:
        """No URL is one."""
        return False

    def info(self) -> dict[str, Any]:
        """What the service says of the object."""
        with telling(self):
            return dict(file_system(self.protocol).info(self.key))

    def is_file(self) -> bool:
        """Whether it is an object."""
        try:
            return str(self.info().get("type")) != "directory"
        except FileNotFoundError:
            return False

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002  # as of Path
        """Whether it is an object."""
        return self.is_file()

    def is_dir(self) -> bool:
        """No: a prefix is no object."""
        return False

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # type: ignore[override]
        """Open it to be read, in bytes."""
        if mode != "rb":
            raise OSError(errno.EINVAL, "an object is written as a whole", str(self))
        with telling(self):
            opened: IO[Any] = file_system(self.protocol).open(self.key, "rb")
        return opened

    def read_bytes(self) -> bytes:
        """The object's contents."""
        with telling(self):
            return bytes(file_system(self.protocol).cat_file(self.key))

    def read_range(self, start: int, size: int) -> bytes:
        """A part of it."""
        with telling(self):
            data = file_system(self.protocol).cat_file(self.key, start=start, end=start + size)
        return bytes(data)

    def read_up_to(self, limit: int) -> bytes:
        """What a web server sends of it, at most so many bytes."""
        parts: list[bytes] = []
        with telling(self):
            # A size that is said keeps fsspec from asking for one first.
            options = {"block_size": 0, "size": 1}
            with file_system(self.protocol).open(self.key, "rb", **options) as stream:
                while limit > 0 and (part := stream.read(min(limit, 2**20))):
                    parts.append(part)
                    limit -= len(part)
        return b"".join(parts)

    def write_bytes(self, data: Any, *, new: bool = False) -> int:
        """Write it as a whole.

        Args:
            data: What to write.
            new: Whether to leave one that is there; then FileExistsError.
        """
        mode = "create" if new else "overwrite"
        with telling(self):
            file_system(self.protocol).pipe_file(self.key, bytes(data), mode=mode)
        return len(data)

    def upload(self, file: Path) -> None:
        """Write what a file has in it."""
        with telling(self):
            file_system(self.protocol).put_file(os.fspath(file), self.key)

    def download(self, file: Path) -> None:
        """Write it into a file."""
        with telling(self):
            file_system(self.protocol).get_file(self.key, os.fspath(file))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it."""
        try:
            with telling(self):
                file_system(self.protocol).rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def names(self) -> list[str]:
        """What lies directly below it as below a folder, as it is now."""
        fs = file_system(self.protocol)
        try:
            with telling(self):
                fs.invalidate_cache()
                found = fs.ls(self.key, detail=False)
        except FileNotFoundError:
            return []
        return [name.rstrip("/").rpartition("/")[2] for name in found]


def as_path(text: str | Path) -> Path:
    """A path; of a URL, ``s3://bucket/key``, a :class:`CloudPath`."""
    if isinstance(text, Path):
        return text
    match = _URL.match(text)
    if match is None:
        return Path(text)
    path = CloudPath(text)
    if str(path) != text.rstrip("/"):
        path.__dict__["given"] = text
    return path


def is_url(text: str) -> bool:
    """Whether a text is a URL, and no path."""
    return _URL.match(text) is not None


@functools.cache
def file_system(protocol: str) -> Any:
    """Fsspec's file system of a protocol, the same for all threads.

    Raises:
        UsageError: There is none.
        DependencyError: fsspec, or what it needs for this service, is not installed.
    """
    fsspec = need("fsspec")
    need(_PACKAGES.get("http" if protocol == "https" else protocol, "fsspec"))
    try:
        # What it lists is kept nowhere: a million names would stay in memory.
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except (ImportError, ValueError) as exc:
        raise UsageError(
            f"{protocol}:// is nothing that is read here: {exc}.",
            hint="Give an s3://, gs:// or https:// URL, or a path.",
        ) from exc


@contextlib.contextmanager
def telling(path: CloudPath) -> Iterator[None]:
    """Turn what a service's library raises into an OSError that says which name is meant."""
    try:
        yield
    except DeploykitError:
        raise
    except Exception as exc:
        raise _as_os_error(path, exc) from exc


def _as_os_error(path: CloudPath, exc: Exception) -> OSError:
    said = " ".join(str(exc).split()).rstrip(".") or type(exc).__name__
    status = getattr(exc, "status", None) or getattr(exc, "code", None)
    bucket = path.key.partition("/")[0]
    names = {type(each).__name__ for each in (exc, exc.__cause__, exc.__context__) if each}
    if isinstance(exc, FileExistsError):
        return FileExistsError(errno.EEXIST, "it is there already", str(path))
    if isinstance(exc, PermissionError) or status in _REFUSED:
        return PermissionError(errno.EACCES, f"{path}: permission denied ({said})", str(path))
    if names & _NO_CREDENTIALS:
        where = _CREDENTIALS.get(path.protocol, "the environment")
        return PermissionError(
            errno.EACCES, f"there are no credentials for {path}; set {where}", str(path)
        )
    if "NoSuchBucket" in names or "bucket does not exist" in said:
        return _NoBucketError(errno.ENOENT, f"the bucket {bucket} does not exist", str(path))
    if isinstance(exc, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, f"{path} is not there", str(path))
    return ConnectionError(errno.EIO, f"{path}: {said}", str(path))


class _NoBucketError(ConnectionError):
    """What is true of all objects of a bucket is said of none."""
