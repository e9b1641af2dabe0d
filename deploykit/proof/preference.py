"""The order in which ``auto`` tries what a bundle has."""

from __future__ import annotations

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import SearchRecord
from deploykit.inference.candidates import Candidate, all_candidates
from deploykit.runtime.opener import CPU, OPENVINO
from deploykit.specs.model import Precision
from deploykit.system.progress import Progress

#: What is usually the fastest first. The order on a CPU was measured; that on a GPU is an
#: assumption, and nothing of it was measured. ``deploykit bench`` measures a machine.
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
#: The largest share of the nodes that could compute with integers and stay in FP32, at which INT8
#: still comes before BF16. Measured on dpn92, images/s of OpenVINO on one thread: BF16 9.7, INT8
#: with none of 131 nodes in FP32 17.3, with 40 of them 8.2. They break even at about a fifth; below
#: that INT8 gains little, and has the larger errors.
_MOST_IN_FP32 = 0.1


def by_preference(
    bundle: Bundle, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """What ``auto`` may take, the usually fastest first.

    Args:
        bundle: The bundle.
        precision: What was asked for; None for any.
        progress: Called with a note of each engine that is skipped because it is damaged.
    """
    wanted = [
        candidate
        for candidate in all_candidates(bundle, progress)
        if (candidate.runtime, candidate.precision) in _PREFERENCE
        and precision in (None, candidate.precision)
    ]
    return sorted(wanted, key=lambda each: _rank(bundle, each))


def _rank(bundle: Bundle, candidate: Candidate) -> tuple[bool, int, bool]:
    """A candidate's place in the order, the lowest first.

    INT8 on a CPU comes last if its graph is made for another runtime, because then it gains next to
    nothing. On OpenVINO it comes right after BF16 if many of its nodes compute in FP32.
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
