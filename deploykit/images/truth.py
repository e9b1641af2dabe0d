"""Which classes images are of, as far as a table of labels or their folders tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deploykit.errors import InputError
from deploykit.images.label_tables import read_label_table
from deploykit.images.scan import Scan, escape_name
from deploykit.specs.model import Labels


def known_classes(
    scan: Scan, labels: Labels, table: Path | None = None
) -> Mapping[str, tuple[str, ...]]:
    """The right classes of images, by the images' names.

    Args:
        scan: The images.
        labels: The model's.
        table: A CSV, as :func:`deploykit.images.label_tables.read_label_table` takes it; its paths
            are relative to the folder of the images or to its own. None for what the folders tell.

    Raises:
        InputError: The table cannot be read, names none of the images, or gives one of them several
            classes or none where the model decides for exactly one.
    """
    if table is None:
        alone = {name: (name,) for name in labels.folder_names}  # shared by all of a class
        return {file.name: alone[file.expected] for file in scan.files if file.expected in alone}
    rows = read_label_table(table, labels.names, several=labels.head.several).rows
    names = {file.name for file in scan.files}
    found = {}
    for row, classes in rows.items():
        name = escape_name(row)
        if name not in names:
            name = _relative(table.parent / row, scan.root)
        if name in names:
            found[name] = classes
    if not found:
        image, row = min(names), next(iter(rows))
        raise InputError(
            f"{table} names none of the images of {scan.path}: it has {row}, and there is {image}.",
            hint="Write the images' paths relative to their folder, or to the table's.",
        )
    return found


def table_order(table: Path, labels: Labels) -> tuple[str, ...]:
    """The model's classes in the order of a table's columns, else sorted; () if it has others."""
    order = read_label_table(table).labels
    return order if {*order} == {*labels.names} else ()


def _relative(path: Path, root: Path) -> str:
    """A path as the images below a folder are named."""
    return escape_name(os.path.relpath(path.absolute(), root.absolute()).replace(os.sep, "/"))
