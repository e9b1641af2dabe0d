"""Verify: do a bundle's graphs decide as the reference does, on these photos?"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from deploykit.bundle import CANONICAL_GRAPH, GOLDEN, Bundle
from deploykit.errors import BundleError
from deploykit.jobs.photos import Photos, folder_photos, golden_photos, read_golden
from deploykit.jobs.reference import Reference, ReferenceRequest, open_reference
from deploykit.jobs.sessions import open_bundle_graph
from deploykit.jobs.verdicts import Verdict, judge_sessions, proof_of
from deploykit.manifest import Manifest, update_manifest
from deploykit.progress import Note, Progress, silent
from deploykit.proofs import PhotoSet, ReferenceKind
from deploykit.runtime.opener import precisions_of
from deploykit.runtime.recorded import RecordedSession
from deploykit.specs import Precision


@dataclass(frozen=True)
class VerifyRequest:
    """What to verify.

    Attributes:
        images: A folder of photos; None for the one recorded at export while it is there, else the
            golden images.
        max_images: At most so many, a fixed sample that is even over the classes.
        runtime: What executes the deploy graphs.
        precision: Of the deploy graph; None for every one that the runtime executes.
        reference: What the user named to compare with.
        self_test: Compare the deploy graphs with the recorded golden answers; needs only the
            bundle.
    """

    images: Path | None = None
    max_images: int | None = None
    runtime: str = "onnxruntime-cpu"
    precision: Precision | None = None
    reference: ReferenceRequest = field(default_factory=ReferenceRequest)
    self_test: bool = False


@dataclass(frozen=True)
class Verification:
    """What was compared with what, on which images, and the verdicts.

    Attributes:
        reference: What the candidates were compared with, in words.
        photos: The images.
        unreadable: How many more could not be read.
        verdicts: One a candidate.
    """

    reference: str
    photos: PhotoSet
    unreadable: int
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether there is a verdict and every one passed."""
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)


def verify_bundle(
    bundle: Bundle, request: VerifyRequest | None = None, progress: Progress = silent
) -> Verification:
    """Compare a bundle's graphs with the reference, and keep in the manifest what that shows.

    A failed verdict is a result, not an exception. A passed one becomes the graph's proof, unless
    the proof that it has shows more; a failed one takes the graph's proof away. Neither happens
    when the user named other weights than the bundle's, or the reference is itself not proven.

    Raises:
        UsageError: A runtime or precision that makes no sense.
        BundleError: A file of the bundle is missing or damaged.
        InputError: The photos, or a checkpoint that was named, cannot be used.
        MissingError: The runtime needs a package or a device that is not here.
    """
    request = request or VerifyRequest()
    photos = _photos(bundle, request, progress)
    with ExitStack() as stack:
        reference = _reference(bundle, request, progress)
        stack.enter_context(reference.session)
        candidates = [
            stack.enter_context(
                open_bundle_graph(bundle, graph, runtime=request.runtime, precision=precision)
            )
            for graph, precision in _graphs(bundle, request, reference)
        ]
        verdicts = judge_sessions(
            reference.session,
            candidates,
            photos,
            photos.count,
            bundle.manifest.labels,
            progress,
        )
    if reference.objection is not None:
        verdicts = tuple(verdict.refused(reference.objection) for verdict in verdicts)
    result = Verification(reference.description, photos.drawn(), photos.unreadable, verdicts)
    if reference.objection is not None:
        return result
    if reference.is_recorded:
        _keep(bundle, result, reference.kind, progress)
    else:
        progress(Note("no proof of the bundle: other weights or code than it was exported from"))
    return result


def _reference(bundle: Bundle, request: VerifyRequest, progress: Progress) -> Reference:
    if not request.self_test:
        return open_reference(bundle, request.reference, progress)
    for file in bundle.manifest.files:
        bundle.checked(file)
    session = RecordedSession(
        read_golden(bundle).logits,
        name=GOLDEN,
        input_size=bundle.manifest.preprocessing.input_size,
    )
    return Reference(session, kind="golden", description=f"answers recorded in {GOLDEN}")


def _photos(bundle: Bundle, request: VerifyRequest, progress: Progress) -> Photos:
    if request.self_test:
        return golden_photos(read_golden(bundle))
    folder = request.images
    if folder is None and bundle.manifest.photos and Path(bundle.manifest.photos).is_dir():
        folder = Path(bundle.manifest.photos)
        progress(Note(f"using the photos given at export: {folder}"))
    if folder is None:
        progress(Note(f"no photos given: using {GOLDEN}; --images DIR takes yours"))
        return golden_photos(read_golden(bundle))
    return folder_photos(
        folder,
        bundle.manifest.preprocessing,
        labels=bundle.manifest.labels,
        limit=request.max_images,
    )


def _graphs(
    bundle: Bundle, request: VerifyRequest, reference: Reference
) -> list[tuple[str, Precision]]:
    """The graphs to compare, with their precision; never the reference with itself."""
    if request.precision is not None:
        return [(bundle.deploy_graph(request.precision), request.precision)]
    able = precisions_of(request.runtime)
    graphs: list[tuple[str, Precision]] = [
        (graph, precision)
        for precision, graph in bundle.manifest.deploy.items()
        if precision in able
    ]
    if reference.kind == "module":
        graphs.insert(0, (CANONICAL_GRAPH, "fp32"))
    return graphs


def _keep(
    bundle: Bundle, result: Verification, reference_kind: ReferenceKind, progress: Progress
) -> None:
    """Put the proofs of what passed into the manifest, and take away those of what failed.

    What the self-test passes is no new proof: its answers come from the export's.
    """
    measured = bundle.manifest.files

    def change(manifest: Manifest) -> Manifest:
        for verdict in result.verdicts:
            spec = verdict.candidate
            if manifest.files.get(spec.graph) != measured[spec.graph]:
                continue  # exported again meanwhile: this verdict is about another graph
            if not verdict.passed:
                manifest = manifest.without_proof(spec.graph, spec.runtime, spec.device)
            elif reference_kind != "golden":
                proof = proof_of(
                    verdict,
                    graph_sha256=measured[spec.graph].sha256,
                    reference=result.reference,
                    reference_kind=reference_kind,
                    photos=result.photos,
                )
                manifest = manifest.with_proof(proof)
        return manifest

    if reference_kind == "golden" and result.passed:
        return
    try:
        update_manifest(bundle.folder, change)
    except (OSError, BundleError) as exc:
        # The comparison stands, whether the bundle can be written or not (a read-only mount).
        outcome = "the proof is not kept" if result.passed else "the old proof is still there"
        progress(Note(f"{outcome}, {bundle.folder} cannot be changed: {exc}"))
