"""Which classes images are of, as far as a table of labels or their folders tell."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import InputError
from deploykit.images.label_tables import read_label_table
from deploykit.images.scan import Scan, escape_name
from deploykit.specs.model import Labels
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted, visible


@dataclass(frozen=True)
class Truth:
    """The classes that a table gives images.

    Attributes:
        labels: See :class:`deploykit.images.label_tables.LabelTable`.
        rows: The classes of each image that the table names, by the image's name.
        sha256: See :class:`deploykit.images.label_tables.LabelTable`.
    """

    labels: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    sha256: str


def known_classes(
    scan: Scan, labels: Labels, table: Path | None = None, progress: Progress = silent
) -> Mapping[str, tuple[str, ...]]:
    """The right classes of images, by the images' names.

    Args:
        scan: The images.
        labels: The model's.
        table: See :func:`read_truth`; None for what the folders tell.
        progress: See :func:`read_truth`.

    Raises:
        InputError: See :func:`read_truth`.
    """
    if table is not None:
        return read_truth(table, scan, labels, progress).rows
    alone = {name: (name,) for name in labels.folder_names}  # shared by all of a class
    return {file.name: alone[file.expected] for file in scan.files if file.expected in alone}


def read_truth(
    table: Path, scan: Scan, labels: Labels | None = None, progress: Progress = silent
) -> Truth:
    """Find the rows of a table that are for images.

    Args:
        table: A CSV, as :func:`deploykit.images.label_tables.read_label_table` takes it. A path in
            it is absolute, or relative to the folder of the images or to the table's own; or one
            image's whole path ends with it, and no other's: so it may be a bare file name.
        scan: The images.
        labels: The model's; None to take the classes from the table.
        progress: Told how many rows match no image, and how many images have no row.

    Raises:
        InputError: The table cannot be read, matches none of the images, or gives one of them
            several classes or none where the model decides for exactly one.
    """
    if labels is None:
        found = read_label_table(table)
    else:
        found = read_label_table(table, labels.names, several=labels.head.several)
    rows = match_rows(table, found.rows, scan, progress)
    known = {image: found.rows[row] for row, image in rows.items()}
    return Truth(found.labels, known, found.sha256)


def match_rows(
    table: Path,
    rows: Collection[str],
    scan: Scan,
    progress: Progress,
    *,
    from_elsewhere: bool = False,
) -> dict[str, str]:
    """Find the images that the rows of a table are for.

    Args:
        table: See :func:`read_truth`, as for the others.
        rows: The rows' paths.
        scan: The images.
        progress: Told how many rows match no image, and how many images have no row.
        from_elsewhere: Whether the paths may be those of another machine: then what a path ends
            with is enough, at least the file's name where no two images have it.

    Returns:
        The image's name by the row's path.

    Raises:
        InputError: No row matches, or two rows match one image.
    """
    found = _image_of_rows(table, rows, scan)
    if from_elsewhere:
        found |= _by_their_ends(table, [row for row in rows if row not in found], found, scan)
    strangers = [row for row in rows if row not in found]
    if not found:
        raise InputError(
            f"No row of {table} matches an image of {scan.path}: the first row is "
            f"{visible(strangers[0])}, the first image {visible(scan.files[0].name)}.",
            hint="Write the images' paths relative to their folder or to the table's, or their "
            "bare names where no two are alike.",
        )
    if strangers:
        many = counted(len(rows), "row")
        said = f"{table}: {len(strangers):,} of {many} match no image, the first is {strangers[0]}"
        progress(Note(visible(said)))
    known = {*found.values()}
    if others := [file.name for file in scan.files if file.name not in known]:
        many = counted(len(scan.files), "image")
        said = f"{table} has no row for {len(others):,} of {many}, the first is {others[0]}"
        progress(Note(visible(said)))
    return found


def table_order(table: Path, labels: Labels) -> tuple[str, ...]:
    """The model's classes in the order of a table's columns, else sorted; () if it has others."""
    order = read_label_table(table).labels
    return order if {*order} == {*labels.names} else ()


def _image_of_rows(table: Path, rows: Iterable[str], scan: Scan) -> dict[str, str]:
    """The image that each row is for, by the row's path; no image has two rows.

    Raises:
        InputError: Two rows' paths lead to one image.
    """
    files = [file.name for file in scan.files]
    names = {_slashed(name): name for name in files} | {name: name for name in files}
    roots = _spellings(scan.root)
    folders = dict.fromkeys((*roots, *_spellings(table.parent)))
    found, row_of, ends = dict[str, str](), dict[str, str](), dict[str, set[str]]()
    for row in rows:
        paths = itertools.chain([row], (_joined(folder, row) for folder in folders))
        below = (path.removeprefix(root) for path in paths for root in ("", *roots))
        image = next((names[path] for path in below if path in names), None)
        if image is None:
            ends[_joined("", row)] = set()
        elif (other := row_of.setdefault(image, row)) != row:
            raise InputError(
                f"The labels in {table} are not clear: {visible(other)} and {visible(row)} are the "
                "same image.",
                hint="Give each image one row.",
            )
        else:
            found[row] = image
    for root, name in itertools.product(roots if ends else (), files):
        path = _joined(root, name)
        for start in (0, *(slash.end() for slash in re.finditer("/", path))):
            if (end := path[start:]) in ends:
                ends[end].add(name)
    for row in sorted({*rows} - found.keys(), key=len, reverse=True):  # the longest says most
        images = ends[_joined("", row)]
        if len(images) == 1 and row_of.keys().isdisjoint(images):
            (found[row],) = images
            row_of[found[row]] = row
    return found


def _by_their_ends(
    table: Path, rows: Iterable[str], found: Mapping[str, str], scan: Scan
) -> dict[str, str]:
    """The image that each path of another machine is for: the longest end that is one's name.

    Raises:
        InputError: Two rows' paths lead to one image.
    """
    names = {_slashed(file.name): file.name for file in scan.files}
    alike = Counter(name.rpartition("/")[2] for name in names)
    bare = {path.rpartition("/")[2]: name for path, name in names.items()}
    bare = {base: name for base, name in bare.items() if alike[base] == 1}
    row_of = {image: row for row, image in found.items()}
    more: dict[str, str] = {}
    for row in rows:
        path = _slashed(row)
        ends = (path[slash.end() :] for slash in re.finditer("/", path))
        image = next((names[end] for end in ends if end in names), None)
        image = image or bare.get(path.rpartition("/")[2])
        if image is None:
            continue
        if (other := row_of.setdefault(image, row)) != row:
            raise InputError(
                f"The rows of {table} are not clear: {visible(other)} and {visible(row)} may both "
                f"be {visible(image)}.",
                hint="Give each image one row, with its path relative to the images' folder.",
            )
        more[row] = image
    return more


def _spellings(folder: Path) -> tuple[str, ...]:
    """A folder's whole path, as given and without links, with a slash behind, as tables have it."""
    paths = (path.as_posix().split("/") for path in (folder.absolute(), folder.resolve()))
    names = (_joined("", "/".join(map(escape_name, parts))) for parts in paths)
    return tuple(dict.fromkeys(f"{name.rstrip('/')}/" for name in names))


def _joined(folder: str, path: str) -> str:
    """A path below a folder, unless it is absolute, without ``..``."""
    return _slashed(os.path.normpath(Path(folder, path)))


def _slashed(path: str) -> str:
    """A path as a table has it: without a backslash, not even that of an escape."""
    return path.replace("\\", "/")
