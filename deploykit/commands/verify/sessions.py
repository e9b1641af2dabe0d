"""Open what a verification compares: the candidates that are meant and can run here."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.errors import BundleError, GraphError, MissingError, UsageError
from deploykit.inference.candidates import (
    Candidate,
    by_reason,
    engine_candidate,
    named_candidates,
    open_candidate,
)
from deploykit.inference.engines import is_flavour, named_engine
from deploykit.inference.sessions import open_bundle_graph
from deploykit.runtime.opener import CPU, CUDA, OPENVINO
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    from deploykit.bundle.verdicts import ReferenceKind
    from deploykit.specs.model import Precision
    from deploykit.specs.session import Session


@dataclass(frozen=True)
class CandidateRequest:
    """What of a bundle is to be compared.

    Attributes:
        runtime: What executes; None for every runtime that can run here.
        precision: Of the deploy graphs and engines; None for every one that they are made for, and
            so not for BF16, which is no graph's own.
        engine: One engine by its name; None for the newest of each kind that can run here.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.
    """

    runtime: str | None
    precision: Precision | None
    engine: str | None
    tf32: bool

    @property
    def named(self) -> bool:
        """Whether the user named something, which then must run."""
        return (self.runtime, self.precision, self.engine) != (None, None, None)


def open_candidates(
    bundle: Bundle,
    request: CandidateRequest,
    against: ReferenceKind,
    stack: ExitStack,
    progress: Progress,
) -> tuple[list[Session], dict[Candidate, str]]:
    """Open what is to be compared; never the reference with itself.

    Args:
        bundle: The bundle.
        request: What is meant.
        against: What it is compared with.
        stack: Closes the sessions.
        progress: Told what is left out.

    Returns:
        Open sessions, and why other candidates are skipped.

    Raises:
        UsageError: A runtime, precision or engine that makes no sense.
        BundleError: A file of the bundle is missing or damaged.
        MissingError: Nothing of what is meant can run here.
    """
    sessions: list[Session] = []
    if against == "module" and not request.named:
        canonical = open_bundle_graph(bundle, CANONICAL_GRAPH, runtime=CPU, precision="fp32")
        sessions.append(stack.enter_context(canonical))
    opened: set[tuple[str, Precision]] = set()
    missing: dict[Candidate, MissingError] = {}
    skipped: dict[Candidate, str] = {}
    for candidate in _candidates(bundle, request, progress):
        kind = candidate.runtime, candidate.precision
        if kind in opened:
            skipped[candidate] = "a newer engine was compared"
            continue
        try:
            session = open_candidate(bundle, candidate, tf32=request.tf32)
        except MissingError as exc:
            missing[candidate] = exc
            skipped[candidate] = exc.message
            continue
        except (BundleError, GraphError) as exc:
            if request.named or not is_flavour(candidate.runtime):
                raise
            progress(Note(f"left out: {candidate}: {exc.message}"))
            skipped[candidate] = exc.message
            continue
        opened.add(kind)
        sessions.append(stack.enter_context(session))
    if missing and not opened:
        raise next(iter(missing.values()))
    told = [
        (candidate, reason.message)
        for candidate, reason in missing.items()
        if not _is_optional(candidate, reason)
    ]
    for line in by_reason(told):
        progress(Note(f"left out: {line}"))
    return sessions, skipped


def _candidates(bundle: Bundle, request: CandidateRequest, progress: Progress) -> list[Candidate]:
    """The candidates that are meant; of engines of one kind the newest first."""
    if request.engine is not None:
        if (request.runtime, request.precision) != (None, None):
            raise UsageError(
                "--engine says by itself what runs, on what and in which precision.",
                hint="Leave out --runtime and --precision.",
            )
        return [engine_candidate(named_engine(bundle, request.engine))]
    return named_candidates(bundle, request.runtime, request.precision, progress)


def _is_optional(candidate: Candidate, reason: MissingError) -> bool:
    """Whether nobody who did not ask for a runtime misses it: no GPU, or no OpenVINO at all."""
    if candidate.runtime == OPENVINO:
        return isinstance(reason.__cause__, ModuleNotFoundError)
    return candidate.runtime == CUDA and find_gpu() is None
