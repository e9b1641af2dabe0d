"""The names in a list, one by one: of a million, memory holds few."""

from __future__ import annotations

import codecs
import io
import sys
from typing import TYPE_CHECKING

from deploykit.images.scan import listed_names, read_file_list
from deploykit.images.sources.sorting import sorted_names
from deploykit.system.files import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def listed_in(path: Path) -> Iterator[str]:
    """Read the names that :func:`read_file_list` gives one by one, however many there are."""

    def names() -> Iterator[str]:
        with open_file(path) as stream:
            mark = stream.read(2)
            is_utf_16 = mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            stream.seek(0)
            text = io.TextIOWrapper(
                stream,
                "utf-16" if is_utf_16 else "utf-8-sig",
                sys.getfilesystemencodeerrors(),
                newline="\n",
            )
            for line in text:
                if "\0" in line:
                    raise UnicodeError
                yield line

    try:
        # A name that was there before has its first place.
        numbered = (f"{name}\n{i:012}" for i, name in enumerate(listed_names(names())))
        again, before = set[int](), ""
        for each in sorted_names(numbered):
            name, _, number = each.partition("\n")
            if name == before:
                again.add(int(number))
            before = name
    except (OSError, UnicodeError):
        yield from read_file_list(path)  # and say what is wrong
        return
    yield from (name for i, name in enumerate(listed_names(names())) if i not in again)
