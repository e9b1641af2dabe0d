"""Which classes the photos of a training are of, and the head that they are learned with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.label_tables import read_label_table
from deploykit.images.scan import ImageFile, class_folders, scan_images
from deploykit.specs.heads import DEFAULT_THRESHOLD, HeadName, head_of
from deploykit.specs.model import Labels
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted, visible


class LabelledPhotos(NamedTuple):
    """Photos, of which nothing is read yet.

    Attributes:
        labels: The classes in the order of the logits, where they come from, and the head.
        files: The photos whose classes are known.
        classes_of: The classes of each, by its name, in the order of the labels.
    """

    labels: Labels
    files: tuple[ImageFile, ...]
    classes_of: dict[str, tuple[str, ...]]


def find_labels(
    folder: Path, table: Path | None, head: HeadName | None, progress: Progress
) -> LabelledPhotos:
    """Find the photos, their classes and the head.

    Args:
        folder: The photos; without a table in one sub-folder a class.
        table: Paths relative to the folder, with the classes of each photo.
        head: As the user says; None for multi-label where a table has a photo of several classes or
            of none, else single-label.
        progress: Told which photos are skipped, and which head a table makes.

    Raises:
        UsageError: There is no such folder, or the labels do not fit the head.
        InputError: The table cannot be read, or is not clear.
        ImagesError: There are fewer than two classes, or the table names none of the photos.
    """
    if table is None:
        names = tuple(class_folders(folder))
        if len(names) < 2:
            raise ImagesError(
                f"{folder} has 1 class folder: {names[0]}.",
                hint="Training needs one folder of photos for each of two classes or more.",
            )
        files = tuple(each for each in scan_images(folder, names).files if each.expected)
        classes_of: dict[str, tuple[str, ...]] = {
            each.name: (str(each.expected),) for each in files
        }
        source = f"folder {folder.resolve().name}"
    else:
        names, files, classes_of = _of_table(folder, table, progress)
        source = f"table {table.name}"
    odd = _not_of_one_class(classes_of)
    chosen = head or ("multi-label" if odd else "single-label")
    labels = Labels(names, source, head_of(chosen, [DEFAULT_THRESHOLD] * len(names)))
    if odd and not labels.head.several:
        raise UsageError(
            f"A {chosen} head gives every photo exactly one class, but in {source} {odd}.",
            hint="--head multi-label takes any number of classes a photo.",
        )
    if head is None and table is not None:  # of folders nobody would expect another
        why = odd or "every photo is of exactly one class (--head takes another)"
        progress(Note(f"head: {chosen}; in {source} {why}"))
    return LabelledPhotos(labels, files, classes_of)


def _of_table(
    folder: Path, table: Path, progress: Progress
) -> tuple[tuple[str, ...], tuple[ImageFile, ...], dict[str, tuple[str, ...]]]:
    """The classes, the photos that are both in the folder and in the table, and their classes."""
    found = read_label_table(table)
    if len(found.labels) < 2:
        raise ImagesError(
            f"The table {table} has {counted(len(found.labels), 'class', 'classes')}"
            f"{visible(''.join(f': {name}' for name in found.labels))}.",
            hint="Training needs two classes or more. For yes and no, give each photo one of two "
            "names (a.jpg,cat and b.jpg,other) instead of 1 and 0.",
        )
    if odd := [name for name in found.labels if not name.strip() or not name.isprintable()]:
        raise InputError(
            f"The table {table} has a class that no list of names can hold: {odd[0]!r}.",
            hint="Give each class a name of letters, digits and signs.",
        )
    files = {file.name: file for file in scan_images(folder).files}
    taken = sorted(files.keys() & found.rows.keys())
    if not taken:
        raise ImagesError(
            f"None of the photos in {folder} is in {table}: there are {min(files)} and others, "
            f"and the table has {visible(min(found.rows))} and others.",
            hint="The paths in the table are relative to the folder of photos.",
        )
    for names, where in (
        (files.keys() - found.rows.keys(), f"not in {table.name}"),
        (found.rows.keys() - files.keys(), f"in {table.name}, but not in {folder}"),
    ):
        if names:
            many = "photo is" if len(names) == 1 else "photos are"
            more = ", ..." if len(names) > 1 else ""
            progress(
                Note(visible(f"{len(names):,} {many} {where}, and skipped: {min(names)}{more}"))
            )
    classes_of = {name: found.rows[name] for name in taken}
    return found.labels, tuple(files[name] for name in taken), classes_of


def _not_of_one_class(classes_of: Mapping[str, Sequence[str]]) -> str:
    """``12 photos are of several classes (a.jpg, ...) and 1 photo is of no class (b.jpg)``."""
    parts = []
    for what, names in (
        ("several classes", [name for name, classes in classes_of.items() if len(classes) > 1]),
        ("no class", [name for name, classes in classes_of.items() if not classes]),
    ):
        if names:
            are = "photos are" if len(names) > 1 else "photo is"
            more = ", ..." if len(names) > 1 else ""
            parts.append(visible(f"{len(names):,} {are} of {what} ({names[0]}{more})"))
    return " and ".join(parts)
