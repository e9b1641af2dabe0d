"""Where the rows of a prediction go: a journal first, stdout beside it, tables in the end."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Self

from deploykit.commands.predict.journal import Journal, journal_of, lock_of, only_writer
from deploykit.commands.predict.provenance import (
    Fingerprint,
    check_replaceable,
    fingerprint_of,
    record_of,
    record_run,
)
from deploykit.commands.predict.tables import check_outputs, json_line, write_table
from deploykit.errors import ImagesError, UsageError
from deploykit.specs.heads import ASSUMED_HEAD, Head
from deploykit.specs.session import Closing
from deploykit.system.deps import need
from deploykit.system.files import STDOUT, check_all_different, check_page_path, remove_partials
from deploykit.system.progress import Note, Progress, Step, silent
from deploykit.system.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from deploykit.commands.predict.embeddings import EmbeddingsFile
    from deploykit.commands.predict.run import PredictionRun
    from deploykit.specs.prediction import Prediction
    from deploykit.specs.session import Embeddings


class Outputs(Closing):
    """The outputs of one run.

    A row is safe in the journal as soon as it is written, see :class:`Journal`; the tables are
    made from the journal when the run is done, each in turn. Stdout alone has no journal: what it
    got cannot be taken back.

    Use it as a context manager: it owns the journal, which stays unless :meth:`finish` is called.

    Args:
        paths: The tables, and :data:`STDOUT` for rows as they come, as JSON lines; none where the
            summary is all that is wanted.
        page: A page that will be made from the journal too; None for none.
        expected: The table of labels, which must stay as it is; None for none.
        source: What is predicted, which must stay as it is.
        embeddings: Where the embeddings go, too; None for none.
        emit: Puts a text on stdout, and tells whether anyone still reads there; None when no
            output is stdout.
        resume: Whether to go on with a run that was interrupted.
        overwrite: Whether to replace what another run wrote.

    Attributes:
        tables: Those of the outputs that are files.
        journal: What keeps the rows until there are tables; None without any.

    Raises:
        UsageError: See :func:`~deploykit.commands.predict.tables.check_outputs`; two of the
            files are the same; a page without a table; or there is nothing that a run could be
            resumed from.
        DependencyError: A Parquet table without pyarrow.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        source: Path,
        page: Path | None = None,
        expected: Path | None = None,
        embeddings: Path | None = None,
        emit: Callable[[str], bool] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.tables = [path for path in paths if path != STDOUT]
        self._page = page
        check_outputs(paths)
        pages = [] if page is None else [page]
        for each in pages:
            check_page_path(each)
        self._embeddings = _embeddings_file(embeddings)
        others = [] if self._embeddings is None else [self._embeddings.path, self._embeddings.part]
        hidden = [file(table) for table in self.tables[:1] for file in (journal_of, lock_of)]
        read = {"source": [source], "table of labels": [] if expected is None else [expected]}
        written = {"output": paths, "page": pages, "embeddings": others, "journal": hidden}
        check_all_different({**written, **read})
        if not self.tables and resume:
            raise UsageError(
                "--resume goes on with a table, and --output - is none.",
                hint="Name the table of the run that was interrupted: --output predictions.csv",
            )
        if not self.tables and pages:
            raise UsageError(
                "--html is made from a table's journal, and --output - has none.",
                hint="Name a table as well: --output - --output predictions.csv",
            )
        if not self.tables and embeddings:
            raise UsageError(
                "--embeddings are rows beside a table's, and --output - is none.",
                hint="Name a table as well: --output - --output predictions.csv",
            )
        self.journal = Journal(self.tables[0], resume=resume) if self.tables else None
        self._emit = emit
        self._reader_left = False
        self._overwrite = overwrite
        self._fingerprint: Fingerprint | None = None
        self._top_k = 0
        self._head: Head = ASSUMED_HEAD
        self._needs_parquet = any(path.suffix.lower() == ".parquet" for path in self._files)
        self._open = ExitStack()

    @property
    def done(self) -> frozenset[str]:
        """The ``path`` of each row that an earlier run has left."""
        return self.journal.done if self.journal is not None else frozenset()

    @property
    def wanted(self) -> bool:
        """Whether anyone still wants rows: not when stdout was all, and its reader has left."""
        return self.journal is not None or not self._reader_left

    def __enter__(self) -> Self:
        """Find out what an earlier run has left.

        Raises:
            UsageError: That run named its outputs in another order.
            DeploykitError: See :meth:`Journal.__enter__`.
        """
        for table in self.tables[1:]:
            journal = journal_of(table)
            if os.path.lexists(journal):
                raise UsageError(
                    f"{journal} keeps the rows of a run that was interrupted, whose first output "
                    f"was {table}.",
                    hint=f"Continue it: name {table} first, and add --resume. To start again, "
                    "delete that file.",
                )
        if self.journal is not None:
            self._open.enter_context(self.journal)
        return self

    def begin(self, run: PredictionRun) -> None:
        """Make ready for the rows of a run; stdout gets those of an earlier run at once.

        Raises:
            UsageError: An output that is there is another run's, and ``overwrite`` was not said; or
                see :meth:`Journal.begin`.
        """
        self._top_k, self._head = run.top_k, run.bundle.manifest.labels.head
        if self.journal is not None:
            self._fingerprint = fingerprint_of(run)
            if not (self._overwrite or self.done):  # a run that is resumed has been asked
                check_replaceable(self._files, self._fingerprint)
            self.journal.begin(self._fingerprint)
        others = [] if self._embeddings is None else [self._embeddings.path]
        for table in [*self.tables[1:], *others]:
            self._open.enter_context(only_writer(table))
        record = run.bundle.manifest.embeddings
        if self._embeddings is not None and record is not None:
            self._open.enter_context(self._embeddings)
            self._embeddings.begin(record.tap.size, len(self.done))
        for row in self.earlier_rows():
            self._show(row)

    def earlier_rows(self) -> Iterator[Prediction]:
        """The rows that an earlier run has left."""
        if self.journal is not None and self.done:
            yield from islice(self.journal.rows(), len(self.done))

    def write(self, row: Prediction, embedding: Embeddings | None = None) -> None:
        """Add a row.

        Args:
            row: The row.
            embedding: (E,) float32; None where there is none.

        Raises:
            InputError: The system fails to write it: the disk may be full.
        """
        if self._embeddings is not None:
            self._embeddings.write(embedding)
        if self.journal is not None:
            self.journal.write(row)
        self._show(row)

    def import_writers(self) -> None:
        """Import what the files need, once: while other threads compute, this one would wait.

        Call it from the main thread: pyarrow 25 crashes where a thread that ends has imported it
        (https://github.com/apache/arrow/issues/50471).

        Raises:
            DependencyError: pyarrow, which a Parquet file needs, does not import.
        """
        if self._needs_parquet:
            need("pyarrow.parquet")
            self._needs_parquet = False

    def write_tables(self, progress: Progress = silent) -> None:
        """Make the tables, now that all rows are there.

        Args:
            progress: Called before each.

        Raises:
            InputError: The system fails to write one; the journal stays.
        """
        if self.journal is None:
            return
        for path in (*self._files, record_of(self.tables[0])):
            remove_partials(path)
        if self._embeddings is not None:
            progress(Step("writing", detail=self._embeddings.path.name))
            self._embeddings.finish(self.journal.rows())
        for path in self.tables:
            progress(Step("writing", detail=path.name))
            write_table(path, self.journal.rows(), top_k=self._top_k, head=self._head)

    def finish(self) -> None:
        """Record the run that wrote the tables and the page, and remove the journal.

        Raises:
            InputError: The system refuses to.
        """
        if self.journal is not None and self._fingerprint is not None:
            record_run(self._files, self._fingerprint)
            self.journal.remove()

    def close(self) -> None:
        """Let other runs in."""
        self._open.close()

    @property
    def _files(self) -> list[Path]:
        embeddings = [] if self._embeddings is None else [self._embeddings.path]
        return [*self.tables, *([] if self._page is None else [self._page]), *embeddings]

    def _show(self, row: Prediction) -> None:
        if self._emit is not None and not self._reader_left:
            self._reader_left = not self._emit(json_line(row, self._top_k, self._head))


def _embeddings_file(path: Path | None) -> EmbeddingsFile | None:
    if path is None:
        return None
    from deploykit.commands.predict.embeddings import EmbeddingsFile

    return EmbeddingsFile(path)


def write_run(
    run: PredictionRun, outputs: Outputs, progress: Progress = silent
) -> ImagesError | None:
    """Write one row a file, and the tables.

    Args:
        run: What predicts.
        outputs: Where the rows go.
        progress: Called before each table.

    Returns:
        The error to end with when not one file has a prediction. It is not raised, because the
        tables are whole: each of their rows says what is wrong with a file.

    Raises:
        InputError: The system fails to write.
    """
    stopped = False
    for row, embedding in run.answers():
        outputs.import_writers()
        with run.clock.waiting("write"):
            outputs.write(row, embedding)
        if not outputs.wanted:
            progress(Note(f"stopped after {counted(run.tally.rows, 'row')}: nobody reads stdout"))
            stopped = True
            break
    for row in outputs.earlier_rows():
        run.tally.add_earlier(row)
    with run.clock.waiting("write"):
        outputs.write_tables(progress)
    if run.tally.ok or stopped:
        return None
    where, only = outputs.tables[0] if outputs.tables else "The output", run.tally.only
    return ImagesError(
        f"No image in {run.request.source} has a prediction, of {run.tally.rows}: "
        f"{run.tally.failures_text}.",
        hint=f"{where} says what is wrong with each." if only is None else only.reason,
    )
