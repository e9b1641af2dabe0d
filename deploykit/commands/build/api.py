"""``deploykit.build_engine``: a proven deploy graph becomes a TensorRT engine, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from deploykit.commands.build.run import BuildRequest, BuildResult
from deploykit.commands.build.run import build_engine as build
from deploykit.commands.python import BundleLike, PathLike, chosen_bundle, optional_path
from deploykit.commands.quantize.request import SEARCH_SECONDS
from deploykit.parity.budget import Budget
from deploykit.specs.engine import Profile
from deploykit.system.progress import Progress, silent


def build_engine(
    bundle: BundleLike | None = None,
    *,
    precision: Literal["fp16", "int8", "fp32"] = "fp16",
    flavour: Literal["auto", "tensorrt", "tensorrt_rtx"] = "auto",
    target: str | Sequence[str] = (),
    min_batch: int = 1,
    opt_batch: int = 8,
    max_batch: int = 32,
    workspace: int | None = None,
    images: PathLike | None = None,
    expected: PathLike | None = None,
    max_flips: str | float | None = None,
    max_accuracy_drop: float | None = None,
    search_seconds: float = SEARCH_SECONDS,
    diagnose: bool = True,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> BuildResult:
    """Make the FP16 or INT8 graph, prove it by rehearsal, and build an engine with a passport.

    Args:
        bundle: What :func:`deploykit.export` returned, a bundle's name or its folder; None for the
            one there is, or the newest.
        precision: Of the engine.
        flavour: Which TensorRT; ``auto`` for what is installed and fits.
        target: For which GPU: ``portable``, ``current``, ``sm75``, ``sm80``, ``sm86``, ``sm89``
            (RTX 40), ``sm120`` (RTX 50), ``sm121``; or a list, for one engine for several.
        min_batch: The smallest batch it takes.
        opt_batch: The batch it is tuned for.
        max_batch: The largest batch it takes.
        workspace: Device memory that a layer may work in, in bytes; None for all.
        images: Photos to make the FP16 or INT8 graph with, anew; None for the graph that is there,
            else for those of the export, else ``golden.npz``.
        expected: A table of the photos' classes (path, then names or 0/1 columns); None for what
            their folders tell.
        max_flips: The part of the decisions that may change, ``"1%"`` or ``0.01``, instead of what
            the precision allows.
        max_accuracy_drop: By how many points the accuracy on labelled photos may fall.
        search_seconds: How long to look for the nodes that must stay in FP32.
        diagnose: Look for the node at fault if a graph or the engine fails.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is being done.

    Returns:
        The engine; ``passed`` is False where it was run here and failed.

    Raises:
        UsageError: An argument makes no sense.
        ParityError: The deploy graph is not proven, or cannot be made in this precision.
        GraphError: TensorRT does not take the graph.
        MissingError: TensorRT is not installed, or a GPU is needed and not there.
    """
    request = BuildRequest(
        precision=precision,
        flavour=None if flavour == "auto" else flavour,
        targets=(target,) if isinstance(target, str) else tuple(target),
        profile=Profile(min_batch=min_batch, opt_batch=opt_batch, max_batch=max_batch),
        workspace_bytes=workspace,
        images=optional_path(images),
        search_seconds=search_seconds,
        diagnose=diagnose,
        expected=optional_path(expected),
        budget=Budget.parse(max_flips, max_accuracy_drop),
    )
    return build(chosen_bundle(bundle, artifacts, progress), request, progress)
