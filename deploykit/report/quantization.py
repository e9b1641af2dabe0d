"""INT8 graphs: what was quantized, as text and as values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploykit.jobs.quantize import Quantization, QuantizedGraph
from deploykit.report.engines import kept_text
from deploykit.report.terminal import flips_text, photos_text, verdicts_text
from deploykit.report.values import plain_value, verdict_value
from deploykit.runtime.opener import REHEARSAL

_METHODS = {
    "minmax": "all photos",
    "percentile": "all photos but the twentieth of them that is most extreme",
}
#: What is not called as the runtime is on which it was tried.
_MADE_FOR = {REHEARSAL: "TensorRT"}


def quantization_text(result: Quantization) -> str:
    """The verdicts, what stays in FP32 and why, what was calibrated on what."""
    verdicts = [verdict for graph in result.graphs for verdict in graph.verdicts]
    lines = [verdicts_text(verdicts)]
    for graph in result.graphs:
        lines += _graph_text(graph)
    for verdict in verdicts:
        lines += flips_text(verdict)
        lines += (
            f"UNPROVEN   {verdict.candidate.graph} on {verdict.candidate.runtime}: {objection}"
            for objection in verdict.objections
        )
    if result.refused is not None:
        lines.append(f"REFUSED    {result.refused}")
    lines.append(f"calibrated on {result.graphs[0].searched} photos, which were searched on too")
    lines += (
        f"{proof.kind:<10} {proof.graph} on {proof.runtime}, {proof.device}: "
        f"{photos_text(proof.photos)}"
        for graph in result.graphs
        for proof in graph.proofs
    )
    return "\n".join(lines)


def _graph_text(graph: QuantizedGraph) -> Iterator[str]:
    yield (
        f"{graph.graph}, made for {_MADE_FOR.get(graph.runtime, graph.runtime)}: "
        f"{graph.integers} nodes in INT8, {len(graph.kept)} of that kind in FP32; "
        f"ranges of {_METHODS[graph.method]}"
    )
    yield from kept_text(graph.kept, graph)


def quantization_value(result: Quantization) -> dict[str, Any]:
    """The graphs with their verdicts, and why one was refused."""
    refused = result.refused
    return {
        "bundle": str(result.bundle.folder),
        "passed": result.passed,
        "graphs": [
            {
                "graph": graph.graph,
                "runtime": graph.runtime,
                "integer_nodes": graph.integers,
                "kept": [plain_value(node) for node in graph.kept],
                "calibration": graph.method,
                "searched_photos": graph.searched,
                "trials": graph.trials,
                "minimal": graph.minimal,
                "verdicts": [verdict_value(verdict) for verdict in graph.verdicts],
                "proofs": [
                    {
                        "runtime": proof.runtime,
                        "device": proof.device,
                        "kind": proof.kind,
                        "photos": plain_value(proof.photos),
                    }
                    for proof in graph.proofs
                ],
            }
            for graph in result.graphs
        ],
        "refused": None if refused is None else {"message": refused.message, "hint": refused.hint},
    }
