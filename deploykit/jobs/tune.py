"""Tune: make the FP16 deploy graph that decides as the checkpoint does, and rehearse it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from deploykit.bundle import Bundle, open_bundle, require_unchanged
from deploykit.errors import ParityError
from deploykit.files import staged
from deploykit.jobs._fp16_loop import FP16_GRAPH, AnsweredPhotos, Fp16Loop, KeptSet
from deploykit.jobs.photos import PROOF_PHOTOS, Photos, split_photos
from deploykit.jobs.reference import Reference, ReferenceRequest, open_reference
from deploykit.jobs.sessions import open_rehearsal
from deploykit.jobs.verdicts import Verdict, judge_sessions, proof_of
from deploykit.manifest import Manifest, record_file, sha256_of, update_manifest
from deploykit.progress import Note, Progress, Step, silent
from deploykit.proofs import Proof
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs import KeptNode

SEARCH_SECONDS = 300.0


@dataclass(frozen=True)
class TuneRequest:
    """How to tune.

    Attributes:
        images: A folder of photos, of which one half of a sample is for the search and the other
            for the proof; None for the one given at export, else the golden images.
        search_seconds: How long the search may begin new trials.
    """

    images: Path | None = None
    search_seconds: float = SEARCH_SECONDS


@dataclass(frozen=True)
class Tuning:
    """An FP16 graph that passed, and what it took.

    Attributes:
        bundle: The bundle, which has the graph and its proof now.
        kept: The nodes that stay in FP32, and why.
        verdict: The rehearsal of the very file, on photos that the search did not use.
        proof: The same as the manifest keeps it.
        searched: How many photos the search used.
        trials: How many sets of FP32 nodes were rehearsed; 1 when the first passed.
        minimal: Whether it was shown that no single kept node can be spared.
    """

    bundle: Bundle
    kept: tuple[KeptNode, ...]
    verdict: Verdict
    proof: Proof
    searched: int
    trials: int
    minimal: bool


def tune_fp16(bundle: Bundle, request: TuneRequest, progress: Progress = silent) -> Tuning:
    """Make ``deploy/fp16.onnx`` from ``deploy/fp32.onnx`` and prove it by rehearsal.

    The range scan and the search choose the nodes that stay in FP32; then the file that was written
    is rehearsed on other photos.

    Args:
        bundle: The bundle.
        request: How.
        progress: Called with what is being done.

    Raises:
        ParityError: No set of FP32 nodes was found with which the graph passes, or the one that was
            found fails on the photos that the search did not see. The bundle stays as it was.
        InputError: The bundle is damaged, or the photos cannot be used.
        DependencyError: onnx is not installed.
    """
    search_photos, proof_photos = split_photos(bundle, request.images, progress)
    _warn_of_few(bundle, proof_photos, progress)
    with ExitStack() as stack:
        reference = open_reference(bundle, ReferenceRequest(), progress)
        stack.enter_context(reference.session)
        if reference.objection is not None:
            raise ParityError(f"Nothing can be proven in FP16: {reference.objection}.")
        answered = _answered(search_photos, reference, progress)
        loop = _open_loop(bundle, answered, progress)
        found = loop.run(request.search_seconds)
        folder = stack.enter_context(staged(bundle.folder))
        path = folder / "fp16.onnx"
        kept = _write(loop, found, bundle.manifest, path)
        verdict = _prove(path, bundle.manifest, reference, proof_photos, progress)
        proof = proof_of(
            verdict,
            graph_sha256=sha256_of(path),
            reference=reference.description,
            reference_kind=reference.kind,
            photos=proof_photos.drawn(),
        )
        _publish(bundle, path, kept, proof)
        _note_unreadable((search_photos, proof_photos), progress)
    return Tuning(
        bundle=open_bundle(bundle.folder),
        kept=kept,
        verdict=verdict,
        proof=proof,
        searched=len(answered.logits),
        trials=found.trials,
        minimal=found.minimal,
    )


def _warn_of_few(bundle: Bundle, photos: Photos, progress: Progress) -> None:
    """Say aloud that a graph will be replaced by one that fewer photos prove."""
    graph = bundle.manifest.deploy.get("fp16")
    old = None if graph is None else bundle.manifest.proof_of(graph, REHEARSAL, "CPU")
    if old is None or old.photos.kind != "photos":
        return
    if photos.count < min(old.photos.images, PROOF_PHOTOS):
        progress(
            Note(
                f"WEAKER: {graph} was rehearsed on {old.photos.images} photos, and what replaces "
                f"it will be on {photos.count}; {2 * PROOF_PHOTOS} photos give {PROOF_PHOTOS}"
            )
        )


def _note_unreadable(drawn: Iterable[Photos], progress: Progress) -> None:
    unreadable = sum(photos.unreadable for photos in drawn)
    if unreadable:
        progress(Note(f"{unreadable} of the sampled photos cannot be read: left out"))


def _answered(photos: Photos, reference: Reference, progress: Progress) -> AnsweredPhotos:
    batches, logits = [], []
    for names, images in photos:
        if not names:
            continue  # not one of these files could be read
        batches.append((names, images.copy()))  # the buffer behind them is reused
        logits.append(reference.session.run(images))
        progress(Step("asking the reference", sum(map(len, logits)), photos.count))
    photos.drawn()  # refuses to go on without any
    return AnsweredPhotos(batches, np.concatenate(logits))


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


def _prove(
    path: Path, manifest: Manifest, reference: Reference, photos: Photos, progress: Progress
) -> Verdict:
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
        (verdict,) = judge_sessions(
            reference.session, [candidate], photos, manifest.labels, progress
        )
    photos.drawn()
    if not verdict.passed:
        raise ParityError(
            "The FP16 graph passes on the photos of the search, but not on others:\n"
            + "\n".join((*verdict.objections, *_flips(verdict))),
            hint="Give more photos (--images), or build in FP32: --precision fp32",
        )
    return verdict


def _flips(verdict: Verdict) -> Iterable[str]:
    for flip in verdict.measurement.distinct_flips:
        yield f"{flip.path}: {flip.reference} -> {flip.candidate}, margin {flip.margin:.2e}"


def _publish(bundle: Bundle, path: Path, kept: tuple[KeptNode, ...], proof: Proof) -> None:
    """Put the graph, its kept nodes and its proof into the bundle, all at once."""
    fp32 = bundle.deploy_graph("fp32")

    def change(manifest: Manifest) -> Manifest:
        require_unchanged(bundle, manifest, fp32)
        bare = manifest.without_proof(FP16_GRAPH, proof.runtime, proof.device)
        changed = msgspec.structs.replace(
            bare,
            deploy={**manifest.deploy, "fp16": FP16_GRAPH},
            files={**manifest.files, FP16_GRAPH: record_file(path)},
            kept={**manifest.kept, "fp16": kept},
        )
        return changed.with_proof(proof)

    update_manifest(bundle.folder, change, {FP16_GRAPH: path})
