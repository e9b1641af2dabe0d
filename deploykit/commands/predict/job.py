"""One prediction from its request to its outputs, for the command and for Python."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from deploykit.commands.predict.plan import Shard, path_of
from deploykit.commands.predict.provenance import record_of, record_run
from deploykit.commands.predict.run import PredictionRun
from deploykit.commands.predict.tables import write_table
from deploykit.commands.predict.tally import HostWork, PredictionSummary, ShardSummary, tally_of
from deploykit.errors import ImagesError, InputError
from deploykit.proof.text import status_of_run
from deploykit.system.cloud import as_path
from deploykit.system.files import remove_partials
from deploykit.system.progress import Note, Progress, Step, silent
from deploykit.system.text import counted
from deploykit.system.threads import STAGES

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.predict.ledger import Ledger
    from deploykit.commands.predict.outputs import Outputs
    from deploykit.commands.predict.run import PredictRequest


def predict_into(
    outputs: Outputs, bundle: Bundle, request: PredictRequest, progress: Progress = silent
) -> PredictionSummary | ShardSummary:
    """Predict, and write the outputs.

    Args:
        outputs: Where the rows go; entered.
        bundle: What predicts.
        request: What to predict.
        progress: Called with every stage, after every batch, and with notes.

    Raises:
        ImagesError: There is no image, or not one has a prediction.
        DeploykitError: See :class:`~deploykit.commands.predict.run.PredictionRun` and
            :class:`~deploykit.commands.predict.outputs.Outputs`.
    """
    opener = outputs.scheduler.open_session
    with PredictionRun(bundle, request, progress, listed=outputs.is_resumed, opener=opener) as run:
        spec = run.spec
        progress(Note(f"{spec.graph} in {spec.precision} on {spec.runtime}, {spec.device}"))
        outputs.begin(run, progress)
        if outputs.ledger is None:
            return _streamed(run, outputs, progress)
        return _kept(run, outputs, outputs.ledger, progress)


def _kept(
    run: PredictionRun, outputs: Outputs, ledger: Ledger, progress: Progress
) -> PredictionSummary | ShardSummary:
    """Let the scheduler predict, and make the tables unless others predict, too."""
    predicted = outputs.scheduler.predict(run, ledger, outputs.show)
    if outputs.scheduler.shared:
        return ShardSummary(
            str(outputs.scheduler), predicted, ledger.count(), ledger.made.files, ledger.folder
        )
    outputs.show_rest()
    summary = write_outputs(ledger, run.bundle, outputs, progress)
    summary.report = outputs.scheduler.report
    ledger.remove()
    return checked_summary(summary)


def _streamed(run: PredictionRun, outputs: Outputs, progress: Progress) -> PredictionSummary:
    """Rows as they come; nothing is kept."""
    summary = PredictionSummary(
        bundle=run.bundle,
        spec=run.spec,
        top_k=run.top_k,
        source=run.request.source,
        root=run.root,
        tally=run.tally,
        stage_seconds={},
        status=status_of_run(run.bundle, run.spec),
    )
    for ordinal, row in enumerate(run):
        with run.clock.waiting("write"):
            outputs.show(ordinal, row)
        if not outputs.wanted:
            progress(Note(f"stopped after {counted(run.tally.rows, 'row')}: nobody reads stdout"))
            break
    summary.stage_seconds = run.clock.seconds
    return checked_summary(summary) if outputs.wanted else summary


def write_outputs(
    ledger: Ledger, bundle: Bundle, outputs: Outputs, progress: Progress = silent
) -> PredictionSummary:
    """Make tables, page and summary from the parts of a run that is finished.

    Args:
        ledger: The run's.
        bundle: What predicted.
        outputs: What to write.
        progress: Called before each file.

    Raises:
        InputError: Not each file has its row, or the system fails to write; the parts stay.
    """
    plan = ledger.made
    record = bundle.manifest.embeddings if outputs.embeddings else None
    summary = PredictionSummary(
        bundle=bundle,
        spec=plan.session,
        top_k=plan.fingerprint.top_k,
        source=as_path(plan.fingerprint.source),
        root=path_of(plan.root),
        tally=tally_of(bundle.manifest.labels, skipped=plan.skipped),
        stage_seconds={},
        status=status_of_run(bundle, plan.session),
        outputs=outputs.files,
        embeddings=record,
    )
    start = time.perf_counter()
    _add_up(ledger, summary)
    for path in (*outputs.files, record_of(outputs.tables[0])):
        remove_partials(path)
    if outputs.embeddings is not None and record is not None:
        from deploykit.commands.predict.embeddings import write_embeddings

        progress(Step("writing", detail=outputs.embeddings.name))
        size = record.tap.size
        write_embeddings(outputs.embeddings, ledger.rows(), count=plan.files, size=size)
    for path in outputs.tables:
        progress(Step("writing", detail=path.name))
        rows = (row.row for row in ledger.rows())
        write_table(path, rows, top_k=plan.fingerprint.top_k, head=plan.fingerprint.head)
    summary.stage_seconds["write"] += time.perf_counter() - start
    if outputs.page is not None:
        from deploykit.commands.predict.page import write_prediction_page

        rows = (row.row for row in ledger.rows())
        write_prediction_page(
            summary,
            rows,
            outputs.page,
            progress,
            lambda at: next(ledger.files([Shard(at, at + 1)], summary.root)),
        )
    record_run(outputs.files, plan.fingerprint)
    return summary


def checked_summary(summary: PredictionSummary) -> PredictionSummary:
    """A summary of which at least one file has a prediction.

    Raises:
        ImagesError: Not one has. The tables are whole: each of their rows says what is wrong.
    """
    tally = summary.tally
    if tally.ok:
        return summary
    where = summary.outputs[0] if summary.outputs else "The output"
    raise ImagesError(
        f"No image in {summary.source} has a prediction, of {tally.rows}: {tally.failures_text}.",
        hint=f"{where} says what is wrong with each." if tally.only is None else tally.only.reason,
    )


def _add_up(ledger: Ledger, summary: PredictionSummary) -> None:
    """Count the rows and what they took; each must be of the file that is listed there.

    Raises:
        InputError: One is not, or is missing.
    """
    plan, tally = ledger.made, summary.tally
    stages = dict.fromkeys(STAGES, 0.0)
    size = 0 if summary.embeddings is None else 4 * summary.embeddings.tap.size
    files = ledger.files([Shard(0, plan.files)], summary.root)
    for rows, work in ledger.whole_parts():
        for row, file in zip(rows, files, strict=False):  # of the part, and of all
            wanted = size if row.row.ok else 0
            if row.row.path != file.name or len(row.embedding or b"") != wanted:
                raise InputError(
                    f"{ledger.folder} has a row of {row.row.path} that is not as a run wrote it, "
                    f"where {file.name} is listed.",
                    hint="Delete the folder, to start again.",
                )
            tally.add(row.row)
        tally.seconds += work.seconds
        for stage, seconds in work.stages.items():
            stages[stage] += seconds
        if work.host:
            summary.hosts.setdefault(work.host, HostWork()).add(len(rows), work.seconds)
    summary.stage_seconds = stages
