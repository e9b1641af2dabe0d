"""INT8 graphs: what was quantized, as text and as values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from deploykit.bundle.folder import Bundle
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.quantize.offers import speed_text
from deploykit.commands.quantize.run import Quantization, QuantizedGraph
from deploykit.engine.passport import how_to_build_again
from deploykit.inference.engines import Engine
from deploykit.parity.diagnosis import node_title
from deploykit.proof.policy import status_of
from deploykit.proof.text import (
    budgets_text,
    flips_text,
    images_text,
    uniform_text,
    verdict_value,
    verdicts_text,
)
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs.model import KeptNode
from deploykit.specs.value import plain_value
from deploykit.system.text import commands_apart, counted, lines_text, visible

_METHODS = {
    "minmax": "all photos",
    "trimmed": "all photos but the twentieth of them that is most extreme",
}

_SHOWN_NODES = 12


def quantization_text(result: Quantization) -> str:
    """The verdicts, what stays in FP32 and why, what was calibrated on what."""
    verdicts = [verdict for graph in result.graphs for verdict in graph.verdicts]
    proofs = [proof for graph in result.graphs for proof in graph.proofs]
    lines = verdicts_text(verdicts).split("\n")
    for graph in result.graphs:
        lines += _graph_text(result.bundle, graph)
    lines += budgets_text(verdicts)
    for verdict in verdicts:
        lines += flips_text(verdict)
        lines += (
            f"{'FAILED' if verdict.failed else 'UNPROVEN':<10} "
            f"{verdict.candidate.graph} on {verdict.candidate.runtime}: {reason}"
            for reason in verdict.reasons
        )
    found, images = result.graphs[0].verdict.measurement, result.graphs[0].proof.images
    lines += filter(None, [uniform_text(found, images.kind)])
    for refused in result.refused:
        lines += (f"REFUSED    {line}" for line in refused.message.splitlines())
        lines += commands_apart(refused.hint or "").splitlines()
    first = result.graphs[0]
    made_on = "searched" if first.method is None else "calibrated and searched"
    lines.append(f"{made_on} on {counted(first.searched, 'photo')}")
    lines += (
        f"{proof.kind:<10} {proof.graph} on {proof.runtime}, {proof.device}: "
        f"{images_text(proof.images)}"
        for proof in proofs
    )
    return "\n".join(
        (
            lines_text(lines),
            *not_proven_text(result.bundle, proofs),
            *outdated_text(result.outdated),
        )
    )


def _graph_text(bundle: Bundle, graph: QuantizedGraph) -> Iterator[str]:
    line = f"{graph.graph}, made for {made_for(graph.runtime, graph.weight_bits)}: "
    if graph.integers is not None and graph.method is not None:
        line += f"{counted(graph.integers, 'node')} in INT8, {len(graph.kept)} of that kind in "
        line += f"FP32; ranges of {_METHODS[graph.method]}"
    else:
        line += f"{counted(len(graph.kept), 'node')} in FP32"
    yield line + speed_text(graph.times_fp32, graph.runtime)
    yield from kept_text(graph.kept, graph)
    if graph.times_fp32 is not None and graph.times_fp32 < 1:
        yield "         INT8 is slower than FP32 here; let predict take what is fastest:"
        yield bundle.command("bench", "--accept")
    elif graph.kept and graph.runtime != REHEARSAL:
        yield "         each of them costs speed; see what is fastest here:"
        yield bundle.command("bench")


def quantization_value(result: Quantization) -> dict[str, Any]:
    """The graphs with their verdicts, and why one was refused."""
    return {
        "bundle": str(result.bundle.folder),
        "passed": result.passed,
        "graphs": [
            {
                "graph": graph.graph,
                "runtime": graph.runtime,
                "integer_nodes": graph.integers,
                "weight_bits": graph.weight_bits,
                "kept": [plain_value(node) for node in graph.kept],
                "calibration": graph.method,
                "searched_images": graph.searched,
                "times_fp32": graph.times_fp32,
                "trials": graph.trials,
                "minimal": graph.minimal,
                "verdicts": [verdict_value(verdict) for verdict in graph.verdicts],
                "proofs": [
                    {
                        "runtime": proof.runtime,
                        "device": proof.device,
                        "kind": proof.kind,
                        "images": plain_value(proof.images),
                        "status": status_of(result.bundle, proof).word,
                    }
                    for proof in graph.proofs
                ],
            }
            for graph in result.graphs
        ],
        "outdated": [engine.file for engine in result.outdated],
        "refused": [{"message": each.message, "hint": each.hint} for each in result.refused],
    }


def made_for(runtime: str, weight_bits: int | None) -> str:
    """What a graph is made for, by what the search tried it on: TensorRT's is rehearsed."""
    if runtime == REHEARSAL:
        return "TensorRT"
    return f"{runtime}, CPUs without VNNI (weights of 7 bits)" if weight_bits == 7 else runtime


def not_proven_text(bundle: Bundle, verdicts: Iterable[KeptVerdict]) -> Iterator[str]:
    """A line for each candidate that passed and is not proven all the same, and why."""
    for each in verdicts:
        known = status_of(bundle, each)
        if known.word != "proven":
            yield f"{known.word.upper()}  {visible(f'{each.graph} on {each.runtime}')}: {known.why}"


def outdated_text(engines: Sequence[Engine]) -> list[str]:
    """A line for each engine that a new graph has made useless, and one for the command."""
    return [
        line
        for engine in engines
        for line in (
            f"OUTDATED {engine.file} was built from an earlier {engine.passport.deploy_graph} and "
            "runs no longer; to build it again:",
            how_to_build_again(engine.passport),
        )
    ]


def kept_text(kept: tuple[KeptNode, ...], search: QuantizedGraph | None) -> list[str]:
    """The nodes that stay in FP32, a line each, with where they are and why."""
    lines = [
        visible(f"FP32     {node_title(node.node, node.operator, node.module)}: {node.reason}")
        for node in kept[:_SHOWN_NODES]
    ]
    if len(kept) > _SHOWN_NODES:
        lines.append(f"         ... and {len(kept) - _SHOWN_NODES} more nodes")
    if search is not None and kept:
        verdict = "none of them can be spared" if search.minimal else "perhaps not all are needed"
        sets = "set" if search.trials == 1 else "sets"
        lines.append(f"         {verdict}: {search.trials} {sets} tried")
    return lines
