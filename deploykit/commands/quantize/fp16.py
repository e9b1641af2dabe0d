"""Tune: make the FP16 deploy graph that decides as the checkpoint does, and rehearse it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploykit.bundle.folder import Bundle, open_bundle, require_unchanged
from deploykit.bundle.manifest import (
    Manifest,
    SearchRecord,
    record_file,
    sha256_of,
    update_manifest,
)
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.quantize.fp16_loop import FP16_GRAPH, Fp16Loop
from deploykit.commands.quantize.replacement import refuse_unproven, weigh_photos
from deploykit.commands.quantize.request import SearchedGraph, SearchRequest
from deploykit.commands.quantize.search import KeptSet
from deploykit.errors import ParityError
from deploykit.inference.sessions import open_rehearsal
from deploykit.proof.answered import AnsweredPhotos, flip_lines, split_answers
from deploykit.proof.photos import split_photos
from deploykit.proof.reference import EXPORT_PROVES, ReferenceRequest, open_reference
from deploykit.proof.verdict import Verdict, kept_verdict
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs.precision import KeptNode
from deploykit.system.files import staged
from deploykit.system.progress import Progress, silent


@dataclass(frozen=True)
class Tuning(SearchedGraph):
    """An FP16 graph that passed in rehearsal.

    Attributes:
        bundle: The bundle, which has the graph and its proof now.
    """

    bundle: Bundle


def tune_fp16(bundle: Bundle, request: SearchRequest, progress: Progress = silent) -> Tuning:
    """Make ``deploy/fp16.onnx`` from ``deploy/fp32.onnx`` and prove it by rehearsal.

    The range scan and the search choose the nodes that stay in FP32; then the file that was written
    is rehearsed on other photos.

    Args:
        bundle: The bundle.
        request: How.
        progress: Called with what is being done.

    Raises:
        ParityError: No set of FP32 nodes was found with which the graph passes, or the one that was
            found fails on the photos that the search did not see, or they are too few to replace
            a graph that is proven, or most photos cannot be read. The bundle stays as it was.
        InputError: The bundle is damaged, or the photos cannot be used.
        DependencyError: onnx is not installed.
    """
    split = split_photos(bundle, request.images, progress)
    with ExitStack() as stack:
        reference = open_reference(bundle, ReferenceRequest(), progress)
        stack.enter_context(reference.session)
        if reference.objection is not None:
            raise ParityError(
                f"Nothing can be proven in FP16: {reference.objection}.", hint=EXPORT_PROVES
            )
        searched, proven = split_answers(split, reference, progress)
        weigh_photos(bundle, [FP16_GRAPH], proven, progress)
        loop = _open_loop(bundle, searched, progress)
        found = loop.run(request.search_seconds)
        folder = stack.enter_context(staged(bundle.folder))
        path = folder / "fp16.onnx"
        kept = _write(loop, found, bundle.manifest, path)
        verdict = _prove(path, bundle.manifest, proven, progress)
        proof = kept_verdict(verdict, sha256_of(path), reference, proven.drawn)
        refuse_unproven(bundle, FP16_GRAPH, [proof])
        _publish(bundle, path, kept, proof, searched.search_on(REHEARSAL))
    return Tuning(
        bundle=open_bundle(bundle.folder),
        kept=kept,
        verdict=verdict,
        proof=proof,
        searched=len(searched.logits),
        trials=found.trials,
        minimal=found.minimal,
    )


def _open_loop(bundle: Bundle, photos: AnsweredPhotos, progress: Progress) -> Fp16Loop:
    from deploykit.graph.files import load_graph

    graph = load_graph(bundle.checked(bundle.deploy_graph("fp32")))
    return Fp16Loop(graph, bundle.manifest, photos, progress)


def _write(loop: Fp16Loop, found: KeptSet, manifest: Manifest, path: Path) -> tuple[KeptNode, ...]:
    """Write the FP16 graph, and say which of its nodes compute in FP32 after all."""
    from deploykit.graph.files import save_graph
    from deploykit.graph.fp16 import fp32_nodes
    from deploykit.graph.passes import MODULE_PATH

    graph = loop.converted(found.nodes)
    save_graph(graph, path, labels=manifest.labels, preprocessing=manifest.preprocessing)
    return tuple(
        KeptNode(
            node=node.name or "",
            operator=node.op_type,
            module=node.metadata_props.get(MODULE_PATH, ""),
            reason=found.reasons.get(
                node.name or "", f"ONNX Runtime's converter leaves {node.op_type} in FP32"
            ),
        )
        for node in fp32_nodes(graph)
    )


def _prove(path: Path, manifest: Manifest, photos: AnsweredPhotos, progress: Progress) -> Verdict:
    """Rehearse the very file that was written.

    Raises:
        ParityError: It does not pass.
    """
    from deploykit.graph.files import load_graph

    with open_rehearsal(
        load_graph(path),
        name=FP16_GRAPH,
        preprocessing=manifest.preprocessing,
        labels=manifest.labels,
    ) as candidate:
        verdict = photos.judge(candidate, manifest, progress)
    if not verdict.passed:
        raise ParityError(
            "The FP16 graph passes on the photos of the search, but not on others:\n"
            + "\n".join((*verdict.objections, *flip_lines(verdict))),
            hint="Give more photos (--images), or build in FP32: --precision fp32",
        )
    return verdict


def _publish(
    bundle: Bundle,
    path: Path,
    kept: tuple[KeptNode, ...],
    proof: KeptVerdict,
    search: SearchRecord,
) -> None:
    """Put the graph, its kept nodes, what chose them and its proof into the bundle, all at once."""
    fp32 = bundle.deploy_graph("fp32")

    def change(manifest: Manifest) -> Manifest:
        require_unchanged(bundle, manifest, fp32)
        changed = msgspec.structs.replace(
            manifest.without_verdicts_of(FP16_GRAPH),
            deploy={**manifest.deploy, "fp16": FP16_GRAPH},
            files={**manifest.files, FP16_GRAPH: record_file(path)},
            kept={**manifest.kept, "fp16": kept},
            searches={**manifest.searches, FP16_GRAPH: search},
        )
        return changed.with_verdict(proof)

    update_manifest(bundle.folder, change, {FP16_GRAPH: path})
