"""The closed loop: convert, compare, and while that fails keep more nodes in FP32.

FP16 and INT8 are two strategies of it: what they scan, convert and rank by is their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import msgspec

from deploykit.bundle.folder import Bundle
from deploykit.commands.quantize.search import NodeSet, Trials, grow, shrink
from deploykit.errors import DeviceError, ParityError
from deploykit.parity.calibration import CalibrationMethod
from deploykit.proof.answered import AnsweredImages
from deploykit.proof.verdict import Verdict
from deploykit.specs.model import KeptNode, Precision
from deploykit.specs.session import Session
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

CpuKind: TypeAlias = Literal["vnni", "avx2"]
"""Whether sums of INT8 products are exact, as with VNNI, or may saturate, as with AVX2 alone."""

Group: TypeAlias = tuple[Sequence[str], str]
"""Nodes that are kept in FP32 together, and why."""

_NAMED_NODES = 5
_NO_SET = "the search found no set that passes without it"


@dataclass(frozen=True)
class KeptSet:
    """What a search found.

    Attributes:
        nodes: The names of nodes that must stay in FP32.
        reasons: Why, for each of them.
        trials: How many graphs were tried.
        minimal: Whether it was shown that no single one can be spared.
        method: How INT8's ranges were chosen; None for FP16.
    """

    nodes: NodeSet
    reasons: Mapping[str, str]
    trials: int
    minimal: bool
    method: CalibrationMethod | None = None


@dataclass(frozen=True)
class Scheme:
    """One graph of lower precision that can be made.

    Attributes:
        graph: The graph's path in a bundle.
        precision: Its precision.
        runtimes: What shows whether the graph decides rightly, the fastest first; the search runs
            on the first that is here. TensorRT is rehearsed: each tensor rounded as there, and
            computed with mostly in FP32.
        instead: What a user has where the graph does not pass.
        symmetric: Of INT8, whether integers are signed and 0 stands for 0.
        weight_bits: Of INT8; None of another precision.
        cpu: The kind of CPU that it is for; None where it is for another device.
    """

    graph: str
    precision: Precision
    runtimes: tuple[str, ...]
    instead: str
    symmetric: bool = False
    weight_bits: int | None = None
    cpu: CpuKind | None = None


StrategyArguments: TypeAlias = tuple["ir.Model", Scheme, str, Bundle, AnsweredImages, Progress]
"""What a :class:`Strategy` is made of."""


class Strategy(ABC):
    """Looks for the nodes of one graph that must stay in FP32.

    Args:
        graph: ``deploy/fp32.onnx``; not changed.
        scheme: What to make of it.
        runtime: What to try it on, one of the scheme's.
        bundle: What it is made for.
        images: What to search on.
        progress: Called with what is being done.

    Attributes:
        scheme: As given, as the runtime.
        runtime: What graphs are tried on.
        failing: The graphs that failed, as the nodes that each keeps in FP32 and its verdict.
    """

    #: The part of what is allowed that the search uses up.
    searched_part: ClassVar[float] = 1.0

    def __init__(
        self,
        graph: ir.Model,
        scheme: Scheme,
        runtime: str,
        bundle: Bundle,
        images: AnsweredImages,
        progress: Progress,
    ) -> None:
        self.scheme = scheme
        self.runtime = runtime
        self.failing: list[tuple[NodeSet, Verdict]] = []
        self._graph = graph
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._images = images
        self._progress = progress
        self._method: CalibrationMethod | None = None
        self._judged = 0
        self._why = ""
        self._undecided = False
        self._ranked: tuple[str, ...] = ()
        #: Milliseconds that each node takes in FP32, by its name; empty where that does not count.
        self.costs: Mapping[str, float] = {}

    @property
    @abstractmethod
    def lowered(self) -> NodeSet:
        """The nodes that compute in the lower precision where none is kept in FP32."""

    @abstractmethod
    def converted(self, keep: NodeSet) -> ir.Model:
        """The graph that keeps these nodes in FP32."""

    @abstractmethod
    def open(self, graph: ir.Model | Path, runtime: str) -> Session:
        """Open a converted graph, or its file, on one of the scheme's runtimes."""

    @abstractmethod
    def fp32_nodes(self, graph: ir.Model, keep: NodeSet) -> Sequence[ir.Node]:
        """The nodes that compute in FP32 and would not have to, where these are kept.

        Args:
            graph: The converted graph.
            keep: The names of the kept nodes.
        """

    @abstractmethod
    def begin(self) -> tuple[dict[str, str], NodeSet]:
        """Scan or calibrate.

        Returns:
            What is kept from the beginning, with the reasons; and what of it no search may drop.

        Raises:
            ParityError: The precision computes nothing of the graph, or cannot hold its values.
            MissingError: The runtime is not here.
            GraphError: It cannot run the graph.
        """

    @abstractmethod
    def ranked(self, keep: NodeSet, trials: Trials) -> list[Group]:
        """Nodes to keep together, with the reason, those that cost most first.

        Args:
            keep: What is kept already.
            trials: When their time is up, what has been measured must do.
        """

    def by_value(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Ranked groups in the order in which they are to be tried."""
        return groups

    def is_worth(self, keep: NodeSet) -> bool:
        """Whether a graph that keeps these nodes in FP32 could be faster than FP32 by enough."""
        del keep
        return True

    def times_fp32(self, keep: NodeSet) -> float | None:
        """How many times as fast as the FP32 graph the one is that keeps these nodes.

        On the runtime of the search; None where that is a model of another device.
        """
        del keep
        return None

    def integers(self, kept: Sequence[KeptNode]) -> int | None:
        """How many nodes compute with integers where some are kept; None but in INT8."""
        del kept
        return None

    def judge(self, keep: NodeSet) -> Verdict:
        """Compare the graph that keeps these nodes in FP32 on the images of the search."""
        self._judged += 1
        with self.open(self.converted(keep), self.runtime) as candidate:
            verdict = self._images.judge(candidate, self._manifest, self._progress)
        if self.searched_part == 1:
            return verdict
        strict = verdict.tolerance.part(self.searched_part)
        reasons = strict.reasons(verdict.measurement)
        lax = verdict.tolerance.reasons(verdict.measurement)
        return msgspec.structs.replace(
            verdict,
            tolerance=strict,
            reasons=(
                *(f"{each} on the images of the search" for each in reasons),
                *(each for each in verdict.reasons if each not in lax),
            ),
        )

    @property
    def failed(self) -> tuple[NodeSet, Verdict] | None:
        """Of the graphs that failed the one with the smallest error; None while none failed."""
        return min(self.failing, key=lambda each: _error(each[1]), default=None)

    def find(self, start: tuple[dict[str, str], NodeSet], seconds: float) -> KeptSet:
        """Find a set with which the graph passes, and from which no node can be dropped.

        Args:
            start: What :meth:`begin` gave.
            seconds: How long new trials may begin.

        Raises:
            ParityError: There is none but that of all nodes, or none was found in that time; or
                the images do not show whether it passes.
        """
        reasons, pinned = start
        first = frozenset(reasons)
        nodes: NodeSet | None = first
        minimal = False
        trials = Trials(self._passes, seconds)
        if not trials(first):
            if self._undecided:
                raise ParityError(
                    f"{self.scheme.graph} cannot be judged on these photos: {self._why}.",
                    hint="Give photos that the network decides: --images DIR",
                )
            self._progress(Note(f"{self.scheme.graph} does not pass yet: {self._why}"))
            groups = self.ranked(first, trials)
            self._ranked = tuple(dict.fromkeys(name for names, _ in groups for name in names))
            worth = self._worth_trying(first, self.by_value(groups))
            groups = [*worth, (sorted(self.lowered), _NO_SET)]
            nodes = grow(first, [names for names, _ in groups], trials)
            if nodes is not None and not self.is_worth(nodes):
                raise self._not_found(trials)
            reasons = {name: why for names, why in reversed(groups) for name in names} | reasons
        if nodes is not None:
            nodes, minimal = shrink(nodes, pinned, trials, self.costs)
        if nodes is None or nodes >= self.lowered:
            raise self._not_found(trials)
        kept = {name: reasons[name] for name in nodes}
        return KeptSet(nodes, kept, self._judged, minimal, self._method)

    def kept_nodes(self, graph: ir.Model, found: KeptSet) -> tuple[KeptNode, ...]:
        """The nodes of a converted graph that stay in FP32, and why."""
        return tuple(
            KeptNode(
                node=node.name or "",
                operator=node.op_type,
                module=_module(node),
                reason=found.reasons.get(
                    node.name or "", f"ONNX Runtime's converter leaves {node.op_type} in FP32"
                ),
            )
            for node in self.fp32_nodes(graph, found.nodes)
        )

    def worst_nodes(self) -> str:
        """Which nodes' roundings move the answers most, as a sentence; "" if not measured."""
        modules = {node.name or "": _module(node) for node in self._graph.graph}
        worst = ", ".join(
            f"{name}{f' ({modules[name]})' if modules.get(name) else ''}"
            for name in self._ranked[:_NAMED_NODES]
        )
        return worst and (
            f" Of the {len(self.lowered)} nodes that would compute in {self._name}, rounding "
            f"around these moves the answers most: {worst}."
        )

    def _worth_trying(self, first: NodeSet, groups: Sequence[Group]) -> Iterator[Group]:
        """The groups without those that would make it not worth it, with those before them."""
        keep = first
        for group in groups:
            more = keep | frozenset(group[0])
            if self.is_worth(more):
                keep = more
                yield group

    def _passes(self, keep: NodeSet) -> bool:
        if keep >= self.lowered:
            return True  # the FP32 graph, which is proven
        try:
            verdict = self.judge(keep)
        except DeviceError as exc:  # OpenVINO may leave integers alone that it took before
            self._why = exc.message
            return False
        with_nodes = f"{self.scheme.graph} with {counted(len(keep), 'node')} in FP32"
        if verdict.passed:
            if keep:
                self._progress(Note(f"{with_nodes} passes; fewer?"))
            return True
        self._why = "; ".join(verdict.reasons)
        if verdict.failed:
            if self.failed is not None and _error(verdict) < _error(self.failed[1]):
                self._progress(Note(f"{with_nodes} does not pass yet: {self._why}"))
            self.failing.append((keep, verdict))
        self._undecided = not verdict.failed
        return False

    @property
    def _name(self) -> str:
        return self.scheme.precision.upper()

    def _not_found(self, trials: Trials) -> ParityError:
        """Why there is no graph, by how much it fails, and which nodes stand in the way."""
        expired = trials.expired and self._why
        if not self._why:
            self._passes(frozenset())  # the scan kept every node: what would happen without
        message = f"{self.scheme.graph} does not pass: {self._why}.{self.worst_nodes()} "
        if expired:
            return ParityError(
                f"{message}In {trials.seconds:.0f} s the search tried "
                f"{counted(self._judged, 'graph')}.",
                hint="Let it search longer (--search-seconds), or stay with "
                f"{self.scheme.instead}.",
            )
        only = (
            "No set of nodes was found with which it does, and which would not take more than half "
            "of the time in FP32."
            if self.costs
            else f"{self._name} passes only with every node in FP32, and then nothing is left in "
            "it."
        )
        return ParityError(
            f"{message}{only}",
            hint=f"Stay with {self.scheme.instead}. See which of them passes: "
            f"{self._bundle.command('verify')}",
        )


def _module(node: ir.Node) -> str:
    from deploykit.graph.passes import MODULE_PATH

    return node.metadata_props.get(MODULE_PATH, "")


def _error(verdict: Verdict) -> tuple[bool, int, float]:
    """Verdicts in order: those that are finite, then by what they change."""
    found = verdict.measurement
    return found.non_finite > 0, found.flips, found.max_abs_error
