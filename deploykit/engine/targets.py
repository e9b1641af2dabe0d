"""Targets: the GPUs that an engine of TensorRT for RTX is built for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from deploykit.errors import UsageError
from deploykit.specs.engine import Flavour
from deploykit.system.gpu import Gpu

#: Any GPU of compute capability 8.0 or newer.
PORTABLE = "portable"
#: The GPU of this machine.
CURRENT = "current"
#: The compute capabilities that TensorRT for RTX builds for, oldest first; ``sm89`` is the RTX 40
#: series. See "Supported Compute Capabilities" in its support matrix.
COMPUTE_CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
#: "CPU-Only AOT and TensorRT-RTX Engines" in its documentation: Turing has to be asked for.
OLDEST_PORTABLE = (8, 0)
TARGETS = (PORTABLE, CURRENT, *COMPUTE_CAPABILITIES)


def parse_targets(texts: Sequence[str], flavour: Flavour = "tensorrt_rtx") -> tuple[str, ...]:
    """The targets that a user names.

    Args:
        texts: As written, in any case and order; none for the flavour's default, which is
            ``portable`` for TensorRT for RTX.
        flavour: TensorRT itself builds for the GPU at hand only, ``current``.

    Returns:
        ``portable`` alone, ``current`` alone, or compute capabilities, oldest first, each once.

    Raises:
        UsageError: One is unknown, they exclude each other, or the flavour does not build for them.
    """
    named = {text.strip().lower() for text in texts}
    for target in sorted(named - set(TARGETS)):
        close = difflib.get_close_matches(target, TARGETS, n=1)
        raise UsageError(
            f"There is no target {target!r}; there are {', '.join(TARGETS)}.",
            hint=f"Did you mean {close[0]}?"
            if close
            else "RTX 20 is sm75, RTX 30 sm86, RTX 40 sm89, RTX 50 sm120.",
        )
    targets = tuple(target for target in TARGETS if target in named)
    if len(targets) > 1 and {PORTABLE, CURRENT} & named:
        raise UsageError(
            f"Targets {' and '.join(targets)} exclude each other.",
            hint=f"{PORTABLE} and {CURRENT} stand alone; several compute capabilities can be given "
            "together: --target sm86 --target sm89",
        )
    if flavour == "tensorrt" and targets not in ((), (CURRENT,)):
        raise UsageError(
            f"TensorRT builds for the GPU of this machine only, not for {' and '.join(targets)}.",
            hint="Leave --target out, or build with --flavour tensorrt_rtx.",
        )
    return targets or ((CURRENT,) if flavour == "tensorrt" else (PORTABLE,))


def runs_on(targets: tuple[str, ...], gpu: Gpu) -> bool:
    """Whether an engine of TensorRT for RTX may run on a GPU.

    Args:
        targets: Compute capabilities, or ``portable``, which goes for GPUs that nobody has tried
            too; not ``current``, which does not say which GPU that was.
        gpu: The GPU.
    """
    if targets == (PORTABLE,):
        return gpu.compute_capability >= OLDEST_PORTABLE
    return gpu.target in targets
