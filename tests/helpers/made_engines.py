"""Engines that open on a GPU that is not there, and answer as a graph does on the CPU."""

import msgspec
from fake_session import FakeSession

from deploykit.bundle.folder import Bundle
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.specs.session import SessionSpec
from deploykit.system.gpu import Gpu


class EngineSession(FakeSession):
    """An open engine that is none.

    Args:
        answer: From (N, H, W, 3) uint8 to (N, K).
        spec: What it pretends to be.
    """

    def __init__(self, answer, spec: SessionSpec) -> None:
        super().__init__(answer, classes=spec.classes)
        self._spec = spec


class MadeEngines:
    """Stands for :func:`deploykit.runtime.opener.open_engine`.

    Args:
        bundle: Whose FP32 graph answers.
        gpu: What the engines say that they run on.

    Attributes:
        distort: Changes the logits; for engines that answer wrongly.
        plans: The engines that were opened, in order.
        sessions: Their sessions.
    """

    def __init__(self, bundle: Bundle, gpu: Gpu) -> None:
        self._graph = open_candidate(
            bundle, Candidate("deploy/fp32.onnx", "onnxruntime-cpu", "fp32")
        )
        self._gpu = gpu
        self.distort = lambda logits: logits
        self.plans: list[bytes] = []
        self.sessions: list[EngineSession] = []

    def __call__(self, tensorrt, plan, *, name, precision, profile, preprocessing, labels, cache):
        assert cache.parent.name == "cache"
        spec = msgspec.structs.replace(
            self._graph.spec,
            runtime=tensorrt.flavour,
            graph=name,
            precision=precision,
            device=self._gpu.name,
            input_size=preprocessing.input_size,
            classes=len(labels),
            largest_batch=profile.max_batch,
            concurrent=False,
        )
        session = EngineSession(lambda images: self.distort(self._graph.run(images)), spec)
        self.plans.append(plan)
        self.sessions.append(session)
        return session
