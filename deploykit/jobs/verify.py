"""Verify: do a bundle's graphs decide as the reference does, on these photos?"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from deploykit.bundle import CANONICAL_GRAPH, GOLDEN, Bundle
from deploykit.errors import BundleError
from deploykit.jobs.photos import Photos, folder_photos, golden_photos, read_golden
from deploykit.jobs.reference import Reference, ReferenceRequest, open_reference
from deploykit.jobs.verdicts import Verdict, judge_sessions, proof_of
from deploykit.manifest import Manifest, update_manifest
from deploykit.progress import Note, Progress, silent
from deploykit.proofs import PhotoSet
from deploykit.runtime.opener import open_graph
from deploykit.runtime.recorded import RecordedSession
from deploykit.session import Session
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
    """Compare a bundle's graphs with the reference, and keep in the manifest what passed.

    A failed verdict is a result, not an exception; it takes the graph's older proof away.

    Raises:
        UsageError: A runtime or precision that makes no sense.
        BundleError: A file of the bundle is missing or damaged.
        InputError: The photos, or a checkpoint that was named, cannot be used.
        MissingError: The runtime needs a package or a device that is not here.
    """
    request = request or VerifyRequest()
    with ExitStack() as stack:
        if request.self_test:
            reference, photos = _golden_reference(bundle)
        else:
            reference = open_reference(bundle, request.reference, progress)
            photos = _photos(bundle, request, progress)
        stack.enter_context(reference.session)
        candidates = [
            stack.enter_context(_open_candidate(bundle, graph, precision, request.runtime))
            for graph, precision in _graphs(bundle, request, reference)
        ]
        _, verdicts = judge_sessions(
            reference.session,
            candidates,
            photos,
            photos.count,
            bundle.manifest.labels,
            progress,
        )
    result = Verification(reference.description, photos.drawn(), photos.unreadable, verdicts)
    if not request.self_test:
        try:
            _keep(bundle, result)
        except PermissionError as exc:
            progress(Note(f"the proof is not kept: {bundle.folder}: {exc.strerror}"))
    return result


def _golden_reference(bundle: Bundle) -> tuple[Reference, Photos]:
    golden = read_golden(bundle)
    session = RecordedSession(
        golden.logits, name=GOLDEN, input_size=bundle.manifest.preprocessing.input_size
    )
    return Reference(session, f"answers recorded in {GOLDEN}", is_module=False), golden_photos(
        golden
    )


def _photos(bundle: Bundle, request: VerifyRequest, progress: Progress) -> Photos:
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
    deploy = bundle.manifest.deploy
    if request.precision is not None and request.precision not in deploy:
        raise BundleError(
            f"Bundle {bundle.name} has no {request.precision} graph; it has {', '.join(deploy)}."
        )
    wanted = [request.precision] if request.precision else list(deploy)
    graphs: list[tuple[str, Precision]] = [(deploy[precision], precision) for precision in wanted]
    if reference.is_module and request.precision is None:
        graphs.insert(0, (CANONICAL_GRAPH, "fp32"))
    return graphs


def _open_candidate(bundle: Bundle, graph: str, precision: Precision, runtime: str) -> Session:
    return open_graph(
        bundle.checked(graph),
        name=graph,
        runtime=runtime,
        precision=precision,
        preprocessing=bundle.manifest.preprocessing,
        classes=bundle.manifest.architecture.classes,
    )


def _keep(bundle: Bundle, result: Verification) -> None:
    """Put the proofs of what passed into the manifest, and take away those of what failed."""

    def change(manifest: Manifest) -> Manifest:
        for verdict in result.verdicts:
            if not verdict.passed:
                spec = verdict.candidate
                manifest = manifest.without_proof(spec.graph, spec.runtime, spec.device)
                continue
            proof = proof_of(
                verdict,
                graph_sha256=manifest.files[verdict.candidate.graph].sha256,
                reference=result.reference,
                photos=result.photos,
            )
            manifest = manifest.with_proof(proof)
        return manifest

    update_manifest(bundle.folder, change)
