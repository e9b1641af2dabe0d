"""Which of a bundle's graphs can be diagnosed node by node, and which runtimes cannot."""

from __future__ import annotations

from deploykit.bundle.folder import Bundle
from deploykit.errors import UsageError
from deploykit.inference.candidates import Candidate, by_reason, named_candidates
from deploykit.runtime.opener import CPU, OPENVINO, REHEARSAL
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.system.progress import Note, Progress

_WHY = "nodes are fused there, and no tensor between them is handed out"


def layer_candidates(
    bundle: Bundle, runtime: str | None, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """The graphs that are meant, on runtimes that hand out the tensors between nodes.

    Args:
        bundle: The bundle.
        runtime: What executes; None for every one.
        precision: Of the graphs; None for every one.
        progress: Told what is skipped.

    Raises:
        UsageError: There is no such runtime or precision, or what computes in it hands out no
            tensor between nodes; the hint says what does.
        BundleError: The bundle has nothing of that kind.
    """
    if runtime is not None and _is_sealed(runtime):
        raise _refusal(runtime, runtime, precision)
    named = named_candidates(bundle, runtime, precision, progress)
    found = [each for each in named if not _is_sealed(each.runtime)]
    if not found:
        raise _refusal(named[0].runtime, runtime, precision)
    for line in by_reason([(each, _WHY) for each in named if each not in found]):
        progress(Note(f"skipped: {line}"))
    return found


def _refusal(sealed: str, runtime: str | None, precision: Precision | None) -> UsageError:
    if precision == "bf16":  # no graph's own
        hint = f"Diagnose the FP32 graph that it runs: --runtime {CPU}, without --precision."
    elif runtime is None and precision is not None:
        hint = f"Leave out --precision {precision}: nothing else of this bundle computes in it."
    else:
        hint = f"Diagnose the graph: --runtime {REHEARSAL} for FP16, {CPU} for FP32 and INT8."
    return UsageError(
        f"{sealed} fuses nodes and hands out no tensor between them, so no node can be diagnosed.",
        hint=f"{hint} What the runtime adds is the last row of --stages.",
    )


def _is_sealed(runtime: str) -> bool:
    return is_flavour(runtime) or runtime == OPENVINO
