"""``verify --lowest-margins``: rank a folder's images, and compare the closest decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import printable
from deploykit.images.batches import default_threads
from deploykit.images.scan import ImageFile, Scan
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.inference.pipeline import answer_files
from deploykit.parity.answers import Answers
from deploykit.parity.budget import Budget
from deploykit.parity.compare import measure_answers
from deploykit.parity.mining import MarginMining, lost_margin, population_of
from deploykit.proof.images import nothing_readable
from deploykit.proof.verdict import Verdict, judge
from deploykit.runtime.opener import CPU
from deploykit.specs.heads import Array, BaseHead
from deploykit.specs.model import Labels
from deploykit.specs.session import SessionSpec
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.text import counted
from deploykit.system.threads import StageClock

_BATCH_SIZE = 8
_UNDECIDED = (
    "not one of the compared images has a margin that decides; a larger --lowest-margins has some"
)


def accuracy_reason(budget: Budget | None) -> str | None:
    """Why the closest decisions cannot be judged by what a graph was made within; else None."""
    if budget is None or budget.of_flips is not None:
        return None
    return (
        f"it was made within a budget of the accuracy ({' '.join(budget.options)}), about which "
        "the photos with the lowest margins tell nothing"
    )


@dataclass(frozen=True, eq=False)
class Ranking:
    """A folder's images that can be compared, the lowest margin first.

    Attributes:
        files: Their files.
        margins: (N,) float64, theirs, ascending.
        relative: (N,) float64, theirs as parts of each image's own scale.
        skipped: How many more are duplicates or calibration images.
        unreadable: How many more could not be read.
        ranked_by: What gave the margins, in words.
    """

    files: Sequence[ImageFile]
    margins: Array
    relative: Array
    skipped: int
    unreadable: int
    ranked_by: str


def rank_images(
    bundle: Bundle, folder: Scan, calibration: Collection[str], progress: Progress
) -> Ranking:
    """Rank a folder's images by the margins that the FP32 deploy graph gives them on the CPU.

    Of an image its place in the folder and its margin are kept, not its pixels.

    Args:
        bundle: The bundle.
        folder: The images.
        calibration: See :meth:`deploykit.proof.images.ImageSample.skip`.
        progress: Called after every batch.

    Raises:
        ImagesError: Not one image can be read.
        BundleError: The FP32 deploy graph is missing or damaged.
    """
    graph, files = bundle.deploy_graph("fp32"), folder.files
    head = bundle.manifest.labels.head
    ranked_by = f"{graph} on {CPU}"
    progress(Note(f"ranking {counted(len(files), 'photo')} by the margins of {ranked_by}"))
    margins = np.full(len(files), np.nan)  # stays NaN where nothing can be compared
    relative = np.zeros(len(files))
    seen = set(calibration)
    done = skipped = 0
    # One thread: the session computes in the threads that read.
    with open_candidate(bundle, Candidate(graph, CPU, "fp32"), threads=1) as session:
        batches = answer_files(
            files,
            bundle.manifest.preprocessing,
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
                    if digest in seen:
                        skipped += 1
                        continue
                    seen.add(digest)
                    margins[place] = head.margins(logits[None])[0]
                    relative[place] = head.relative_margins(logits[None]).min()
                done += len(batch.files)
                progress(Step("ranking", done, len(files)))
    order = np.argsort(margins, kind="stable")[: np.isfinite(margins).sum()]  # NaN comes last
    if len(order) == 0:
        raise nothing_readable(printable(folder.path), len(files))
    return Ranking(
        files=[files[place] for place in order],
        margins=margins[order],
        relative=relative[order],
        skipped=skipped,
        unreadable=len(files) - len(order) - skipped,
        ranked_by=ranked_by,
    )


def mining_of(
    ranking: Ranking, answers: Answers, candidates: Sequence[SessionSpec], head: BaseHead
) -> MarginMining:
    """What answers to the lowest margins show about the images that were not compared."""
    compared = len(answers.paths)
    margin_of = {
        file.name: margin
        for file, margin in zip(ranking.files, ranking.margins.tolist(), strict=True)
    }
    ranked = np.array([margin_of[path] for path in answers.paths])
    others = ranking.margins[compared:]
    return MarginMining(
        compared=compared,
        ranked=len(ranking.files),
        skipped=ranking.skipped,
        ranked_by=ranking.ranked_by,
        ranking_error=float(np.abs(head.margins(answers.reference) - ranked).max()),
        smallest_skipped=float(others[0]) if len(others) else None,
        lost={
            candidate.title: lost_margin(answers.reference, logits, head)
            for candidate, logits in zip(candidates, answers.candidates, strict=True)
        },
    )


def judge_lowest(
    ranking: Ranking,
    mining: MarginMining,
    answers: Answers,
    candidates: Sequence[SessionSpec],
    labels: Labels,
    budgets: Mapping[str, Budget],
) -> tuple[Verdict, ...]:
    """Judge answers to the lowest margins as those of a part of all ranked images.

    Args:
        ranking: All images.
        mining: What the answers show about the others.
        answers: To the lowest margins.
        candidates: Whose answers they are.
        labels: What the logits mean.
        budgets: See :func:`deploykit.proof.verdict.judge_answers`.
    """
    verdicts = []
    measurements = measure_answers(answers, candidates, labels, bounded=False)
    for candidate, found in zip(candidates, measurements, strict=True):
        others_hold = mining.others_hold(candidate.title)
        population = population_of(
            ranking.relative, candidate.precision, found, others_hold=others_hold
        )
        verdict = judge(candidate, found, population, budgets.get(candidate.graph))
        if verdict.passed and found.decidable == 0:
            verdict = verdict.refused(_UNDECIDED)
        verdicts.append(verdict)
    return tuple(verdicts)
