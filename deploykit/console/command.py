"""What a command says: its result on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

import typer

from deploykit.console.streams import (
    interruptions,
    reserved_stdout,
    tell,
    visible_warnings,
    write_while_read,
)
from deploykit.errors import DeploykitError, InputError
from deploykit.system.progress import Note
from deploykit.system.text import command_line, commands_apart, visible

if TYPE_CHECKING:
    from rich.progress import Progress

    from deploykit.system.progress import Step

JSON_SCHEMA = 1
#: Exit code, message and hint.
_Outcome: TypeAlias = tuple[int, str, str | None]

INTERRUPTED = 130
_INTERRUPTION: _Outcome = (INTERRUPTED, "Interrupted.", None)
_BUG = 1
_BAD_INPUT = 4


class Console:
    """The voice of one run of a command.

    Args:
        command: The command's name.
        stdout: Where the result goes.
        as_json: Whether stdout gets one JSON object and nothing else.
        quiet: Whether progress and notes are skipped.
        options: Which bundle the user has named, as options: for the commands that are told.
        received: The signals so far that are to end the command.

    Attributes:
        shown: Whether the result is shown: what comes then does not undo it.
    """

    def __init__(
        self,
        command: str,
        stdout: TextIO,
        *,
        as_json: bool,
        quiet: bool = False,
        options: Sequence[str] = (),
        received: Sequence[int] = (),
    ) -> None:
        self.command = command
        self.shown = False
        self._received = received
        self._options = options
        self.as_json = as_json
        self._quiet = quiet
        self._stdout = stdout
        self._bar: Progress | None = None

    def progress(self, event: Step | Note) -> None:
        """Show a job's event: a note as a line, a step as a bar where someone is watching.

        Raises:
            KeyboardInterrupt: See :meth:`check_interrupted`.
        """
        if not isinstance(event, Note):  # which may be part of a clean-up
            self.check_interrupted()
        if self._quiet:
            return
        if isinstance(event, Note):
            self.note(event.message)
        elif sys.stderr.isatty():
            self._show_step(event)

    def note(self, message: str) -> None:
        """Say something that is not the result."""
        if not self._quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Say what must be known even where notes are not wanted."""
        if self._bar is not None:
            told = with_options(message, self._options)
            self._bar.console.print(visible(_indented(told), lines=True))
        else:
            tell(_indented(with_options(message, self._options)))

    def result(
        self, value: Callable[[], Any], render: Callable[[], str], *, exit_code: int = 0
    ) -> None:
        """Show what came out and end the command.

        Args:
            value: Makes the result for ``--json``, of plain types.
            render: Makes the text for people.
            exit_code: What the command ends with.

        Raises:
            typer.Exit: When the exit code is not 0.
            KeyboardInterrupt: See :meth:`check_interrupted`.
        """
        self.close()
        self.check_interrupted()
        if self.as_json:
            text = _json_text(self.command, exit_code, result=value())
        else:
            text = visible(with_options(render(), self._options), lines=True)
        if text:
            try:
                write_while_read(self._stdout, f"{text}\n")
            except OSError as exc:
                raise not_shown(exc) from exc
        self.shown = True
        if exit_code:
            raise typer.Exit(exit_code)

    def check_interrupted(self) -> None:
        """End a command that was interrupted although something has swallowed the exception.

        Raises:
            KeyboardInterrupt: A signal came before the result was shown.
        """
        if self._received and not self.shown:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_step(self, step: Step) -> None:
        if self._bar is None:
            from deploykit.console.progress_bar import progress_bar

            self._bar = progress_bar()
            self._bar.start()
        if [task.fields["stage"] for task in self._bar.tasks] != [step.stage]:
            # Not ``reset``, which keeps the old total where the new one is not known.
            for finished in self._bar.task_ids:
                self._bar.remove_task(finished)
            self._bar.add_task(step.stage, total=step.total, stage=step.stage, unit=step.unit)
        (current,) = self._bar.task_ids
        description = f"{step.stage}: {step.detail}" if step.detail else step.stage
        self._bar.update(
            current, completed=step.done, total=step.total, description=visible(description)
        )


@contextlib.contextmanager
def command(
    name: str,
    *,
    as_json: bool,
    verbose: bool = False,
    quiet: bool = False,
    bundle: str | None = None,
    artifacts: Path | None = None,
) -> Iterator[Console]:
    """Run a command's body, and turn what it raises into a message and an exit code.

    A command that is told on the way, in a hint perhaps, gets the bundle that the user has named.

    Meanwhile what Python code prints goes to stderr: the user's network, or a library, may print,
    and stdout is the result's. Child processes still have the real one.

    Raises:
        typer.Exit: With the exit code of whatever went wrong.
    """
    options = [
        word
        for option, value in (("--bundle", bundle), ("--artifacts", artifacts))
        if value is not None
        for word in (option, str(value))
    ]
    with interruptions() as received:
        try:
            with (
                visible_warnings(),
                reserved_stdout(whole_process=as_json) as stdout,
                contextlib.closing(
                    Console(
                        *(name, stdout),
                        as_json=as_json,
                        quiet=quiet,
                        options=options,
                        received=received,
                    )
                ) as console,
            ):
                yield console
                console.check_interrupted()
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            raise _ended(name, _INTERRUPTION, as_json=as_json) from None
        # Of what is no Exception, SystemExit alone: foreign code called sys.exit(), perhaps with 0.
        except (Exception, SystemExit) as exc:
            if verbose:
                tell(traceback.format_exc().rstrip())
            # A library may take an interruption for a failure of its own.
            outcome = _INTERRUPTION if received else explain(exc, verbose=verbose)
            code, message, hint = outcome
            hint = hint and with_options(hint, options)
            outcome = code, with_options(message, options), hint
            raise _ended(name, outcome, as_json=as_json) from exc


def _ended(name: str, outcome: _Outcome, *, as_json: bool) -> typer.Exit:
    """Tell how a command ended, and make the exception that ends it."""
    code, message, hint = outcome
    write_error(name, code, message, hint, as_json=as_json)
    return typer.Exit(code)


def explain(error: Exception | SystemExit, *, verbose: bool = False) -> _Outcome:
    """Exit code, message and hint of an error."""
    if isinstance(error, DeploykitError):
        return error.exit_code, error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        # Of the system's errors the ones that jobs do not foresee: a full disk, a folder that may
        # not be written.
        path = f"{error.filename}: " if error.filename else ""
        hint = "Check the permissions of what is written to, and the space on its disk."
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "Check its permissions and those of the folders that it is in."
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            place = "its disk" if path else f"the disks of the outputs and of {gettempdir()}"
            hint = f"Make room on {place}, or write somewhere else."
        return _BAD_INPUT, f"{path}{error.strerror}.", hint
    where = "." if verbose else ": -v shows where."
    if isinstance(error, SystemExit):
        message = f"The program was told to end, by sys.exit({error.code!r})."
        return _BAD_INPUT, message, f"Take that call out of the code that makes the network{where}"
    return _BUG, f"{type(error).__name__}: {error}", f"This is a bug of deploykit's{where}"


#: A command that takes ``--bundle``, as far as its line goes or the next one.
_TOLD = re.compile(
    r"\bdeploykit (?:verify|quantize|build-trt|predict|serve|bench)(?![\w-])"
    r"(?!(?:(?!deploykit ).)*--bundle)"
)


def with_options(text: str, options: Sequence[str]) -> str:
    """Complete the commands in a text: without ``--bundle`` they would act on the newest one."""
    if not options:
        return text
    given = command_line(options)
    return _TOLD.sub(lambda match: f"{match[0]} {given}", text)


def write_error(
    command: str, exit_code: int, message: str, hint: str | None, *, as_json: bool
) -> None:
    """Show what went wrong: on stdout as JSON, or on stderr for people."""
    if as_json:
        with contextlib.suppress(OSError):  # stdout may be what failed: then stderr tells
            text = _json_text(command, exit_code, error={"message": message, "hint": hint})
            write_while_read(sys.stdout, f"{text}\n")
            return
    told = [f"error: {_indented(message)}", *([commands_apart(hint)] if hint else [])]
    tell("\n".join(told))


def _indented(message: str) -> str:
    """A message of which no line of a name that has several can look like one of ours."""
    return re.sub(r"\n(?=\S)", "\n  ", message)


def not_shown(error: OSError) -> InputError:
    """The error of a result that stdout does not take."""
    return InputError(
        f"The command is done, but stdout does not take its result: {error.strerror or error}.",
        hint="Look at where stdout leads: its disk may be full.",
    )


def _json_text(command: str, exit_code: int, **content: Any) -> str:
    envelope = {"schema": JSON_SCHEMA, "command": command, "exit_code": exit_code, **content}
    # ASCII only: it reads the same whatever the console's encoding is.
    return json.dumps(envelope, indent=2)
