"""Verify: do a bundle's graphs decide as the reference does, on these photos?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from deploykit.bundle import CANONICAL_GRAPH, GOLDEN, Bundle
from deploykit.errors import BundleError, GraphError, MissingError, UsageError
from deploykit.gpu import find_gpu
from deploykit.jobs.candidates import (
    Candidate,
    by_reason,
    engine_candidate,
    named_candidates,
    open_candidate,
)
from deploykit.jobs.engines import is_flavour, named_engine
from deploykit.jobs.photos import Photos, bundle_photos, golden_photos, read_golden
from deploykit.jobs.reference import Reference, ReferenceRequest, open_reference
from deploykit.jobs.sessions import open_bundle_graph
from deploykit.jobs.verdicts import Verdict, judge_sessions, proof_of
from deploykit.manifest import Manifest, update_manifest
from deploykit.progress import Note, Progress, silent
from deploykit.proofs import PhotoSet, ReferenceKind
from deploykit.runtime.opener import CPU, CUDA
from deploykit.runtime.recorded import RecordedSession
from deploykit.session import Session
from deploykit.specs import Precision


@dataclass(frozen=True)
class VerifyRequest:
    """What to verify.

    Attributes:
        photos: Photos that are open already; instead of ``images``.
        images: A folder of photos; None for the one recorded at export while it is there, else the
            golden images.
        max_images: At most so many, a fixed sample that is even over the classes.
        runtime: What executes; None for every runtime that can run here.
        precision: Of the deploy graphs and engines; None for every one.
        engine: One engine by its name; None for the newest of each kind that can run here.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32; proves nothing about FP32.
        reference: What the user named to compare with.
        self_test: Compare with the recorded golden answers; needs only the bundle.
    """

    photos: Photos | None = None
    images: Path | None = None
    max_images: int | None = None
    runtime: str | None = None
    precision: Precision | None = None
    engine: str | None = None
    tf32: bool = False
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
    if request.tf32 and request.runtime != CUDA:
        raise UsageError(f"Only {CUDA} has TF32.", hint=f"Name it: --runtime {CUDA} --tf32")
    photos = _photos(bundle, request, progress)
    with ExitStack() as stack:
        reference = _reference(bundle, request, progress)
        stack.enter_context(reference.session)
        candidates = [
            stack.enter_context(session)
            for session in _sessions(bundle, request, reference, progress)
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
    engines = (*bundle.manifest.engines, *(f"{file}.json" for file in bundle.manifest.engines))
    for file in bundle.manifest.files:
        if file not in engines:  # a copy may have been made without them; opening one checks it
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
    if request.photos is not None:
        return request.photos
    return bundle_photos(bundle, request.images, limit=request.max_images, progress=progress)


def _sessions(
    bundle: Bundle, request: VerifyRequest, reference: Reference, progress: Progress
) -> Iterator[Session]:
    """Open what is to be compared; never the reference with itself."""
    named = (request.runtime, request.precision, request.engine) != (None, None, None)
    if reference.kind == "module" and not named:
        yield open_bundle_graph(bundle, CANONICAL_GRAPH, runtime=CPU, precision="fp32")
    opened: set[tuple[str, Precision]] = set()
    left_out: list[tuple[Candidate, MissingError]] = []
    for candidate in _candidates(bundle, request, progress):
        kind = candidate.runtime, candidate.precision
        if kind in opened:
            continue  # an older engine
        try:
            session = open_candidate(bundle, candidate, tf32=request.tf32)
        except MissingError as exc:
            left_out.append((candidate, exc))
            continue
        except (BundleError, GraphError) as exc:
            if named or not is_flavour(candidate.runtime):
                raise
            progress(Note(f"left out: {candidate}: {exc.message}"))
            continue
        opened.add(kind)
        yield session
    if left_out and not opened:
        raise left_out[0][1]
    told = [
        (candidate, obstacle.message)
        for candidate, obstacle in left_out
        if candidate.runtime != CUDA or find_gpu() is not None
    ]
    for line in by_reason(told):
        progress(Note(f"left out: {line}"))


def _candidates(bundle: Bundle, request: VerifyRequest, progress: Progress) -> list[Candidate]:
    """The candidates that are meant; of engines of one kind the newest first."""
    if request.engine is not None:
        if (request.runtime, request.precision) != (None, None):
            raise UsageError(
                "--engine says by itself what runs, on what and in which precision.",
                hint="Leave out --runtime and --precision.",
            )
        return [engine_candidate(named_engine(bundle, request.engine))]
    return named_candidates(bundle, request.runtime, request.precision, progress)


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
            if spec.tf32:
                continue  # of FP32 it shows neither the one nor the other
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
