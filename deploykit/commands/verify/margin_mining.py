"""Margin mining: rank a folder's photos by margin, so that the closest decisions come first."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import printable
from deploykit.images.batches import default_threads
from deploykit.images.scan import ImageFile
from deploykit.inference.candidates import Candidate
from deploykit.inference.pipeline import answer_files
from deploykit.inference.sessions import open_bundle_graph
from deploykit.parity.answers import Answers
from deploykit.parity.compare import measure_answers
from deploykit.parity.measures import Array
from deploykit.parity.mining import MarginMining, moved_apart, population_of, ranking_margins
from deploykit.proof.photos import PhotoFolder, Photos, nothing_readable, short_digest
from deploykit.proof.policy import status
from deploykit.proof.verdict import Verdict, judge, timed
from deploykit.runtime.opener import CPU
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import Logits, Session, SessionSpec
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.text import counted
from deploykit.system.threads import StageClock

_BATCH_SIZE = 8
_UNDECIDED = "not one of the compared images has a margin that decides; a larger --budget has some"


@dataclass(frozen=True)
class LowestMargins:
    """Photos that are to be found by their margins.

    Attributes:
        folder: Where they are.
        budget: How many: those with the lowest margins.
    """

    folder: PhotoFolder
    budget: int


@dataclass(frozen=True, eq=False)
class MarginRanking:
    """A folder's photos that can be compared, the lowest margin first.

    Attributes:
        wanted: Where they are, and how many are to be compared.
        files: Their files, in this order.
        skipped: How many readable files are not among them: duplicates, and calibration images.
        margins: (N,) float64, theirs, ascending.
        scale: The reference's largest absolute logit on the photo on which the ranking has its
            own: with the sample's alone, errors and margins would be judged by another measure
            than those of all photos.
        ranked_by: What gave the margins, in words.
        lowest: Those that are to be compared, in this order.
    """

    wanted: LowestMargins
    files: Sequence[ImageFile]
    skipped: int
    margins: Array
    scale: float
    ranked_by: str
    lowest: Photos

    @property
    def unreadable(self) -> int:
        """How many files could not be read."""
        return len(self.wanted.folder.files) - len(self.files) - self.skipped

    def judge_answers(
        self, answers: Answers, candidates: Sequence[SessionSpec], labels: Labels
    ) -> tuple[Verdict, ...]:
        """Judge answers to the lowest margins as those of a part of all ranked photos."""
        mining = self.mining_of(answers, candidates)
        measurements = measure_answers(
            answers, candidates, labels, least_scale=self.scale, bounded=False
        )
        verdicts = (
            judge(
                candidate,
                found,
                population_of(
                    self.margins,
                    candidate.precision,
                    found,
                    others_hold=mining.left_out_hold(candidate.title),
                ),
            )
            for candidate, found in zip(candidates, measurements, strict=True)
        )
        return timed(verdicts, answers)

    def mining_of(self, answers: Answers, candidates: Sequence[SessionSpec]) -> MarginMining:
        """What answers to the lowest margins show about the photos that were left out."""
        budget = self.wanted.budget
        margin_of = {
            file.name: margin
            for file, margin in zip(self.files[:budget], self.margins.tolist(), strict=False)
        }
        ranked = np.array([margin_of[path] for path in answers.paths])
        return MarginMining(
            budget=budget,
            compared=len(answers.paths),
            ranked=len(self.files),
            skipped=self.skipped,
            ranked_by=self.ranked_by,
            ranking_error=float(np.abs(ranking_margins(answers.reference) - ranked).max()),
            smallest_left_out=float(self.margins[budget]) if budget < len(self.margins) else None,
            apart={
                candidate.title: moved_apart(answers.reference, logits)
                for candidate, logits in zip(candidates, answers.candidates, strict=True)
            },
        )


def refuse_undecided(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Refuse what passed although the reference decides none of the images."""
    return tuple(
        verdict.refused(_UNDECIDED)
        if verdict.passed and verdict.measurement.decidable == 0
        else verdict
        for verdict in verdicts
    )


def tell_standing_proofs(bundle: Bundle, verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Say of what failed here, but perhaps not on all photos, which proof it leaves standing."""
    return tuple(_with_standing_proof(bundle, verdict) for verdict in verdicts)


def _with_standing_proof(bundle: Bundle, verdict: Verdict) -> Verdict:
    spec = verdict.candidate
    proof = status(bundle, Candidate(spec.graph, spec.runtime, spec.precision), spec.device).proof
    if verdict.passed or verdict.failed or spec.tf32 or proof is None:
        return verdict
    note = (
        f"it failed on these photos, which were chosen by their margins: the proof of "
        f"{proof.created[:10]} stands; compare all photos, without --budget"
    )
    return msgspec.structs.replace(verdict, note=note)


def rank_photos(
    bundle: Bundle,
    wanted: LowestMargins,
    reference: Session,
    calibration: Collection[str],
    progress: Progress,
) -> MarginRanking:
    """Rank a folder's photos by the margins that the FP32 deploy graph gives them on the CPU.

    Of a photo its place in the folder and its margin are kept, not its pixels.

    Args:
        bundle: The bundle.
        wanted: The photos.
        reference: Asked about one photo, for the scale: the graph that ranks is not proven.
        calibration: See :meth:`deploykit.proof.photos.Photos.skip`.
        progress: Called after every batch.

    Raises:
        ImagesError: Not one photo can be read.
        BundleError: The FP32 deploy graph is missing or damaged.
    """
    graph, preprocessing = bundle.deploy_graph("fp32"), bundle.manifest.preprocessing
    folder = wanted.folder
    ranked_by = f"{graph} on {CPU}"
    progress(Note(f"ranking {counted(len(folder.files), 'photo')} by the margins of {ranked_by}"))
    # One thread: the session computes in the threads that read.
    with open_bundle_graph(bundle, graph, runtime=CPU, precision="fp32", threads=1) as session:
        answered = _answered(folder.files, preprocessing, session, calibration, progress)
    margins = answered.margins
    order = np.argsort(margins, kind="stable")[: np.isfinite(margins).sum()]  # NaN comes last
    if len(order) == 0:
        raise nothing_readable(printable(folder.path), len(folder.files))
    files = [folder.files[place] for place in order]
    loudest = folder.read([folder.files[int(np.nanargmax(answered.sizes))]], preprocessing)
    answers = [reference.run(images) for names, images in loudest if names]
    return MarginRanking(
        wanted=wanted,
        files=files,
        skipped=answered.skipped,
        margins=margins[order],
        scale=_largest(np.concatenate(answers)) if answers else 0.0,
        ranked_by=ranked_by,
        lowest=folder.read(files[: wanted.budget], preprocessing),
    )


@dataclass(frozen=True, eq=False)
class _Answered:
    """What the ranking graph answers to files.

    Attributes:
        margins: (N,) float64, NaN of a file that cannot be read or is skipped.
        sizes: (N,) float64, the largest absolute logit; NaN likewise.
        skipped: How many are duplicates of an earlier one or calibration images.
    """

    margins: Array
    sizes: Array
    skipped: int


def _answered(
    files: Sequence[ImageFile],
    preprocessing: Preprocessing,
    session: Session,
    calibration: Collection[str],
    progress: Progress,
) -> _Answered:
    """Rank by what a graph answers: of each file its margin is kept, and what tells its pixels."""
    margins, sizes = np.full((2, len(files)), np.nan)
    seen = set(calibration)
    done = skipped = 0
    batches = answer_files(
        files,
        preprocessing,
        session,
        batch_size=_BATCH_SIZE,
        workers=default_threads(),
        clock=StageClock(),
        digested=True,
    )
    with contextlib.closing(batches):
        for batch in batches:
            places = done + np.flatnonzero([failure is None for failure in batch.failures])
            for place, logits, digest in zip(places, batch.logits, batch.digests, strict=True):
                if (short := short_digest(digest)) in seen:
                    skipped += 1
                    continue
                seen.add(short)
                margins[place] = ranking_margins(logits[None])[0]
                sizes[place] = _largest(logits)
            done += len(batch.files)
            progress(Step("ranking", done, len(files)))
    return _Answered(margins, sizes, skipped)


def _largest(logits: Logits) -> float:
    """The largest absolute logit; those that are not finite have none."""
    return float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0))
