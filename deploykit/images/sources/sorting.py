"""Names in order, however many there are: what does not fit into memory is on the disk."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

#: 100 bytes each.
NAMES_IN_MEMORY = 100_000
_END = "\0"  # no name has one
_PIECE = 2**16


def sorted_names(names: Iterable[str], in_memory: int = NAMES_IN_MEMORY) -> Iterator[str]:
    """Sort names by code point.

    All names are taken before the first comes back.

    Args:
        names: Without zeros, and Unicode.
        in_memory: How many are held at most; the others are in files that nobody else sees.

    Raises:
        OSError: The disk is full.
    """
    remaining, runs = iter(names), list[IO[str]]()
    while len(run := sorted(islice(remaining, in_memory))) == in_memory:
        runs.append(_kept(run))
    return heapq.merge(run, *map(_names_in, runs)) if runs else iter(run)


def _kept(names: list[str]) -> IO[str]:
    file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115
    file.write(_END.join(names))
    file.seek(0)
    return file


def _names_in(file: IO[str]) -> Iterator[str]:
    rest = ""
    with file:
        while piece := file.read(_PIECE):
            *names, rest = (rest + piece).split(_END)
            yield from names
        yield rest
