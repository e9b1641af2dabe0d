"""The closed loop: scan, rehearse, and while that fails keep more nodes in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploykit.bundle.folder import deploy_graph
from deploykit.bundle.manifest import Manifest
from deploykit.commands.quantize.fp16_ranking import rank_tensors
from deploykit.commands.quantize.fp16_scan import scan_ranges
from deploykit.commands.quantize.search import KeptSet, NodeSet, Trials, group_reasons, grow, shrink
from deploykit.errors import ParityError
from deploykit.inference.sessions import open_rehearsal
from deploykit.proof.answered import AnsweredPhotos
from deploykit.proof.verdict import Verdict
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

FP16_GRAPH = deploy_graph("fp16")


class Fp16Loop:
    """Looks for the nodes of one graph that must stay in FP32.

    Args:
        graph: ``deploy/fp32.onnx``; not changed.
        manifest: The bundle's.
        photos: What to search on.
        progress: Called with what is being done.
    """

    def __init__(
        self, graph: ir.Model, manifest: Manifest, photos: AnsweredPhotos, progress: Progress
    ) -> None:
        self._graph = graph
        self._manifest = manifest
        self._photos = photos
        self._progress = progress
        self._objections: tuple[str, ...] = ()

    def run(self, seconds: float) -> KeptSet:
        """Find a set with which the rehearsal passes, and from which no node can be dropped.

        Args:
            seconds: How long new trials may begin.

        Raises:
            ParityError: There is none but that of all nodes, or none was found in that time.
        """
        scan = scan_ranges(self._graph, self._photos.batches, self._progress)
        trials = Trials(self._passes, seconds)
        reasons = scan.reasons
        nodes: NodeSet | None = frozenset(reasons)
        if not trials(frozenset(reasons)):
            self._progress(Note(f"FP16 does not pass yet: {'; '.join(self._objections)}"))
            groups = self._ranked_groups(frozenset(reasons), trials)
            reasons = {**group_reasons(groups), **reasons}
            nodes = grow(frozenset(scan.reasons), [nodes for nodes, _ in groups], trials)
        if nodes is None:
            raise self._not_found(trials)
        nodes, minimal = shrink(nodes, scan.pinned, trials)
        if nodes >= self._all_nodes():
            raise self._all_in_fp32(trials)
        kept = {name: reasons[name] for name in nodes}
        return KeptSet(nodes, kept, trials.count, minimal)

    def converted(self, keep: NodeSet) -> ir.Model:
        """The FP16 graph that keeps these nodes in FP32."""
        from deploykit.graph import passes
        from deploykit.graph.fp16 import convert_to_fp16

        return passes.apply(self._graph, [convert_to_fp16(keep)])

    def _passes(self, keep: NodeSet) -> bool:
        verdict = self._rehearse(keep)
        if not verdict.passed:
            self._objections = verdict.objections
        return verdict.passed

    def _rehearse(self, keep: NodeSet) -> Verdict:
        with open_rehearsal(
            self.converted(keep),
            name=FP16_GRAPH,
            preprocessing=self._manifest.preprocessing,
            labels=self._manifest.labels,
        ) as candidate:
            return self._photos.judge(candidate, self._manifest, self._progress)

    def _ranked_groups(self, keep: NodeSet, trials: Trials) -> list[tuple[Sequence[str], str]]:
        """Nodes to keep together, with the reason, the most promising first; all nodes at last."""
        from deploykit.graph.fp16 import guardians

        guarded = guardians(self._graph)
        photos = self._photos
        gains = rank_tensors(
            self.converted(keep), photos.images, photos.logits, trials, self._progress
        )
        groups: list[tuple[Sequence[str], str]] = [
            (guarded[tensor], f"rounding {tensor} to FP16 moves a logit by {gain:.2g}")
            for tensor, gain in gains.items()
        ]
        return [
            *groups,
            (sorted(self._all_nodes()), "the search found no set that passes without it"),
        ]

    def _all_nodes(self) -> NodeSet:
        from deploykit.graph.fp16 import convertible_nodes

        return convertible_nodes(self._graph)

    def _all_in_fp32(self, trials: Trials) -> ParityError:
        """The error instead of a graph that is FP16 in name only."""
        if trials.expired and self._objections:
            return self._not_found(trials)
        return ParityError(
            "FP16 passes only with every node in FP32, and then nothing is left in FP16.",
            hint="Build in FP32: --precision fp32",
        )

    def _not_found(self, trials: Trials) -> ParityError:
        objections = "; ".join(self._objections)
        if trials.expired:
            return ParityError(
                f"FP16 does not pass, and in {trials.seconds:.0f} s the search tried "
                f"{trials.count} sets of nodes to keep in FP32: {objections}.",
                hint="Let it search longer (--search-seconds), or build in FP32: --precision fp32",
            )
        return ParityError(
            f"FP16 does not pass, even with every node in FP32: {objections}.",
            hint="The FP32 graph is at fault, or the photos: deploykit verify shows which; "
            "--precision fp32 builds without FP16.",
        )
