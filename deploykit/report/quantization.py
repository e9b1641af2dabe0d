"""INT8 graphs: what was quantized, as text and as values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploykit.jobs.quantize import Quantization, QuantizedGraph
from deploykit.proofs import Proof
from deploykit.report.engines import kept_text, not_taken_text, outdated_text, weakness_text
from deploykit.report.inspection import made_for
from deploykit.report.terminal import flips_text, photos_text, verdicts_text
from deploykit.report.values import plain_value, verdict_value
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs import counted

_METHODS = {
    "minmax": "all photos",
    "percentile": "all photos but the twentieth of them that is most extreme",
}


def quantization_text(result: Quantization) -> str:
    """The verdicts, what stays in FP32 and why, what was calibrated on what."""
    verdicts = [verdict for graph in result.graphs for verdict in graph.verdicts]
    proofs = [proof for graph in result.graphs for proof in graph.proofs]
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
    calibrated = counted(result.graphs[0].searched, "photo, which was", "photos, which were")
    lines.append(f"calibrated on {calibrated} searched on too")
    lines += (
        f"{proof.kind:<10} {proof.graph} on {proof.runtime}, {proof.device}: "
        f"{photos_text(proof.photos)}"
        for proof in proofs
    )
    lines += (_weakness_text(proof) for proof in proofs if not proof.decides)
    lines += outdated_text(result.outdated)
    return "\n".join(lines)


def _graph_text(graph: QuantizedGraph) -> Iterator[str]:
    yield (
        f"{graph.graph}, made for {made_for(graph.runtime)}: "
        f"{counted(graph.integers, 'node')} in INT8, {len(graph.kept)} of that kind in FP32; "
        f"ranges of {_METHODS[graph.method]}"
    )
    yield from kept_text(graph.kept, graph)
    if graph.kept and graph.runtime != REHEARSAL:
        yield "         each of them costs speed: deploykit bench shows what is fastest here"


def _weakness_text(proof: Proof) -> str:
    """Why ``auto`` goes by no such proof; an engine has its own, whatever its graph's."""
    if proof.kind == "rehearsed":
        return f"WEAK       {weakness_text(proof)}"
    return f"NOT TAKEN  {not_taken_text(proof)}"


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
                        "decides": proof.decides,
                    }
                    for proof in graph.proofs
                ],
            }
            for graph in result.graphs
        ],
        "outdated": [engine.file for engine in result.outdated],
        "refused": None if refused is None else {"message": refused.message, "hint": refused.hint},
    }
