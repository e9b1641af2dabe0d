"""The first run on a device: does it give the recorded golden answers?"""

from __future__ import annotations

from deploykit.bundle.folder import Bundle
from deploykit.bundle.golden import read_golden
from deploykit.errors import ParityError
from deploykit.inference.engines import BUILD_AGAIN
from deploykit.proof.images import ImageSample, golden_sample
from deploykit.proof.policy import budgets_of
from deploykit.proof.reference import GOLDEN_REFERENCE
from deploykit.proof.verdict import Verdict, add_verdicts, judge_sessions, kept_verdict
from deploykit.specs.session import Session
from deploykit.system.progress import Note, Progress, silent


def self_test(
    bundle: Bundle, session: Session, progress: Progress, *, hint: str | None = None
) -> None:
    """Let what runs on this device for the first time answer the golden images.

    That it passed is kept, so that it is asked once. It is no proof.

    Args:
        bundle: The bundle.
        session: Of one of its engines or graphs.
        progress: Called as the images are compared, and with a note of what that showed.
        hint: What to do when it fails; None to build the engine again.

    Raises:
        ParityError: Its answers are not the recorded ones.
    """
    verdict, sample = check_golden(bundle, session, progress, hint=hint)
    file = session.spec.graph
    progress(Note(f"{file} gives the recorded answers on {session.spec.device}"))
    sha256 = bundle.manifest.files[file].sha256
    kept = kept_verdict(verdict, sha256, GOLDEN_REFERENCE, sample.drawn())
    add_verdicts(bundle, [kept], progress)


def check_golden(
    bundle: Bundle, session: Session, progress: Progress = silent, *, hint: str | None = None
) -> tuple[Verdict, ImageSample]:
    """Let a session answer the golden images; nothing is kept.

    Args:
        bundle: The bundle.
        session: Of one of its engines or graphs.
        progress: Called as the images are compared.
        hint: What to do when it fails; None to build the engine again.

    Raises:
        BundleError: The golden images cannot be read.
        ParityError: Its answers are not the recorded ones.
    """
    verdict, sample = judge_golden(bundle, session, progress)
    if not verdict.passed:
        raise ParityError(
            f"{session.spec.graph} does not give the recorded answers on {session.spec.device}: "
            f"{'; '.join(verdict.reasons)}.",
            hint=hint or BUILD_AGAIN,
        )
    return verdict, sample


def judge_golden(
    bundle: Bundle, session: Session, progress: Progress = silent
) -> tuple[Verdict, ImageSample]:
    """Compare a session's answers to the golden images with the recorded ones.

    Args:
        bundle: The bundle.
        session: Of one of its engines or graphs.
        progress: Called as the images are compared.

    Raises:
        BundleError: The golden images cannot be read.
    """
    golden = read_golden(bundle)
    sample = golden_sample(golden.images)
    (verdict,) = judge_sessions(
        golden.logits,
        [session],
        sample,
        bundle.manifest.labels,
        progress,
        count=sample.count,
        kind="golden",
        budgets=budgets_of(bundle.manifest, [session.spec.graph], "golden"),
    )
    return verdict, sample
