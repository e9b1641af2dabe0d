"""What is right of the images that are predicted, out of a table of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

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

    A path of the table is relative to the folder of the images, or leads there from elsewhere; or
    it is a bare file name that one image has.

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
            hint=f"Its paths are relative to {scan.root}: the first image there is "
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
    """The image that each of a table's rows is for; what is called by its own name comes first."""
    known = set(names)
    bare = Counter(name.rpartition("/")[2] for name in known)
    only = {last: name for name in known if bare[last := name.rpartition("/")[2]] == 1}
    here = root.absolute().as_posix().rstrip("/")
    # As the folder was given, from the root of the system, and where links lead.
    folders = {f"{each.as_posix().rstrip('/')}/" for each in (root, root.resolve())} | {f"{here}/"}
    found = {row: row for row in table.rows if row in known}
    taken = {*found}
    for row in table.rows:
        inside = (row.removeprefix(folder) for folder in folders if row.startswith(folder))
        for place in (*inside, f"{here}/{row}", only.get(row)):
            if row not in found and place in known and place not in taken:
                found[row] = place
                taken.add(place)
    return [found.get(row) for row in table.rows]
