"""Which of a bundle's graphs can be walked node by node, and which runtimes cannot."""

from __future__ import annotations

from deploykit.bundle import Bundle
from deploykit.errors import UsageError
from deploykit.jobs.candidates import Candidate, named_candidates
from deploykit.jobs.engines import is_flavour
from deploykit.progress import Note, Progress
from deploykit.runtime.opener import CPU, OPENVINO, REHEARSAL
from deploykit.specs import Precision


def layer_candidates(
    bundle: Bundle, runtime: str | None, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """The graphs that are meant, on runtimes that can be looked into.

    Args:
        bundle: The bundle.
        runtime: What executes; None for every one.
        precision: Of the graphs; None for every one.
        progress: Told which engines are left out.

    Raises:
        UsageError: There is no such runtime or precision, or see :func:`refuse_sealed`.
        BundleError: The bundle has nothing of that kind.
    """
    refuse_sealed(runtime)
    named = named_candidates(bundle, runtime, precision, progress)
    found = [each for each in named if not _is_sealed(each.runtime)]
    if not found:
        refuse_sealed(named[0].runtime)
    if engines := ", ".join(each.file for each in named if is_flavour(each.runtime)):
        progress(Note(f"left out: {engines}: an engine hands out no tensor between its nodes"))
    return found


def refuse_sealed(runtime: str | None) -> None:
    """Refuse a runtime that fuses nodes and hands out no tensor between them.

    Raises:
        UsageError: It does; the hint names those that do not.
    """
    if runtime is None or not _is_sealed(runtime):
        return
    raise UsageError(
        f"{runtime} fuses nodes and hands out no tensor between them, so that no layer can be "
        "blamed.",
        hint=f"Look into the graph: --runtime {REHEARSAL} for FP16, --runtime {CPU} for FP32 and "
        "INT8. What the runtime adds to that is the last row of --stages.",
    )


def _is_sealed(runtime: str) -> bool:
    return is_flavour(runtime) or runtime == OPENVINO
