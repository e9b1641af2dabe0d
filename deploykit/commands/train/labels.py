"""Which classes the photos of a training are of, and the head that they are learned with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.scan import ImageFile, class_folders, scan_images
from deploykit.images.truth import read_truth
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
        table: The classes of each photo, see :func:`deploykit.images.truth.read_truth`.
        head: As the user says; None for multi-label where a table has a photo of several classes or
            of none, else single-label.
        progress: Told which photos are skipped, and which head a table makes.

    Raises:
        UsageError: There is no such folder, or the labels do not fit the head.
        InputError: The table cannot be read, is not clear, or names none of the photos.
        ImagesError: There are fewer than two classes.
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
        names, files, classes_of = _of_table(folder, table, head, progress)
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
    folder: Path, table: Path, head: HeadName | None, progress: Progress
) -> tuple[tuple[str, ...], tuple[ImageFile, ...], dict[str, tuple[str, ...]]]:
    """The classes, the photos that are both in the folder and in the table, and their classes."""
    scan = scan_images(folder)
    truth = read_truth(table, scan, progress=progress)
    names, classes_of = truth.labels, truth.rows
    several = head is not None and head_of(head, ()).several
    if len(names) == 1 and not several and not all(classes_of.values()):
        # A column of 0 and 1 tells two classes apart: what it is named after, and the others.
        negative = f"not {names[0]}"
        classes_of = {name: classes or (negative,) for name, classes in classes_of.items()}
        names = (negative, *names)
    if len(names) < 2:
        raise ImagesError(
            f"The table {table} has {counted(len(names), 'class', 'classes')}"
            f"{visible(''.join(f': {name}' for name in names))}.",
            hint="Training needs two classes or more. --head binary learns one column of 0 and 1.",
        )
    if odd := [name for name in names if not name.strip() or not name.isprintable()]:
        raise InputError(
            f"The table {table} has a class that no list of names can hold: {odd[0]!r}.",
            hint="Give each class a name of letters, digits and signs.",
        )
    files = tuple(file for file in scan.files if file.name in classes_of)
    return names, files, {file.name: classes_of[file.name] for file in files}


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
