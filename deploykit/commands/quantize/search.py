"""The search for the few nodes that must stay in FP32: which set passes, and with no node to spare.

It knows nothing of graphs: nodes are names, and whether a set passes is a function's to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

NodeSet: TypeAlias = frozenset[str]
Passes: TypeAlias = Callable[[NodeSet], bool]


@dataclass
class Trials:
    """Asks whether sets pass, each set once, until the time is up.

    Args:
        passes: Whether the graph passes that keeps these nodes in FP32; may take seconds.
        seconds: How long trials may begin.
    """

    passes: Passes
    seconds: float
    _known: dict[NodeSet, bool] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self._since >= self.seconds

    def __call__(self, nodes: NodeSet) -> bool:
        """Whether a set passes."""
        if nodes not in self._known:
            self._known[nodes] = self.passes(nodes)
        return self._known[nodes]


def grow(start: NodeSet, groups: Sequence[Collection[str]], passes: Trials) -> NodeSet | None:
    """Add groups of nodes in their order until the set passes.

    The number of groups doubles until it does, then halves the gap to the last that did not, so
    that a set of n groups takes about 2 log2(n) trials.

    Args:
        start: What is kept in any case.
        groups: The most promising first.
        passes: The trials.

    Returns:
        A set that passes; None where not even all of them do, or the time is up before one does.
    """

    def first(count: int) -> NodeSet:
        return start.union(*groups[:count])

    failing, passing = 0, 1
    while not passes(first(passing)):
        if passing >= len(groups) or passes.expired:
            return None
        failing, passing = passing, min(2 * passing, len(groups))
    while passing - failing > 1 and not passes.expired:
        middle = (failing + passing) // 2
        if passes(first(middle)):
            passing = middle
        else:
            failing = middle
    return first(passing)


def shrink(
    nodes: NodeSet,
    pinned: NodeSet,
    passes: Trials,
    costs: Mapping[str, float] = MappingProxyType({}),
) -> tuple[NodeSet, bool]:
    """Drop nodes that are not needed: all at once, by halves, then one by one.

    Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE TSE 28 (2002),
    minimise so; what is left here is what they call 1-minimal.

    Args:
        nodes: A set that passes.
        pinned: Nodes that are never dropped.
        passes: The trials.
        costs: What keeping a node costs: those that cost most are tried first.

    Returns:
        A set that passes, and whether no single node but the pinned can be dropped from it; not
        known, so False, when the time was up first.
    """
    size = max(len(nodes - pinned), 1)
    while True:
        dropped = False
        order = sorted(nodes - pinned, key=lambda name: (-costs.get(name, 0.0), name))
        for chunk in _chunks(order, size):
            if passes.expired:
                return nodes, False
            if passes(nodes - chunk):
                nodes, dropped = nodes - chunk, True
        if size > 1:
            size = (size + 1) // 2
        elif not dropped:
            return nodes, True


def _chunks(names: Sequence[str], size: int) -> list[NodeSet]:
    return [frozenset(names[i : i + size]) for i in range(0, len(names), size)]
