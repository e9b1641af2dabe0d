"""How a checkpoint's names and shapes differ from a network's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from deploykit.system.text import counted

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

#: Counts batches in training and changes nothing in eval; files from before torch 0.4.1 lack it.
OPTIONAL = "num_batches_tracked"
EXAMPLES = 2
GROUPS = 3


@dataclass(frozen=True)
class Mismatch:
    """The differences between a checkpoint's entries and a network's.

    Attributes:
        missing: In the network, not in the file.
        unexpected: In the file, not in the network.
        misshapen: In both, with the file's shape and the network's.
        shared: How many entries agree.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    shared: int

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    @property
    def message(self) -> str:
        """What differs: counts, and a few names of each kind by top-level module."""
        shown = [
            f"{name} is {_shape(file)} in the file, {_shape(network)} in the network"
            for name, file, network in self.misshapen[:EXAMPLES]
        ]
        shown += ["..."] if len(self.misshapen) > EXAMPLES else []
        kinds = [
            (len(self.missing), "missing from the file", grouped(self.missing)),
            (len(self.unexpected), "not in the network", grouped(self.unexpected)),
            (len(self.misshapen), "of another shape", "; ".join(shown)),
        ]
        lines = [f"  {count} {kind}: {names}" for count, kind, names in kinds if count]
        return "\n".join(
            [f"{counted(self.shared, 'entry fits', 'entries fit')}; the others do not:", *lines]
        )


def compare(found: Shapes, expected: Shapes) -> Mismatch:
    """Compare a checkpoint's shapes with a network's.

    Args:
        found: The checkpoint's, under the network's names.
        expected: The network's.
    """
    both = [name for name in expected if name in found]
    misshapen = [
        (n, found[n], expected[n])
        for n in both
        # torch takes a list of one number for a number, as torch before 0.4 saved it.
        if found[n] != expected[n] and (found[n], expected[n]) != ((1,), ())
    ]
    return Mismatch(
        missing=tuple(
            name for name in expected if name not in found and not name.endswith(OPTIONAL)
        ),
        unexpected=tuple(name for name in found if name not in expected),
        misshapen=tuple(misshapen),
        shared=len(both) - len(misshapen),
    )


def grouped(names: Collection[str]) -> str:
    """``fc (fc.weight, fc.bias), layer4 (57 as layer4.0.conv1.weight), and 3 more``."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.partition(".")[0]].append(name)
    shown = []
    for top, members in list(groups.items())[:GROUPS]:
        few = len(members) <= EXAMPLES
        shown.append(f"{top} ({', '.join(members) if few else f'{len(members)} as {members[0]}'})")
    rest = len(groups) - GROUPS
    return ", ".join(shown) + (f", and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
