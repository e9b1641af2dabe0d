"""One prediction from its request to its outputs, for the command and for Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.commands.predict.from_parts import checked_summary, write_outputs
from deploykit.commands.predict.run import PredictionRun
from deploykit.commands.predict.summary import PredictionSummary, ShardSummary
from deploykit.proof.text import status_of_run
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted

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
    with PredictionRun(bundle, request, progress, listed=outputs.is_resumed) as run:
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
