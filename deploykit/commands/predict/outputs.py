"""Where the rows of a prediction go: into the folder of its run, and stdout beside it."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import msgspec
from filelock import Timeout

from deploykit.commands.predict.ledger import Ledger, run_folder
from deploykit.commands.predict.plan import Plan, Shard, kept_path, path_of, shard_size_of
from deploykit.commands.predict.provenance import check_replaceable, fingerprint_of
from deploykit.commands.predict.schedulers.this_process import ThisProcess
from deploykit.commands.predict.tables import check_outputs, json_line
from deploykit.errors import InputError, UsageError
from deploykit.specs.heads import ASSUMED_HEAD, Head
from deploykit.specs.session import Closing
from deploykit.system.cloud import CloudPath
from deploykit.system.deps import need
from deploykit.system.files import STDOUT, check_all_different, check_page_path, held
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import command_line, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from deploykit.commands.predict.run import PredictionRun
    from deploykit.commands.predict.schedulers import Scheduler
    from deploykit.specs.prediction import Prediction


class Outputs(Closing):
    """The outputs of one run.

    Rows are safe in the run's folder as soon as their shard is, see :class:`Ledger`; the tables are
    made from it when the run is done. Stdout alone has no folder: what it got cannot be taken back.

    As a context manager it keeps other runs from the same outputs, unless they are its scheduler's
    other workers.

    Args:
        paths: The tables, and :data:`STDOUT` for rows as they come, as JSON lines; none where the
            summary is all that is wanted.
        page: A page that will be made, too; None for none.
        expected: The table of labels, which must stay as it is; None for none.
        source: What is predicted, which must stay as it is.
        embeddings: Where the embeddings go, too; None for none.
        emit: Puts a text on stdout, and tells whether anyone still reads there; None when no
            output is stdout.
        resume: Whether to go on with a run that was interrupted.
        overwrite: Whether to replace what another run wrote.
        scheduler: Who predicts the shards.
        ledger: The run's folder; None for the one beside the first table.

    Attributes:
        tables: Those of the outputs that are files.
        files: These, the page and the embeddings.
        ledger: The run's folder; None without a table.
        is_resumed: Whether a plan lists the files already.
        has_begun: Whether the run's rows go there: what ends it then leaves them.

    Raises:
        UsageError: See :func:`~deploykit.commands.predict.tables.check_outputs`; two of the
            files are the same; a page without a table; there is nothing that a run could be
            resumed from; or the system refuses to read the run's folder.
        InputError: What is in that folder is no plan.
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
        scheduler: Scheduler | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.tables = [path for path in paths if path != STDOUT]
        self.page, self.embeddings, self.overwrite = page, embeddings, overwrite
        self.scheduler = scheduler or ThisProcess()
        self.files = [*self.tables, *filter(None, (page, embeddings))]
        check_outputs(paths)
        if page is not None:
            check_page_path(page)
        if embeddings is not None:
            from deploykit.commands.predict.embeddings import check_embeddings_file

            check_embeddings_file(embeddings)
        self._check_names(paths, source, expected)
        wanting_tables = {
            "--resume goes on with a table": resume,
            "--html is made from a table's rows": page,
            "--embeddings are rows beside a table's": embeddings,
            "--shard adds rows to a table's": self.scheduler.shared,
        }
        for what, is_wanted in wanting_tables.items():
            if is_wanted and not self.tables:
                raise UsageError(
                    f"{what}, and --output - is none.",
                    hint="Name a table as well: --output predictions.csv",
                )
        if self.scheduler.report is not None and (STDOUT in paths or not self.tables):
            raise UsageError(
                "--on ray adds rows to a table as they come, in no order.",
                hint="Name a table: --output predictions.csv",
            )
        if self.scheduler.shared and STDOUT in paths:
            raise UsageError(
                "--shard gives a part of the rows, and --output - is all of them.",
                hint="Name tables, which deploykit collect makes.",
            )
        if ledger is None and self.tables:
            ledger = Ledger(run_folder(self.tables[0]))
        self.ledger = ledger
        self.is_resumed = self.has_begun = False
        self._resume = resume
        self._locks, self._is_locked = ExitStack(), False
        self._emit = emit
        self._reader_left = False
        self._earlier = deque[Shard]()
        self._top_k = 0
        self._head: Head = ASSUMED_HEAD
        self._needs_parquet = any(path.suffix.lower() == ".parquet" for path in self.files)

    @property
    def wanted(self) -> bool:
        """Whether anyone still wants rows: not when stdout was all, and its reader has left."""
        return self.ledger is not None or not self._reader_left

    def __enter__(self) -> Self:
        """Find out what an earlier run has left.

        Raises:
            UsageError: There are rows, and nobody said what is to become of them; that run named
                its outputs in another order, or had another kind of scheduler; or it is running.
        """
        for table in self.tables[1:]:
            if Ledger(run_folder(table)).count():
                raise UsageError(
                    f"{run_folder(table)} keeps the rows of a run that was interrupted, whose "
                    f"first output was {table}.",
                    hint=f"Continue it: name {table} first, and add --resume. To start again, "
                    "delete that folder.",
                )
        ledger = self.ledger
        if ledger is None or ledger.plan is None:
            return self  # nothing is made yet: the folder may be the one to be scanned
        if ledger.plan.shared or self.scheduler.shared:
            if not ledger.plan.shared:
                with only_writer(self.tables[0]):
                    pass  # nobody is at it
            self._check_kind(ledger, ledger.plan)
            self.is_resumed = True
            return self
        with ExitStack() as locks:
            locks.enter_context(only_writer(self.tables[0]))
            # Who held the lock may have been done just now.
            ledger = self.ledger = Ledger(ledger.folder)
            self.is_resumed = ledger.count() > 0
            if self.is_resumed and not self._resume:
                raise UsageError(
                    f"{ledger.folder} holds the {ledger.count()} rows of a run that was "
                    "interrupted.",
                    hint="Continue it: add --resume. To start again, delete that folder; or name "
                    "another --output.",
                )
            if ledger.plan is not None and not self.is_resumed:
                ledger.remove()
            self._locks, self._is_locked = locks.pop_all(), True
        return self

    def begin(self, run: PredictionRun, progress: Progress = silent) -> None:
        """Make ready for the rows of a run: with a plan, or the one that is there.

        Args:
            run: Whose session is open.
            progress: Told what is resumed.

        Raises:
            UsageError: An output that is there is another run's, and ``overwrite`` was not said;
                the plan is of another run; or another run has begun the same table.
            InputError: The system refuses to write here; or the list of files is damaged.
        """
        self._top_k, self._head = run.top_k, run.bundle.manifest.labels.head
        ledger = self.ledger
        if ledger is None:
            return
        fingerprint = fingerprint_of(run)
        if not (self.is_resumed or self.overwrite):  # a run that is resumed has been asked
            check_replaceable(self.files, fingerprint)
        if not self.scheduler.shared:
            for file in self.files[1:] if self._is_locked else self.files:
                self._locks.enter_context(only_writer(file))
        if self.is_resumed:
            self._check_same(ledger, run)
        else:
            if not self.scheduler.shared and Ledger(ledger.folder).count():
                raise _running(self.tables[0])
            self._make_plan(ledger, run)
            self._check_same(ledger, run)
        self._tell_resumption(ledger, run, progress)
        self._earlier.extend(ledger.parts())
        self.has_begun = True

    def show(self, ordinal: int, row: Prediction) -> None:
        """Put a row on stdout, behind those before it that an earlier run has left."""
        self._import_writers()
        if self._emit is not None:
            self._show_earlier(ordinal)
            self._put(row)

    def show_rest(self) -> None:
        """Put on stdout what an earlier run has left and nothing came behind."""
        if self._emit is not None and self.ledger is not None:
            self._show_earlier(self.ledger.made.files)

    def close(self) -> None:
        """Let other runs in; what has no rows is no run."""
        with self._locks:
            ours = self.ledger if self.has_begun and not self.scheduler.shared else None
            if ours is not None and not ours.count():
                ours.remove()

    def _check_names(self, paths: Sequence[Path], source: Path, expected: Path | None) -> None:
        """Refuse outputs of which one is another, or what is read."""
        check_all_different(
            {
                "output": paths,
                "page": [*filter(None, [self.page])],
                "embeddings": [*filter(None, [self.embeddings])],
                "run's folder": [run_folder(table) for table in self.tables[:1]],
                "source": [source],
                "table of labels": [*filter(None, [expected])],
            }
        )

    def _check_kind(self, ledger: Ledger, plan: Plan) -> None:
        """Refuse to mix processes that know of no other with one that thinks it is alone."""
        if plan.shared == self.scheduler.shared:
            return
        collect = command_line(["deploykit", "collect", str(ledger.folder)])
        raise UsageError(
            f"{ledger.folder} is a run {'in shards' if plan.shared else 'of one process'}.",
            hint="To start again, delete that folder. Continue it with --shard, or make its "
            f"tables: {collect}"
            if plan.shared
            else "Continue it with --resume and without --shard. To start again, delete that "
            "folder.",
        )

    def _check_same(self, ledger: Ledger, run: PredictionRun) -> None:
        """Refuse a plan whose rows follow from something else."""
        before, now = ledger.made.fingerprint, fingerprint_of(run)
        if changes := before.changes_to(now):
            raise UsageError(
                f"{ledger.folder} belongs to another run: {'; '.join(changes)}.",
                hint=f"Continue it as it was begun: {before.way_back(now)}. To start again, delete "
                "that folder; or name another --output.",
            )
        plan = ledger.made
        names = plan.outputs, plan.page, plan.embeddings
        if plan.shared and names != self._names(ledger):
            planned = filter(None, (*plan.outputs, plan.page, plan.embeddings))
            raise UsageError(
                f"{ledger.folder} is to become {', '.join(planned)}, and this "
                "command names other outputs.",
                hint="Give each process the same outputs, in the same order.",
            )

    def _make_plan(self, ledger: Ledger, run: PredictionRun) -> None:
        source = run.source
        if source is None:
            raise RuntimeError("the files were not looked for")
        tables, page, embeddings = self._names(ledger)
        plan = Plan(
            run="deploykit predict",
            schema=1,
            fingerprint=fingerprint_of(run),
            files=0,
            list_sha256="",
            skipped=0,
            shard_size=1,
            shared=self.scheduler.shared,
            session=run.spec,
            bundle=kept_path(run.bundle.place.absolute()),
            root=kept_path(run.root.absolute()),
            outputs=tables,
            page=page,
            embeddings=embeddings,
        )

        def finished(plan: Plan) -> Plan:
            scheduler = self.scheduler
            size = shard_size_of(plan.files, scheduler.workers, scheduler.shard_files)
            return msgspec.structs.replace(plan, skipped=source.skipped, shard_size=size)

        try:
            ledger.begin(plan, source, finished)
        except InputError:
            if not self.scheduler.shared:
                ledger.remove()
            raise
        run.source = None  # the list has it

    def _names(self, ledger: Ledger) -> tuple[tuple[str, ...], str | None, str | None]:
        """Tables, page and embeddings as a plan names them."""
        base = ledger.folder.absolute().parent
        tables, page, embeddings = (
            tuple(kept_path(_relative(path, base)) for path in paths if path is not None)
            for paths in (self.tables, [self.page], [self.embeddings])
        )
        return tables, page[0] if page else None, embeddings[0] if embeddings else None

    def _tell_resumption(self, ledger: Ledger, run: PredictionRun, progress: Progress) -> None:
        if self.is_resumed:
            ledger.check_list()
        if self.scheduler.shared or not self._resume:
            return
        if not self.is_resumed:
            progress(Note(f"{ledger.folder} has no rows of an earlier run: starting afresh"))
            return
        damaged = ledger.drop_damaged(ledger.parts())
        if damaged:
            progress(
                Note(
                    f"{counted(damaged, 'row')} in {ledger.folder} are damaged: their files are "
                    "predicted again"
                )
            )
        progress(Note(f"{ledger.count()} rows are in {ledger.folder}: resuming"))
        changed, first = ledger.changed(run.root)
        if changed:
            progress(
                Note(
                    f"{counted(changed, 'file')} changed or vanished since the run began, the "
                    f"first is {first}: what has a row keeps it"
                )
            )

    def _import_writers(self) -> None:
        """Import what the files need, once: while other threads compute, this one would wait.

        From the main thread: pyarrow 25 crashes where a thread that ends has imported it
        (https://github.com/apache/arrow/issues/50471).
        """
        if self._needs_parquet and not self.scheduler.shared:
            need("pyarrow.parquet")
            self._needs_parquet = False

    def _show_earlier(self, ordinal: int) -> None:
        while self._earlier and self._earlier[0].start < ordinal and self.ledger is not None:
            read = self.ledger.read(self._earlier.popleft())
            for row in read[0] if read else ():
                self._put(row.row)

    def _put(self, row: Prediction) -> None:
        if self._emit is not None and not self._reader_left:
            self._reader_left = not self._emit(json_line(row, self._top_k, self._head))


def planned_outputs(ledger: Ledger, *, overwrite: bool = False) -> Outputs:
    """The outputs that a run's plan names."""
    plan, base = ledger.made, ledger.folder.parent
    return Outputs(
        [base / path_of(path) for path in plan.outputs],
        source=path_of(plan.root),
        page=base / path_of(plan.page) if plan.page else None,
        embeddings=base / path_of(plan.embeddings) if plan.embeddings else None,
        overwrite=overwrite,
        ledger=ledger,
    )


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Keep other runs from an output.

    Raises:
        UsageError: Another run is writing it; or the system refuses to make the lock file.
    """
    if isinstance(output, CloudPath):  # nothing locks an object; parts that are made twice are same
        yield
        return
    with ExitStack() as lock:
        try:
            lock.enter_context(held(output.with_name(f".{output.name}.lock")))
        except Timeout as exc:
            raise _running(output) from exc
        except OSError as exc:
            raise UsageError(
                f"{output} cannot be locked: {exc.strerror or exc}.",
                hint="Check the folder's permissions, or write somewhere else.",
            ) from exc
        yield


def _running(output: Path) -> UsageError:
    return UsageError(
        f"Another run is writing {output}.",
        hint="Wait until it is done, or name another --output.",
    )


def _relative(path: Path, base: Path) -> Path:
    """A path as the folder beside which a run's is may be moved with it; else absolute."""
    absolute = path.absolute()
    return absolute.relative_to(base) if absolute.is_relative_to(base) else absolute
