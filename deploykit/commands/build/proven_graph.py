"""The deploy graph that an engine is built from, and its proof."""

from __future__ import annotations

from dataclasses import replace

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH, Bundle, deploy_graph
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import QuantizedGraph, quantize_bundle
from deploykit.errors import BundleError, ParityError
from deploykit.inference.candidates import Candidate
from deploykit.parity.budget import Budget
from deploykit.parity.tolerance import tolerance_for
from deploykit.proof.policy import status
from deploykit.runtime.opener import CPU, REHEARSAL
from deploykit.specs.model import Precision
from deploykit.system.progress import Note, Progress
from deploykit.system.text import command_line

#: On which runtime the proof of a deploy graph rests where no GPU has run it.
PROOF_RUNTIMES: dict[Precision, str] = {"fp32": CPU, "fp16": REHEARSAL, "int8": REHEARSAL}
#: What becomes an engine.
_GRAPHS: dict[Precision, str] = {
    "fp32": deploy_graph("fp32"),
    "fp16": deploy_graph("fp16"),
    "int8": INT8_TENSORRT_GRAPH,
}


def proven_graph(
    bundle: Bundle, request: QuantizeRequest, progress: Progress
) -> tuple[Bundle, KeptVerdict, QuantizedGraph | None]:
    """The deploy graph of a precision and its proof; below FP32 it is made where there is none.

    Args:
        bundle: The bundle.
        request: The precision, and how its graph is made: anew where images are given.
        progress: Called with what is being done.

    Raises:
        ParityError: It is not proven.
    """
    precision = request.precision
    proof, reason = _proof_of(bundle, precision, request.budget)
    if proof is not None and reason:
        progress(Note(f"{proof.graph} {reason}: it is made again"))
        proof = None
    if precision != "fp32" and (proof is None or request.images is not None):
        # Of INT8 the graph for CPUs stays as it is.
        made = quantize_bundle(bundle, replace(request, graphs=(_GRAPHS[precision],)), progress)
        (graph,) = made.graphs
        return made.bundle, graph.proof, graph
    if proof is None:
        words = ("deploykit", "verify", "--bundle", str(bundle.folder), "--images", "DIR")
        raise ParityError(
            f"The {precision} graph of bundle {bundle.name} is not proven to decide as the "
            "checkpoint does.",
            hint=f"Prove it: {command_line(words)}",
        )
    made_anew = " (--images makes it anew)" if precision != "fp32" else ""
    progress(
        Note(f"{proof.graph} is there, {proof.kind} on {proof.images.count} images{made_anew}")
    )
    return bundle, proof, None


def _is_whole(bundle: Bundle, graph: str) -> bool:
    try:
        bundle.checked(graph)
    except BundleError:
        return False
    return True


def _proof_of(
    bundle: Bundle, precision: Precision, budget: Budget | None
) -> tuple[KeptVerdict | None, str]:
    """The proof of the graph that is there, and why that graph does not do all the same.

    On any device: of INT8 it tells the CPU's instruction sets, and any will do.
    """
    graph = _GRAPHS[precision]
    if graph not in bundle.manifest.files:
        return None, ""
    known = status(bundle, Candidate(graph, PROOF_RUNTIMES[precision], precision))
    if precision == "fp32":
        return known.proof, ""
    # A rehearsal on few photos is no proof; the engine, which is compared itself, may be built.
    proof = known.verdict
    if proof is None or not proof.passed:
        return None, ""
    if not _is_whole(bundle, graph):
        return proof, "is missing or damaged"  # a crash between two files can be mended here
    if budget is not None and known.word != "proven":
        # It may have been made within a wider budget, and without a GPU nothing judges the engine.
        reasons = tolerance_for(precision, budget).reasons(proof.measurement)
        return proof, f"does not keep to this budget ({'; '.join(reasons)})" if reasons else ""
    return proof, ""
