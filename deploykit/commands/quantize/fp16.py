"""FP16: the range scan, the conversion, and what each tensor's rounding costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import deploy_graph
from deploykit.commands.quantize.observe import each_switched, observed, run_switched
from deploykit.commands.quantize.search import NodeSet, Trials
from deploykit.commands.quantize.strategy import Group, Scheme, Strategy
from deploykit.parity.ranges import FP16_MAX, MAX_ROUNDING_LOSS, RangeScan, TensorRange
from deploykit.runtime.opener import REHEARSAL, open_graph, open_probe
from deploykit.specs.session import Logits, Session

if TYPE_CHECKING:
    import onnx_ir as ir

FP16 = Scheme(
    deploy_graph("fp16"), "fp16", (REHEARSAL,), instead="FP32 (build-trt --precision fp32)"
)
_WORST_IMAGES = 2


class Fp16(Strategy):
    """Keeps in FP32 what FP16 cannot hold, and what is rounded at too high a cost."""

    @cached_property
    def lowered(self) -> NodeSet:
        """See :class:`Strategy`, as the methods below."""
        from deploykit.graph.fp16 import convertible_nodes

        return convertible_nodes(self._graph)

    def converted(self, keep: NodeSet) -> ir.Model:
        """The FP16 graph that keeps these nodes in FP32."""
        from deploykit.graph import passes
        from deploykit.graph.fp16 import convert_to_fp16

        return passes.apply(self._graph, [convert_to_fp16(keep)])

    def open(self, graph: ir.Model | Path, runtime: str) -> Session:
        """Open its rehearsal."""
        del runtime  # there is one
        from deploykit.graph.files import load_graph
        from deploykit.graph.instruments import model_bytes
        from deploykit.graph.rehearsal import rehearsal_of

        model = load_graph(graph) if isinstance(graph, Path) else graph
        return open_graph(
            model_bytes(rehearsal_of(model)),
            name=self.scheme.graph,
            runtime=REHEARSAL,
            precision="fp16",
            preprocessing=self._manifest.preprocessing,
            labels=self._manifest.labels,
        )

    def fp32_nodes(self, graph: ir.Model, keep: NodeSet) -> Sequence[ir.Node]:
        """Those that the search kept, and those that no converter takes."""
        del keep
        from deploykit.graph.fp16 import fp32_nodes

        return fp32_nodes(graph)

    def begin(self) -> tuple[dict[str, str], NodeSet]:
        """Find what FP16 cannot hold: of the weights, and of every tensor on the images."""
        from deploykit.graph.fp16 import guardians, weight_losses

        guarded = guardians(self._graph)
        scan = RangeScan()
        batches, progress = self._images.batches, self._progress
        for values in observed(self._graph, guarded, batches, progress, "scanning ranges"):
            scan.add({name: values[name] for name in guarded}, images=1)
        reasons = {
            name: f"it has a weight beyond {FP16_MAX:.0f}, where FP16 ends"
            if np.isinf(loss)
            else f"rounding its weights to FP16 loses {100 * loss:.1f} % of their norm"
            for name, loss in weight_losses(self._graph).items()
            if not loss <= MAX_ROUNDING_LOSS
        }
        pinned: set[str] = set()
        for found in scan.ranges():
            if found.fits:
                continue
            producer, *others = guarded[found.name]
            reasons.setdefault(producer, _reason(found, "its output"))
            for node in others:
                reasons.setdefault(node, _reason(found, f"its input {found.name}"))
            if found.overflows:
                pinned.update(guarded[found.name])
        for name, shown in self._overflows_on_extremes(guarded).items():
            pinned.update(guarded[name])
            for node in guarded[name]:
                reasons.setdefault(node, f"{name} is beyond FP16 on a {shown} image")
        names = [node.name or "" for node in self._graph.graph]
        return {name: reasons[name] for name in names if name in reasons}, frozenset(pinned)

    def _overflows_on_extremes(self, guarded: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """The tensors that FP16 cannot hold on an extreme image, and what that one shows.

        What rounding loses there is not asked: of a black image it may be all there is.
        """
        found: dict[str, str] = {}
        for shown, image in self._images.extremes.images.items():
            scan = RangeScan()
            batch = [([shown], image)]
            for values in observed(self._graph, guarded, batch, self._progress, "scanning ranges"):
                scan.add({name: values[name] for name in guarded}, images=1)
            found |= {each.name: shown for each in scan.ranges() if each.overflows}
        return found

    def ranked(self, keep: NodeSet, trials: Trials) -> list[Group]:
        """By how much the answers improve without the rounding of one tensor.

        It is measured on the two images whose answers are furthest from the reference's.
        """
        from deploykit.graph.fp16 import guardians
        from deploykit.graph.instruments import model_bytes
        from deploykit.graph.rehearsal import switchable_rehearsal

        guarded = guardians(self._graph)
        images, reference = self._images.images, self._images.logits
        switchable, tensors = switchable_rehearsal(self.converted(keep))
        gains = np.full(len(tensors), -np.inf)
        with open_probe(model_bytes(switchable)) as probe:
            nothing = np.zeros((1, len(tensors)), np.bool_)
            rounded = np.concatenate(
                [
                    _largest_errors(run_switched(probe, image[None], nothing), wanted)
                    for image, wanted in zip(images, reference, strict=True)
                ]
            )
            worst = np.argsort(-rounded, kind="stable")[:_WORST_IMAGES]
            exact = np.eye(len(tensors), dtype=np.bool_)
            for rows, index, logits in each_switched(
                probe, images[worst], exact, trials, self._progress
            ):
                errors = _largest_errors(logits, reference[worst[index]])
                finite = np.isfinite(errors)
                gain = np.where(finite, rounded[worst[index]] - np.where(finite, errors, 0), 0)
                gains[rows] = np.maximum(gains[rows], gain)
        return [
            (
                guarded[tensors[index]],
                f"rounding {tensors[index]} to FP16 moves a logit by {gains[index]:.2g}",
            )
            for index in np.argsort(-gains, kind="stable")
            if gains[index] > -np.inf  # it was measured
        ]


def _largest_errors(logits: Logits, reference: Logits) -> npt.NDArray[np.float64]:
    """(N,) each row's largest logit error; infinite where a logit is not finite."""
    errors = np.abs(logits.astype(np.float64) - reference).max(axis=1)
    return np.where(np.isfinite(errors), errors, np.inf)


def _reason(found: TensorRange, tensor: str) -> str:
    if found.overflows:
        return f"{tensor} reaches {found.max_abs:.3g}; FP16 ends at {FP16_MAX:.0f}"
    return f"rounding {tensor} to FP16 loses {100 * found.rounding_loss:.1f} % of its norm"
