"""The walks of ``deploykit verify``: who is to blame, asked after the comparison."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from deploykit.errors import DeploykitError, UsageError
from deploykit.system.progress import silent

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.diagnose.stages.run import StagesPlan, StagesRequest
    from deploykit.commands.diagnose.text import Diagnosis
    from deploykit.commands.verify.result import Verification
    from deploykit.commands.verify.run import VerifyRequest
    from deploykit.parity.diagnosis import LayerReport, StageReport
    from deploykit.proof.reference import OpenReference
    from deploykit.system.progress import Progress

#: So many of the photos that changed their class, or whose answers moved most, a walk begins with.
_FIRST_PHOTOS = 16

_Report = TypeVar("_Report")


@dataclass(frozen=True)
class Walks:
    """Which walks are wanted.

    Attributes:
        stages: Whether to walk over the stages.
        transform: The user's own transform, for that walk.
        trained_accuracy: What training had, for that walk.
        layers: Whether to walk over the nodes.
    """

    stages: bool
    transform: str | None
    trained_accuracy: float | None
    layers: bool

    def check(self, request: VerifyRequest) -> None:
        """Refuse options that make no sense together, before anything is opened."""
        if not self.stages and (self.transform, self.trained_accuracy) != (None, None):
            raise UsageError(
                "--transform and --trained-accuracy are for the walk over the stages.",
                hint="Add --stages.",
            )
        if not (self.stages or self.layers):
            return
        if request.self_test:
            raise UsageError(
                "--self-test needs only the bundle; --stages and --layers need more than that.",
                hint="Leave out --self-test.",
            )
        if request.engine is not None:
            raise UsageError(
                "--stages and --layers walk over graphs; --engine compares one engine.",
                hint="Leave out --engine, or the walks: verify --engine first, then walk over the "
                "graph that it was built from.",
            )
        if request.tf32:
            raise UsageError(
                "--stages and --layers hold every step against plain FP32, which --tf32 is not.",
                hint="Leave out --tf32, or the walks.",
            )

    def prepare(
        self, bundle: Bundle, request: VerifyRequest, progress: Progress
    ) -> StagesPlan | None:
        """Let what the walks need fail before a comparison that takes minutes."""
        if self.layers:
            from deploykit.commands.diagnose.layers.run import layer_candidates

            # What is left out, the walk itself says.
            layer_candidates(bundle, request.runtime, request.precision, silent)
        if not self.stages:
            return None
        from deploykit.commands.diagnose.stages.run import prepare_stages

        return prepare_stages(bundle, self._stages_request(request, ()), progress)

    def open_reference(
        self, bundle: Bundle, request: VerifyRequest, stack: ExitStack, progress: Progress
    ) -> OpenReference | None:
        """Open what the comparison and the walks share, until the stack is left.

        Returns:
            The reference; None where nothing is walked, and the comparison opens its own.
        """
        if not (self.stages or self.layers):
            return None
        from deploykit.proof.reference import open_reference

        reference = open_reference(bundle, request.reference, progress)
        stack.enter_context(reference.session)
        return reference

    def walk(
        self,
        bundle: Bundle,
        request: VerifyRequest,
        found: Verification,
        plan: StagesPlan | None,
        reference: OpenReference | None,
        progress: Progress,
    ) -> Diagnosis:
        """Walk what is wanted, beginning with the photos that the comparison liked least.

        A walk that breaks off is told of in what comes back: the comparison is not lost with it.
        """
        from deploykit.commands.diagnose.text import BrokenDiagnosis, Diagnosis

        first = found.worst_photos(_FIRST_PHOTOS) if found.photos.kind == "photos" else ()
        broken_off: list[BrokenDiagnosis] = []

        def made(name: str, wanted: bool, walk: Callable[[], _Report]) -> _Report | None:
            if not wanted:
                return None
            try:
                return walk()
            except DeploykitError as exc:
                broken_off.append(BrokenDiagnosis(name, exc.message, exc.hint, exc.exit_code))
                return None

        wanted = self._stages_request(request, first)
        stages = made(
            "stages",
            self.stages,
            lambda: _diagnose_stages(bundle, wanted, plan, reference, progress),
        )
        layers = made(
            "layers",
            self.layers,
            lambda: _diagnose_layers(bundle, request, first, progress),
        )
        return Diagnosis(stages, layers, tuple(broken_off))

    def _stages_request(self, request: VerifyRequest, first: tuple[str, ...]) -> StagesRequest:
        from deploykit.commands.diagnose.stages.run import StagesRequest

        return StagesRequest(
            images=request.images,
            max_images=request.max_images,
            transform=self.transform,
            trained_accuracy=self.trained_accuracy,
            reference=request.reference,
            runtime=request.runtime,
            precision=request.precision,
            first=first,
        )


def _diagnose_layers(
    bundle: Bundle,
    request: VerifyRequest,
    first: tuple[str, ...],
    progress: Progress,
) -> tuple[LayerReport, ...]:
    from deploykit.commands.diagnose.layers.run import LayersRequest, diagnose_layers

    wanted = LayersRequest(
        images=request.images,
        runtime=request.runtime,
        precision=request.precision,
        max_images=request.max_images,
        first=first,
    )
    return diagnose_layers(bundle, wanted, progress)


def _diagnose_stages(
    bundle: Bundle,
    request: StagesRequest,
    plan: StagesPlan | None,
    reference: OpenReference | None,
    progress: Progress,
) -> StageReport:
    from deploykit.commands.diagnose.stages.run import diagnose_stages

    return diagnose_stages(bundle, request, progress, plan, reference=reference)
