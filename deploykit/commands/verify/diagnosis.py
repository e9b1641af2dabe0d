"""The diagnosis of ``deploykit verify``: which stage moves the answer, and which node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from deploykit.commands.diagnose.layers.run import diagnose_layers, layer_candidates
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.run import (
    StagesPlan,
    diagnose_stages,
    prepare_stages,
)
from deploykit.commands.diagnose.text import BrokenDiagnosis, Diagnosis
from deploykit.errors import DeploykitError
from deploykit.system.progress import Progress, silent

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.verify.request import VerifyRequest
    from deploykit.commands.verify.result import Verification
    from deploykit.proof.reference import OpenReference

#: A diagnosis begins with the images that changed their decision or moved most, at most so many.
_FIRST_IMAGES = 16

_Report = TypeVar("_Report")


def prepare_diagnosis(
    bundle: Bundle, request: VerifyRequest, progress: Progress
) -> StagesPlan | None:
    """Let what the diagnosis needs fail before a comparison that takes minutes.

    Returns:
        What the diagnosis by stage starts from; None where it is not asked for.
    """
    if request.layers:
        layer_candidates(bundle, request.runtime, request.precision, silent)
    return prepare_stages(bundle, _diagnosis_request(request), progress) if request.stages else None


def diagnose(
    bundle: Bundle,
    request: VerifyRequest,
    found: Verification,
    plan: StagesPlan | None,
    reference: OpenReference | None,
    progress: Progress,
) -> Diagnosis:
    """Diagnose what is asked for, beginning with the images on which the candidates differ most.

    An error in one part is told in the result: neither the comparison nor the other part is lost.
    """
    first = found.worst_images(_FIRST_IMAGES) if found.images.kind == "photos" else ()
    broken_off: list[BrokenDiagnosis] = []

    def attempted(name: str, part: Callable[[], _Report]) -> _Report | None:
        try:
            return part()
        except DeploykitError as exc:
            broken_off.append(BrokenDiagnosis(name, exc.message, exc.hint, exc.exit_code))
            return None

    stages = layers = None
    right = next(((each.correct, each.images) for each in found.accuracy), None)
    wanted = replace(_diagnosis_request(request), first=first, right=right)
    if request.stages:
        stages = attempted(
            "stages", lambda: diagnose_stages(bundle, wanted, progress, plan, reference=reference)
        )
    if request.layers:
        layers = attempted("layers", lambda: diagnose_layers(bundle, wanted, progress))
    return Diagnosis(stages, layers, tuple(broken_off))


def _diagnosis_request(request: VerifyRequest) -> DiagnosisRequest:
    return DiagnosisRequest(
        images=request.images,
        max_images=request.max_images,
        transform=request.transform,
        trained_accuracy=request.trained_accuracy,
        reference=request.reference,
        runtime=request.runtime,
        precision=request.precision,
        expected=request.expected,
    )
