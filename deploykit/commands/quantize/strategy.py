"""The closed loop: convert, compare, and while that fails keep more nodes in FP32.

FP16 and INT8 are two strategies of it: what they scan, convert and rank by is their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from deploykit.bundle.manifest import Manifest
from deploykit.commands.quantize.search import NodeSet, Trials, grow, shrink
from deploykit.errors import DeviceError, ParityError
from deploykit.parity.calibration import CalibrationMethod
from deploykit.proof.answered import AnsweredPhotos
from deploykit.proof.verdict import Verdict
from deploykit.specs.model import KeptNode, Precision
from deploykit.specs.session import Session
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

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
    """

    graph: str
    precision: Precision
    runtimes: tuple[str, ...]
    instead: str
    symmetric: bool = False


class Strategy(ABC):
    """Looks for the nodes of one graph that must stay in FP32.

    Args:
        graph: ``deploy/fp32.onnx``; not changed.
        scheme: What to make of it.
        runtime: What to try it on, one of the scheme's.
        manifest: The bundle's.
        photos: What to search on.
        progress: Called with what is being done.

    Attributes:
        scheme: As given, as the runtime.
        runtime: What graphs are tried on.
    """

    def __init__(
        self,
        graph: ir.Model,
        scheme: Scheme,
        runtime: str,
        manifest: Manifest,
        photos: AnsweredPhotos,
        progress: Progress,
    ) -> None:
        self.scheme = scheme
        self.runtime = runtime
        self._graph = graph
        self._manifest = manifest
        self._photos = photos
        self._progress = progress
        self._judged = 0
        self._last: Verdict | str | None = None
        self._ranked: tuple[str, ...] = ()

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
    def kept_nodes(self, graph: ir.Model, found: KeptSet) -> tuple[KeptNode, ...]:
        """The nodes of a converted graph that compute in FP32 and would not have to, and why."""

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

    def judge(self, keep: NodeSet) -> Verdict:
        """Compare the graph that keeps these nodes in FP32 on the photos of the search."""
        self._judged += 1
        with self.open(self.converted(keep), self.runtime) as candidate:
            return self._photos.judge(candidate, self._manifest, self._progress)

    def find(self, start: tuple[dict[str, str], NodeSet], seconds: float) -> KeptSet:
        """Find a set with which the graph passes, and from which no node can be dropped.

        Args:
            start: What :meth:`begin` gave.
            seconds: How long new trials may begin.

        Raises:
            ParityError: There is none but that of all nodes, or none was found in that time; or
                the photos do not show whether it passes.
        """
        reasons, pinned = start
        nodes: NodeSet | None = frozenset(reasons)
        trials = Trials(self._passes, seconds)
        if not trials(frozenset(reasons)):
            self._refuse_vague()
            self._progress(Note(f"{self.scheme.graph} does not pass yet: {self._why()}"))
            groups = self._groups(frozenset(reasons), trials)
            nodes = grow(frozenset(reasons), [names for names, _ in groups], trials)
            first = {name: reason for names, reason in reversed(groups) for name in names}
            reasons = {**first, **reasons}
        if nodes is None:
            raise self._not_found(trials)
        nodes, minimal = shrink(nodes, pinned, trials)
        if nodes >= self.lowered:
            raise self._not_found(trials)
        kept = {name: reasons[name] for name in nodes}
        return KeptSet(nodes, kept, self._judged, minimal)

    def worst_nodes(self, seconds: float) -> str:
        """Which nodes' roundings move the answers most, as a sentence.

        Args:
            seconds: How long to measure it, where the search had no need to.
        """
        if not self._ranked:
            self._groups(frozenset(), Trials(self._passes, seconds))
        return self._worst()

    def _groups(self, keep: NodeSet, trials: Trials) -> list[Group]:
        groups = self.ranked(keep, trials)
        self._ranked = tuple(dict.fromkeys(name for names, _ in groups for name in names))
        return [*groups, (sorted(self.lowered), _NO_SET)]

    def _passes(self, keep: NodeSet) -> bool:
        if keep >= self.lowered:
            return True  # the FP32 graph, which is proven
        try:
            verdict = self.judge(keep)
        except DeviceError as exc:  # OpenVINO may leave integers alone that it took before
            self._last = exc.message
            return False
        if not verdict.passed:
            self._last = verdict
        return verdict.passed

    def _refuse_vague(self) -> None:
        if isinstance(self._last, Verdict) and not self._last.failed:
            raise ParityError(
                f"{self._name} cannot be judged on these photos: {self._why()}.",
                hint="Give photos that the network decides: --images DIR",
            )

    def _why(self) -> str:
        last = self._last
        return "; ".join(last.reasons) if isinstance(last, Verdict) else last or ""

    @property
    def _name(self) -> str:
        return self.scheme.precision.upper()

    def _worst(self) -> str:
        if not self._ranked:
            return "There was no time to measure which nodes stand in the way."
        return (
            f"Of the {len(self.lowered)} nodes that would compute in {self._name}, rounding around "
            f"these moves the answers most: {', '.join(self._ranked[:_NAMED_NODES])}."
        )

    def _not_found(self, trials: Trials) -> ParityError:
        """Why there is no graph, by how much it fails, and which nodes stand in the way."""
        why = self._why()
        message = f"{self._name} does not pass: {why}. {self._worst()} " if why else ""
        if trials.expired and why:
            return ParityError(
                f"{message}In {trials.seconds:.0f} s the search tried "
                f"{counted(self._judged, 'graph')}.",
                hint="Let it search longer (--search-seconds), or stay with "
                f"{self.scheme.instead}.",
            )
        return ParityError(
            f"{message}{self._name} passes only with every node in FP32, and then nothing is left "
            "in it.",
            hint=f"Stay with {self.scheme.instead}: deploykit verify shows which of them passes.",
        )
