"""``deploykit.quantize``: graphs in FP16 or INT8, from Python."""

from __future__ import annotations

from typing import Literal

from deploykit.commands.python import BundleLike, PathLike, chosen_bundle, optional_path
from deploykit.commands.quantize.request import SEARCH_SECONDS, QuantizeRequest
from deploykit.commands.quantize.run import Quantization, quantize_bundle
from deploykit.parity.budget import Budget
from deploykit.system.progress import Progress, silent


def quantize(
    bundle: BundleLike | None = None,
    *,
    precision: Literal["fp16", "int8"] = "int8",
    images: PathLike | None = None,
    expected: PathLike | None = None,
    max_flips: str | float | None = None,
    max_accuracy_drop: float | None = None,
    search_seconds: float = SEARCH_SECONDS,
    runtime: Literal["openvino", "onnxruntime-cpu"] | None = None,
    cpu: Literal["vnni", "avx2", "any"] | None = None,
    diagnose: bool = True,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Quantization:
    """Make graphs in FP16 or INT8 that are proven, on other photos, to decide as the checkpoint.

    Args:
        bundle: What :func:`deploykit.export` returned, a bundle's name or its folder; None for the
            one there is, or the newest.
        precision: What to make.
        images: Photos: one sample to search and calibrate on, another to prove on; None for those
            of the export, else ``golden.npz``.
        expected: A table of the photos' classes (path, then names or 0/1 columns); None for what
            their folders tell.
        max_flips: The part of the decisions that may change, ``"1%"`` or ``0.01``, instead of what
            the precision allows.
        max_accuracy_drop: By how many points the accuracy on labelled photos may fall.
        search_seconds: How long to look for the nodes that must stay in FP32, for each graph.
        runtime: What the INT8 graph for CPUs is made for; None for OpenVINO where it is installed.
        cpu: Which CPUs the INT8 graph is for: those with VNNI, those without, which get weights of
            7 bits, or "any" for a graph each; None for this one's.
        diagnose: Look for the node at fault if a graph fails.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is being done.

    Raises:
        UsageError: An argument makes no sense.
        ParityError: No graph was found that passes; the bundle stays as it was.
        InputError: The bundle is damaged, or the photos cannot be used.
        MissingError: onnx or the runtime that was asked for is not here.
    """
    request = QuantizeRequest(
        precision=precision,
        images=optional_path(images),
        search_seconds=search_seconds,
        runtime=runtime,
        cpu=cpu,
        diagnose=diagnose,
        expected=optional_path(expected),
        budget=Budget.parse(max_flips, max_accuracy_drop),
    )
    return quantize_bundle(chosen_bundle(bundle, artifacts, progress), request, progress)
