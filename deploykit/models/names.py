"""From the names of weights in a checkpoint to those in a network: prefixes differ."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection

from deploykit.models.entries import WRAPPERS

#: A file may have as many prefixes as names.
_PREFIXES_TRIED = 3


def align_names(found: Collection[str], expected: Collection[str]) -> tuple[dict[str, str], str]:
    """Find the change of prefixes that makes most of a checkpoint's names the network's.

    Wrappers leave prefixes behind. Names stay as they are unless a change fits more of them.

    Args:
        found: The checkpoint's names.
        expected: The network's names.

    Returns:
        The checkpoint's name to the network's, and what was changed, in words for the user; empty
        when nothing was.
    """
    bare = {
        name: ".".join(step for step in name.split(".") if step not in WRAPPERS) for name in found
    }
    theirs, ours = _common_prefix(bare.values()), _common_prefix(expected)
    notes = [f"prefix '{theirs}' removed"] * bool(theirs) + [f"prefix '{ours}' added"] * bool(ours)
    swapped = {name: ours + inner.removeprefix(theirs) for name, inner in bare.items()}
    attempts = [
        ({name: name for name in found}, ""),
        (bare, "wrappers' names (module, _orig_mod) removed"),
        (swapped, ", ".join(notes)),
    ]
    wanted = set(expected)
    gains: Counter[str] = Counter()
    for inner in bare.values():
        top, _, rest = inner.partition(".")
        gains[top] += (rest in wanted) - (inner in wanted)
    for top in sorted(sorted(gains), key=lambda top: -gains[top])[:_PREFIXES_TRIED]:
        stripped = {name: inner.removeprefix(f"{top}.") for name, inner in bare.items()}
        attempts.append((stripped, f"prefix '{top}.' removed"))
    unique = [(names, note) for names, note in attempts if len({*names.values()}) == len(names)]
    return max(unique, key=lambda attempt: len(wanted.intersection(attempt[0].values())))


def _common_prefix(names: Collection[str]) -> str:
    """The dotted prefix that all names share, with its last dot: ``model.backbone.``."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    return "".join(f"{level[0]}." for level in shared)
