"""Verify: do a bundle's graphs decide as the reference does, on these photos?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import GOLDEN, Bundle
from deploykit.bundle.golden import read_golden
from deploykit.commands.verify.margin_mining import (
    LowestMargins,
    MarginRanking,
    rank_photos,
    refuse_undecided,
    tell_standing_proofs,
)
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.sessions import CandidateRequest, open_candidates
from deploykit.errors import UsageError
from deploykit.inference.candidates import Candidate
from deploykit.inference.engines import engine_files
from deploykit.parity.accuracy import accuracies
from deploykit.parity.answers import Answers
from deploykit.proof.extremes import extreme_reasons
from deploykit.proof.photos import Photos, bundle_photos, golden_photos, listed_photos
from deploykit.proof.readable import mostly_unreadable
from deploykit.proof.reference import (
    GOLDEN_REFERENCE,
    OpenReference,
    Reference,
    ReferenceRequest,
    open_reference,
)
from deploykit.proof.verdict import Verdict, answer_images, judge_answers, keep_verdicts
from deploykit.runtime.opener import CUDA
from deploykit.specs.model import Precision
from deploykit.specs.session import Logits, SessionSpec
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import now


@dataclass(frozen=True)
class VerifyRequest:
    """What to verify.

    Attributes:
        photos: Photos that are open already; instead of ``images``.
        images: A folder of photos; None for the one recorded at export while it is there, else the
            golden images.
        max_images: At most so many, a fixed sample that is even over the classes.
        budget: Compare so many photos, those with the lowest margins; see
            :mod:`deploykit.commands.verify.margin_mining`.
        runtime: What executes; None for every runtime that can run here.
        precision: Of the deploy graphs and engines; None for every one that they are made for, and
            so not for BF16, which is no graph's own.
        engine: One engine by its name; None for the newest of each kind that can run here.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32; proves nothing about FP32.
        reference: What the user named to compare with.
        self_test: Compare with the recorded golden answers; needs only the bundle.
        keep: Whether the bundle keeps the verdicts.
    """

    photos: Photos | None = None
    images: Path | None = None
    max_images: int | None = None
    budget: int | None = None
    runtime: str | None = None
    precision: Precision | None = None
    engine: str | None = None
    tf32: bool = False
    reference: ReferenceRequest = field(default_factory=ReferenceRequest)
    self_test: bool = False
    keep: bool = True

    def check(self) -> None:
        """Refuse what makes no sense together, before anything is opened.

        Raises:
            UsageError: Options that contradict each other, or compare nothing.
        """
        if self.tf32 and self.runtime != CUDA:
            raise UsageError(f"Only {CUDA} has TF32.", hint=f"Name it: --runtime {CUDA} --tf32")
        if self.self_test:
            self._check_self_test()
        if self.budget is None:
            return
        if self.budget < 1:
            raise UsageError(
                f"A budget of {self.budget} photos compares nothing.", hint="Give at least 1."
            )
        if self.max_images is not None:
            raise UsageError(
                "--budget chooses the photos with the lowest margins, --max-images a fixed sample.",
                hint="Give one of the two.",
            )
        if self.self_test or self.photos is not None:
            raise UsageError(
                "--budget chooses from a folder of photos, not from images that are given already.",
                hint="Name a folder, without --self-test: --budget N --images DIR",
            )

    def _check_self_test(self) -> None:
        if self.max_images is not None:
            raise UsageError(
                "--self-test compares all the answers that are recorded, and --max-images photos.",
                hint="Leave out one of the two.",
            )
        if self.images is not None or self.reference.named:
            raise UsageError(
                "--self-test compares the bundle with its own recorded answers: "
                "it takes no photos and no checkpoint.",
                hint="Leave out --self-test, or --images, --arch and --ckpt.",
            )


def verify_bundle(
    bundle: Bundle,
    request: VerifyRequest | None = None,
    progress: Progress = silent,
    *,
    reference: OpenReference | None = None,
) -> Verification:
    """Compare a bundle's graphs with the reference, and keep in the manifest what that shows.

    A failed verdict is a result, not an exception. What passed becomes the candidate's proof, and
    what failed takes it away: the last verdict on at least as many images counts. Nothing is kept
    when the user named other weights than the bundle's, or the reference is itself not proven.

    Args:
        bundle: The bundle.
        request: What to verify.
        progress: Called with what is being done.
        reference: What ``request.reference`` names, open already; it stays open. None to open it
            here, and to close it again.

    Raises:
        UsageError: A runtime or precision that makes no sense, or options that contradict.
        BundleError: A file of the bundle is missing or damaged.
        InputError: The photos, or a checkpoint that was named, cannot be used.
        MissingError: The runtime needs a package or a device that is not here.
    """
    request = request or VerifyRequest()
    request.check()
    if request.self_test and reference is not None:
        raise UsageError(
            "A self-test compares with the recorded answers, and with no other reference.",
            hint="Leave out the reference, or the self-test.",
        )
    bundle.checked(GOLDEN)  # which no graph's hash covers, and the next machine relies on
    start = time.perf_counter()
    compared = _compare(bundle, request, reference, progress)
    photos, ranking, answers = compared.photos, compared.ranking, compared.answers
    labels, compared_with = bundle.manifest.labels, compared.reference
    if ranking is None:
        verdicts = judge_answers(answers, compared.candidates, labels, kind=photos.kind)
    else:
        verdicts = ranking.judge_answers(answers, compared.candidates, labels)
    drawn = photos.drawn()
    verdicts = tuple(
        verdict.with_extremes(reasons)
        for verdict, reasons in zip(verdicts, compared.extremes, strict=True)
    )
    if reason := mostly_unreadable(compared.unreadable, compared.tried - compared.unreadable):
        verdicts = tuple(verdict.refused(reason) for verdict in verdicts)
    mined = ranking is not None
    expected = {path: photos.expected[path] for path in answers.paths if path in photos.expected}
    return Verification(
        reference=compared_with.description,
        reference_kind=compared_with.kind,
        is_recorded=compared_with.is_recorded,
        photos=drawn,
        unreadable=compared.unreadable,
        verdicts=_settled(bundle, verdicts, compared, progress, keep=request.keep),
        skipped=compared.skipped,
        answers=answers,
        expected=expected,
        # The closest decisions tell nothing about the accuracy on all.
        accuracy=() if mined else accuracies(answers, expected, labels),
        created=now(),
        versions=installed_versions(),
        mining=ranking.mining_of(answers, compared.candidates) if ranking else None,
        obstacle=compared_with.obstacle,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, eq=False)
class _Compared:
    """What was asked, and what it answered.

    Attributes:
        reference: What is right by definition; closed, if it was opened for this.
        candidates: What was compared with it.
        skipped: What was not, and why.
        photos: The images, drawn.
        ranking: What they were chosen from by their margins; None where they were not.
        answers: To the images.
        extremes: What speaks against each candidate on extreme images.
    """

    reference: Reference
    candidates: tuple[SessionSpec, ...]
    skipped: Mapping[Candidate, str]
    photos: Photos
    ranking: MarginRanking | None
    answers: Answers
    extremes: tuple[tuple[str, ...], ...]

    @property
    def tried(self) -> int:
        """How many images there were, those that were ranked only included."""
        return self.photos.count if self.ranking is None else len(self.ranking.wanted.folder.files)

    @property
    def unreadable(self) -> int:
        """How many of them could not be read."""
        return self.photos.unreadable + (self.ranking.unreadable if self.ranking else 0)


def _compare(
    bundle: Bundle, request: VerifyRequest, reference: OpenReference | None, progress: Progress
) -> _Compared:
    """Open what is to be compared, let it answer, and close it again."""
    photos = _photos(bundle, request, progress)
    wanted = CandidateRequest(request.runtime, request.precision, request.engine, request.tf32)
    ranking = None
    with ExitStack() as stack:
        if reference is None and not request.self_test:
            reference = open_reference(bundle, request.reference, progress)
            stack.enter_context(reference.session)
        right = _recorded_answers(bundle) if reference is None else reference.session
        compared_with = reference or GOLDEN_REFERENCE
        candidates, skipped = open_candidates(bundle, wanted, compared_with.kind, stack, progress)
        calibration = bundle.manifest.calibration_images(each.spec.graph for each in candidates)
        if reference is not None and isinstance(photos, LowestMargins):
            # Not before: that may take minutes, and what cannot run here should fail at once.
            ranking = rank_photos(bundle, photos, reference.session, calibration, progress)
            photos = ranking.lowest
        assert isinstance(photos, Photos)  # noqa: S101
        stack.callback(photos.close)
        if not request.self_test:
            photos.skip(calibration)
        answers = answer_images(right, candidates, photos, progress, count=photos.count)
        extremes: tuple[tuple[str, ...], ...] = ((),) * len(candidates)
        if reference is not None:  # recorded answers are to other images
            scale = float(np.abs(np.nan_to_num(answers.reference)).max(initial=0))
            extremes = extreme_reasons(reference.session, candidates, scale, progress)
        specs = tuple(candidate.spec for candidate in candidates)
    return _Compared(compared_with, specs, skipped, photos, ranking, answers, extremes)


def _photos(bundle: Bundle, request: VerifyRequest, progress: Progress) -> Photos | LowestMargins:
    """The images, or where those with the lowest margins are to be found."""
    if request.self_test:
        return golden_photos(read_golden(bundle))
    if request.photos is not None:
        return request.photos
    if request.budget is not None:
        return LowestMargins(listed_photos(bundle, request.images, progress), request.budget)
    return bundle_photos(bundle, request.images, limit=request.max_images, progress=progress)


def _settled(
    bundle: Bundle,
    verdicts: tuple[Verdict, ...],
    compared: _Compared,
    progress: Progress,
    *,
    keep: bool,
) -> tuple[Verdict, ...]:
    """Keep in the manifest what the verdicts show, and refuse those that show nothing."""
    reference, photos, mined = compared.reference, compared.photos, compared.ranking is not None
    if reference.reason is not None:
        return tuple(verdict.refused(reference.reason) for verdict in verdicts)
    if reference.is_recorded:
        if keep:
            keep_verdicts(bundle, verdicts, reference, photos.drawn(), progress)
    else:
        progress(Note("no proof of the bundle: other weights or code than it was exported from"))
    if not mined:
        return verdicts
    if reference.is_recorded:
        verdicts = tell_standing_proofs(bundle, verdicts)
    return refuse_undecided(verdicts)


def _recorded_answers(bundle: Bundle) -> Logits:
    """The answers recorded at export; every file of the bundle is checked with them."""
    engines = engine_files(bundle)
    for file in bundle.manifest.files:
        if file not in engines:  # opening an engine checks it; a damaged one stops nothing else
            bundle.checked(file)
    return read_golden(bundle).logits
