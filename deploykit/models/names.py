"""Matching a checkpoint's names with a network's: wrappers leave prefixes behind."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

#: Names that DataParallel, torch.compile, FSDP and checkpointing put around a module.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Alignment:
    """How a checkpoint's names become the network's.

    Attributes:
        names: The checkpoint's name to the network's.
        note: What was changed, in words for the user; empty when nothing was.
    """

    names: dict[str, str]
    note: str = ""


def align_names(found: Collection[str], expected: Collection[str]) -> Alignment:
    """Find the change of prefixes that makes most of a checkpoint's names the network's.

    Names stay as they are unless a change fits more of them.

    Args:
        found: The checkpoint's names.
        expected: The network's names.
    """
    wanted = set(expected)
    attempts = [a for a in _attempts(found, expected) if len({*a.names.values()}) == len(a.names)]
    return max(attempts, key=lambda attempt: len(wanted.intersection(attempt.names.values())))


def _attempts(found: Collection[str], expected: Collection[str]) -> Iterator[Alignment]:
    yield Alignment({name: name for name in found})
    bare = {name: _without_wrappers(name) for name in found}
    yield Alignment(bare, "wrappers' names (module, _orig_mod) removed")
    theirs, ours = _common_prefix(bare.values()), _common_prefix(expected)
    notes = [f"prefix '{theirs}' removed"] * bool(theirs) + [f"prefix '{ours}' added"] * bool(ours)
    swapped = {name: ours + inner.removeprefix(theirs) for name, inner in bare.items()}
    yield Alignment(swapped, ", ".join(notes))
    for top in sorted({name.partition(".")[0] for name in bare.values() if "." in name}):
        prefix = f"{top}."
        stripped = {name: inner.removeprefix(prefix) for name, inner in bare.items()}
        yield Alignment(stripped, f"prefix '{prefix}' removed")


def _without_wrappers(name: str) -> str:
    return ".".join(step for step in name.split(".") if step not in WRAPPERS)


def _common_prefix(names: Collection[str]) -> str:
    """The dotted prefix that all names share, with its last dot: ``model.backbone.``."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    return "".join(f"{level[0]}." for level in shared)
