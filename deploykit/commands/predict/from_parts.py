"""From the parts of a run to its tables, page and summary."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.commands.predict.plan import Shard, path_of
from deploykit.commands.predict.provenance import record_of, record_run
from deploykit.commands.predict.summary import PredictionSummary
from deploykit.commands.predict.tables import write_table
from deploykit.commands.predict.tally import tally_of
from deploykit.errors import ImagesError, InputError
from deploykit.proof.text import status_of_run
from deploykit.system.files import remove_partials
from deploykit.system.progress import Progress, Step, silent
from deploykit.system.threads import STAGES

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.predict.ledger import Ledger
    from deploykit.commands.predict.outputs import Outputs


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
        source=Path(plan.fingerprint.source),
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
        write_prediction_page(summary, rows, outputs.page, progress)
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
    stages, hosts = dict.fromkeys(STAGES, 0.0), set[str]()
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
        hosts.add(work.host)
    summary.stage_seconds, summary.hosts = stages, len(hosts)
