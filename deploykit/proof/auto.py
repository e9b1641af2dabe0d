"""Which runtime a bundle runs on: the one that was asked for, or the best that is proven."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

from deploykit.bundle.folder import Bundle
from deploykit.errors import (
    DeploykitError,
    DeviceError,
    InputError,
    MissingError,
    ParityError,
    UsageError,
)
from deploykit.inference.candidates import Candidate, by_reason, named_candidates, open_candidate
from deploykit.inference.engines import is_flavour
from deploykit.proof.accepted import AcceptedChoice, accepted_choice
from deploykit.proof.policy import Status, has_run, status
from deploykit.proof.preference import by_preference
from deploykit.proof.self_test import self_test
from deploykit.runtime.opener import CUDA, HOST_RUNTIMES, graph_precision
from deploykit.specs.model import Precision
from deploykit.specs.session import Session
from deploykit.system.gpu import find_gpu, need_gpu
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import command_line

_Opener: TypeAlias = Callable[[Bundle, Candidate], Session]

AUTO = "auto"
_PROVE_OR_FP32 = (
    "--precision fp32 decides the same on every CPU; or see by how much this one differs: "
    "deploykit verify with the same --runtime and --precision"
)


def open_best(
    bundle: Bundle,
    *,
    runtime: str = AUTO,
    precision: Precision | None = None,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
    progress: Progress = silent,
) -> Session:
    """Open one of a bundle's deploy graphs or engines.

    Args:
        bundle: The bundle.
        runtime: A runtime's name, which is used or fails; or ``auto`` for what the user accepted
            from ``bench`` on this machine, else what is usually the fastest; in either case with an
            ``executed`` proof without a decidable flip.
        precision: A precision; None for any.
        threads: For computing on the CPU; None for one a core.
        pipelined: Whether several batches will be under way at once.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.
        progress: Called with a note of what ``auto`` takes or leaves that was accepted, built or
            proven, and why, and when a runtime that was asked for has no proof.

    Raises:
        UsageError: No such runtime, or one that does not compute in that precision; or TF32 for one
            that has none.
        BundleError: No graph of that precision, no engine, or it is damaged.
        ParityError: ``auto``, and nothing is proven; or an engine does not give the recorded
            answers.
        MissingError: The runtime's package or device is not here.
    """
    if runtime == AUTO and tf32:
        raise UsageError(
            "auto takes only what is proven, and nothing is with TF32.",
            hint=f"Name the runtime: --runtime {CUDA} --tf32",
        )
    open_it = partial(open_candidate, threads=threads, pipelined=pipelined, tf32=tf32)
    if runtime != AUTO:
        return _open_named(bundle, runtime, precision, open_it, progress)
    return _open_auto(bundle, precision, open_it, progress)


def _open_auto(
    bundle: Bundle, precision: Precision | None, open_it: _Opener, progress: Progress
) -> Session:
    candidates = by_preference(bundle, precision, progress)
    if precision is not None and not candidates:
        bundle.deploy_graph(graph_precision(precision))
    choice = accepted_choice(bundle, precision, candidates, progress)
    if choice is not None:
        candidates = [choice.candidate, *(each for each in candidates if each != choice.candidate)]
    left_out: list[tuple[Candidate, str]] = []
    errors: list[DeploykitError] = []
    try:
        for candidate in candidates:
            attempt = _attempted(bundle, candidate, open_it, choice)
            if choice is not None and candidate == choice.candidate:
                choice.tell(attempt.reason, progress)
            elif attempt.session is None and _is_missed(bundle, candidate):
                left_out.append((candidate, attempt.reason))
            if attempt.session is not None:
                return attempt.session
            if attempt.error is not None:
                errors.append(attempt.error)
    finally:
        for line in by_reason(left_out):
            progress(Note(f"not taken: {line}"))
    if errors:
        # A damaged graph first, which can be mended.
        raise min(reversed(errors), key=lambda each: isinstance(each, MissingError))
    raise _nothing_proven(bundle, precision, candidates)


class _Attempt(NamedTuple):
    """What came of opening a candidate: a session, or why there is none."""

    session: Session | None
    reason: str
    error: DeploykitError | None = None


def _attempted(
    bundle: Bundle, candidate: Candidate, open_it: _Opener, choice: AcceptedChoice | None
) -> _Attempt:
    """Open a candidate, if it is proven on this very device, or accepted within its budget.

    Raises:
        InputError: It is a graph, and damaged. That of what was accepted is told instead: without
            it the others have their turns.
    """
    accepted = choice is not None and candidate == choice.candidate
    enough = ("proven", "within budget") if accepted else ("proven",)
    try:
        known = status(bundle, candidate)
        if known.word not in enough:
            return _Attempt(None, _why_not(candidate, known))
        session = open_it(bundle, candidate)
    except MissingError as exc:
        return _Attempt(None, exc.message, exc)
    except InputError as exc:
        # An engine that is damaged is a reason like others.
        if is_flavour(candidate.runtime):
            return _Attempt(None, exc.message)
        if choice is None or candidate.file != choice.candidate.file:
            raise
        return _Attempt(None, exc.message, exc)
    here = status(bundle, candidate, session.spec.device)
    if here.word in enough:
        return _Attempt(session, "")
    session.close()
    return _Attempt(None, here.reason)


def _why_not(candidate: Candidate, known: Status) -> str:
    if is_flavour(candidate.runtime):
        try:
            need_gpu()
        except DeviceError as exc:
            return exc.message  # without one a proof would not help
    return known.reason


def _is_missed(bundle: Bundle, candidate: Candidate) -> bool:
    """Whether it is told why one is not taken: somebody compared it, or built its engine."""
    known = status(bundle, candidate).verdict
    return is_flavour(candidate.runtime) or (known is not None and not known.is_recorded)


def _nothing_proven(
    bundle: Bundle, precision: Precision | None, candidates: list[Candidate]
) -> ParityError:
    if all(candidate.runtime not in HOST_RUNTIMES for candidate in candidates):
        need_gpu()  # without one a proof would not help
    option = () if precision is None else ("--precision", precision)
    words = ("deploykit", "verify", "--bundle", str(bundle.folder), "--images", "DIR", *option)
    return ParityError(
        f"No graph of bundle {bundle.name} is proven to decide as the checkpoint does.",
        hint=f"Prove it: {command_line(words)}; or run it unproven by naming a --runtime.",
    )


def _open_named(
    bundle: Bundle,
    runtime: str,
    precision: Precision | None,
    open_it: _Opener,
    progress: Progress,
) -> Session:
    if is_flavour(runtime):
        return _open_engine(bundle, runtime, precision, open_it, progress)
    candidate = named_candidates(bundle, runtime, precision)[0]
    session = open_it(bundle, candidate)
    spec = session.spec
    known = status(bundle, candidate, spec.device)
    elsewhere = status(bundle, candidate).verdict
    if known.verdict is None and elsewhere is not None and elsewhere.passed:
        # It passed, but on a CPU with other instruction sets.
        with _closed_on_failure(session):
            self_test(bundle, session, progress, hint=_PROVE_OR_FP32)
    if spec.tf32:
        how = f"{spec.precision} with TF32 on {runtime}, {spec.device},"
        progress(Note(f"{how} is not proven: deploykit verify does that"))
    elif known.proof is None:
        progress(Note(f"{candidate}, {spec.device}: {known.reason}"))
    return session


def _open_engine(
    bundle: Bundle,
    runtime: str,
    precision: Precision | None,
    open_it: _Opener,
    progress: Progress,
) -> Session:
    """Open the newest engine that can run here; at its first run on a GPU it is tested."""
    try:
        need_gpu()  # or an engine would have to be built first, and in vain
        candidates = named_candidates(bundle, runtime, precision, progress)
        candidate, session = _open_first(bundle, candidates, open_it)
    except MissingError as exc:
        instead = _instead(bundle)
        raise DeviceError(
            f"{runtime} cannot run here: {exc.message}{instead}",
            # Where what runs instead is said, nobody needs to be told to get a GPU.
            hint=exc.hint if find_gpu() or not instead else None,
        ) from exc
    known = status(bundle, candidate, session.spec.device)
    if not has_run(bundle, candidate, session.spec.device):
        with _closed_on_failure(session):
            self_test(bundle, session, progress)
    if known.proof is None:
        progress(Note(f"{candidate}, {session.spec.device}: {known.reason}"))
    return session


def _open_first(
    bundle: Bundle, candidates: list[Candidate], open_it: _Opener
) -> tuple[Candidate, Session]:
    """Open the first that can run here.

    Raises:
        MissingError: None can; what the first one lacks.
    """
    errors = []
    for candidate in candidates:
        try:
            return candidate, open_it(bundle, candidate)
        except MissingError as exc:
            errors.append(exc)
    raise errors[0]


@contextlib.contextmanager
def _closed_on_failure(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException:
        session.close()
        raise


def _instead(bundle: Bundle) -> str:
    """What would run without a --runtime, found out by opening it."""
    try:
        with open_best(bundle) as session:
            spec = session.spec
    except DeploykitError:
        return ""
    instead = Candidate(spec.graph, spec.runtime, spec.precision)
    return f" Without --runtime, {instead} would run."
