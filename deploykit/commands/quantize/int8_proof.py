"""The proof of an INT8 graph: the very file, on photos that no search has used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from deploykit.bundle.manifest import Manifest, sha256_of
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.quantize.int8_loop import Scheme
from deploykit.errors import GraphError, MissingError, ParityError
from deploykit.proof.answered import AnsweredPhotos, flip_lines
from deploykit.proof.reference import Reference
from deploykit.proof.verdict import Verdict, kept_verdict
from deploykit.runtime.opener import open_graph
from deploykit.system.progress import Note, Progress


def prove_graph(
    scheme: Scheme,
    path: Path,
    searched_on: str,
    manifest: Manifest,
    photos: AnsweredPhotos,
    progress: Progress,
) -> tuple[Verdict, ...]:
    """Compare the very file that was written, on photos that no search has used.

    Args:
        scheme: What the file is.
        path: The file.
        searched_on: The runtime that the search tried graphs on.
        manifest: The bundle's.
        photos: The photos.
        progress: Called with what is being done, and with a note where another runtime that is
            installed cannot run the graph.

    Returns:
        A verdict for each of the scheme's runtimes that is here, in their order.

    Raises:
        ParityError: It does not pass on that of the search.
        MissingError: That one is not here any more.
        GraphError: It cannot run the graph.
    """
    verdicts = []
    for runtime in scheme.runtimes:
        try:
            with open_graph(
                path,
                name=scheme.graph,
                runtime=runtime,
                precision="int8",
                preprocessing=manifest.preprocessing,
                labels=manifest.labels,
            ) as session:
                # OpenVINO compiles once more at the first batch of two images.
                verdicts.append(photos.judge(session, manifest, progress))
        except (MissingError, GraphError) as exc:
            if runtime == searched_on:
                raise
            note_left_out(scheme, runtime, exc, progress)
    if not any(each.passed and each.candidate.runtime == searched_on for each in verdicts):
        raise ParityError(
            f"{scheme.graph} passes on the photos of the search, but not on others:\n"
            + "\n".join(line for verdict in verdicts for line in _failure_lines(verdict)),
            hint=f"Give more photos (--images), or stay with {scheme.instead}.",
        )
    return tuple(verdicts)


def note_left_out(
    scheme: Scheme, runtime: str, error: MissingError | GraphError, progress: Progress
) -> None:
    """Say aloud that a runtime cannot run a graph, unless it is just not installed."""
    if not isinstance(error.__cause__, ModuleNotFoundError):
        progress(Note(f"left out: {scheme.graph} on {runtime}: {error.message}"))


def proofs_of(
    verdicts: Sequence[Verdict], path: Path, reference: Reference, photos: AnsweredPhotos
) -> tuple[KeptVerdict, ...]:
    """What the manifest keeps of those verdicts that passed.

    Args:
        verdicts: Of one graph.
        path: Its file.
        reference: Who answered the photos.
        photos: The photos.
    """
    return tuple(
        kept_verdict(verdict, sha256_of(path), reference, photos.drawn)
        for verdict in verdicts
        if verdict.passed
    )


def _failure_lines(verdict: Verdict) -> Iterator[str]:
    for objection in verdict.objections:
        yield f"{verdict.candidate.runtime}: {objection}"
    yield from flip_lines(verdict)
