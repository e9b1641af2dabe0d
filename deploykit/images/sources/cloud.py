"""The images below a prefix of cloud storage, listed page by page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from deploykit.errors import ImagesError
from deploykit.images.scan import IMAGE_EXTENSIONS, ImageFile, class_folder, escape_name
from deploykit.images.sources import CONTAINER_ENDINGS, SourceFile, Stamp, etag_of
from deploykit.images.sources.folder import ListedSource
from deploykit.system.cloud import CloudPath, file_system, telling

_ENDINGS = tuple(IMAGE_EXTENSIONS)


class PrefixSource:
    """The images below a prefix; where there is none, those in the archives below it.

    Args:
        path: The prefix.
        labels: The model's classes.
    """

    def __init__(self, path: CloudPath, labels: Collection[str]) -> None:
        self.path: Path = path
        self.root: Path = path
        self._prefix = path
        self._classes = {label: label for label in labels}
        self.skipped = 0

    def __iter__(self) -> Iterator[ImageFile]:
        """See :class:`deploykit.images.sources.Source`."""
        self.skipped, has_images = 0, False
        containers = list[str]()
        for item in objects_below(self._prefix):
            name = "/".join(map(escape_name, item.name.split("/")))
            if name.lower().endswith(_ENDINGS):
                has_images = True
                expected = self._classes.get(class_folder(name, self._classes))
                yield SourceFile(self.root, name, expected, size=item.size, changed=item.stamp)
            else:
                self.skipped += 1
                if not has_images and name.lower().endswith(CONTAINER_ENDINGS):
                    containers.append(name)
        if has_images:
            return
        if not containers:
            raise ImagesError(
                f"No image in {self.path} (other objects: {self.skipped}).",
                hint=f"Images are told by their ending: {' '.join(sorted(_ENDINGS))}.",
            )
        listed = ListedSource(self.path, self.root, containers, self._classes)
        yield from listed
        self.skipped = listed.skipped


class _Object(NamedTuple):
    name: str  # below the prefix
    size: int
    stamp: Stamp


def objects_below(prefix: CloudPath) -> Iterator[_Object]:
    """List objects, in the order of their names, and never many in memory where the service pages.

    Raises:
        OSError: The service refuses to.
    """
    bucket, _, key = prefix.key.partition("/")
    start = f"{key.rstrip('/')}/" if key else ""
    pages = {"s3": _s3, "s3a": _s3, "gs": _gs, "gcs": _gs}.get(prefix.protocol)
    found = _any(prefix) if pages is None else pages(prefix, bucket, start)
    for item in found:
        name = item.name.removeprefix(start)
        if name and not name.endswith("/"):
            yield item._replace(name=name)


def _s3(prefix: CloudPath, bucket: str, start: str) -> Iterator[_Object]:
    fs, more = file_system(prefix.protocol), dict[str, str]()
    while True:
        with telling(prefix):
            page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=start, **more)
        for each in page.get("Contents", ()):
            yield _Object(each["Key"], each["Size"], etag_of(each))
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _gs(prefix: CloudPath, bucket: str, start: str) -> Iterator[_Object]:
    fs, more = file_system(prefix.protocol), dict[str, str]()
    while True:
        with telling(prefix):
            page = fs.call("GET", "b/{}/o", bucket, prefix=start, json_out=True, **more)
        for each in page.get("items", ()):
            yield _Object(each["name"], int(each["size"]), etag_of(each))
        if "nextPageToken" not in page:
            return
        more = {"pageToken": page["nextPageToken"]}


def _any(prefix: CloudPath) -> Iterator[_Object]:
    with telling(prefix):
        found = file_system(prefix.protocol).find(prefix.key, detail=True)
    for name in sorted(found):
        bucket_and_key = name.lstrip("/").partition("/")
        yield _Object(bucket_and_key[2], int(found[name]["size"]), etag_of(found[name]))
