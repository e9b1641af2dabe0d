"""The order in which ``auto`` tries what a bundle has."""

from __future__ import annotations

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import SearchRecord
from deploykit.inference.candidates import Candidate, all_candidates
from deploykit.runtime.opener import CPU, OPENVINO
from deploykit.specs.precision import Precision
from deploykit.system.progress import Progress

#: What is fastest first: measured on CPUs and, FP16 and FP32, on one GPU. That an INT8 engine is
#: faster than one in FP16 is NVIDIA's word and not measured here.
_PREFERENCE: tuple[tuple[str, Precision], ...] = (
    ("tensorrt", "int8"),
    ("tensorrt_rtx", "int8"),
    ("tensorrt", "fp16"),
    ("tensorrt_rtx", "fp16"),
    ("tensorrt", "fp32"),
    ("tensorrt_rtx", "fp32"),
    ("onnxruntime-cuda", "fp16"),
    ("onnxruntime-cuda", "fp32"),
    ("openvino", "int8"),
    ("openvino", "bf16"),
    ("onnxruntime-cpu", "int8"),
    ("openvino", "fp32"),
    ("onnxruntime-cpu", "fp32"),
)
#: Of the nodes that could compute with integers. Measured on dpn92, images/s of OpenVINO on one
#: thread: BF16 9.7, INT8 with none of 131 nodes in FP32 17.3, with 40 of them 8.2. In between it is
#: overtaken at about a fifth; before that it gains little, and its errors are the larger ones.
_MOST_IN_FP32 = 0.1


def by_preference(
    bundle: Bundle, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """What ``auto`` may take, what is usually the fastest first.

    Args:
        bundle: The bundle.
        precision: What was asked for; None for any.
        progress: Called with a note of an engine that is damaged, and none of them.
    """
    wanted = [
        candidate
        for candidate in all_candidates(bundle, progress)
        if (candidate.runtime, candidate.precision) in _PREFERENCE
        and precision in (None, candidate.precision)
    ]
    return sorted(wanted, key=lambda each: _rank(bundle, each))


def _rank(bundle: Bundle, candidate: Candidate) -> tuple[bool, int, bool]:
    """Where a candidate stands in the order, the first the lowest.

    INT8 on CPUs comes last where its graph is made for another runtime: it gains next to nothing.
    On OpenVINO it comes right after BF16 where many of its nodes compute in FP32.
    """
    kind = candidate.runtime, candidate.precision
    search = bundle.manifest.searches.get(candidate.file)
    if kind in ((CPU, "int8"), (OPENVINO, "int8")):
        if search is None or search.runtime != candidate.runtime:
            return True, _PREFERENCE.index(kind), False
        if candidate.runtime == OPENVINO and _keeps_many(bundle, search):
            return False, _PREFERENCE.index((OPENVINO, "bf16")), True
    return False, _PREFERENCE.index(kind), False


def _keeps_many(bundle: Bundle, search: SearchRecord) -> bool:
    """Whether so much of the INT8 graph for CPUs is FP32 that BF16 may be faster."""
    if search.integers is None:
        return False
    kept = len(bundle.manifest.kept.get("int8", ()))
    return kept > _MOST_IN_FP32 * (kept + search.integers)
