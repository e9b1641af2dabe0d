"""What is right of the images that are predicted, out of a table of labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from deploykit.errors import InputError
from deploykit.images.label_tables import LabelTable, read_label_table
from deploykit.images.scan import Scan
from deploykit.specs.model import Labels
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted


@dataclass(frozen=True)
class Truth:
    """The classes that a table gives images.

    Attributes:
        rows: The classes of each image that the table names, by the image's name.
        sha256: The table's, see :class:`deploykit.images.label_tables.LabelTable`.
    """

    rows: Mapping[str, tuple[str, ...]]
    sha256: str


def read_truth(path: Path, scan: Scan, labels: Labels, progress: Progress = silent) -> Truth:
    """Find a table's rows for images.

    A path of the table is relative to the folder of the images; or an image's whole path ends with
    it, and no other image's does: so it may be absolute, or a bare file name.

    Args:
        path: See :func:`deploykit.images.label_tables.read_label_table`.
        scan: The images.
        labels: The classes, and whether an image may be of several.
        progress: Called with how many rows match no image, and how many images have no row.

    Raises:
        InputError: The table cannot be read or is not clear, or no row matches an image.
    """
    table = read_label_table(path, labels.names, several=labels.head.several)
    matched = _matched(table, scan.root, [file.name for file in scan.files])
    places = {place for place in matched if place is not None}
    strangers = [name for name, place in zip(table.rows, matched, strict=True) if place is None]
    if not places:
        raise InputError(
            f"No row of {path} matches an image of {scan.path}.",
            hint=f"Write its paths relative to {scan.root}: an image there is "
            f"{scan.files[0].name}, the first row of the table is {strangers[0]}.",
        )
    if strangers:
        progress(
            Note(
                f"{path}: {len(strangers):,} of {counted(len(table.rows), 'row')} match no image, "
                f"the first is {strangers[0]}"
            )
        )
    if len(places) < len(scan.files):
        progress(
            Note(
                f"{path} has no row for {len(scan.files) - len(places):,} of "
                f"{counted(len(scan.files), 'image')}: their classes are not known"
            )
        )
    found = zip(matched, table.rows.values(), strict=True)
    return Truth({place: classes for place, classes in found if place is not None}, table.sha256)


def _matched(table: LabelTable, root: Path, names: Iterable[str]) -> list[str | None]:
    """The image that each of a table's rows is for; no image has two.

    A row whose path is no image's name may be for the one image whose whole path ends with it.
    """
    known = set(names)
    others = {row for row in table.rows if row not in known}
    ends: dict[str, set[str]] = {}
    folders = {root.absolute().as_posix(), root.resolve().as_posix()} if others else set[str]()
    for folder, name in itertools.product(folders, known):
        path = name if PurePath(name).is_absolute() else f"{folder}/{name}"
        if path in others:
            ends.setdefault(path, set()).add(name)
        start = path.rfind("/")
        while start >= 0:
            if (end := path[start + 1 :]) in others:
                ends.setdefault(end, set()).add(name)
            start = path.rfind("/", 0, start)
    found: list[str | None] = []
    taken = known.intersection(table.rows)
    for row in table.rows:
        images = [row] if row in known else [*ends.get(row, ())]
        if len(images) == 1 and (row in known or images[0] not in taken):
            taken.add(images[0])
            found.append(images[0])
        else:
            found.append(None)
    return found
