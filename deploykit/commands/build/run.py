"""Build: a proven deploy graph becomes a TensorRT engine with a passport."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.commands.build.engine_files import passport_of, publish_engine
from deploykit.commands.build.proven_graph import proven_graph
from deploykit.commands.quantize.run import SEARCH_SECONDS, QuantizedGraph, quantization_photos
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.run import VerifyRequest, verify_bundle
from deploykit.engine.audit import Audit, audit_engine
from deploykit.engine.build import BuiltEngine, current_gpu, engine_from_onnx
from deploykit.engine.flavour import installed_flavours, open_flavour
from deploykit.engine.history import Build, BuildHistory
from deploykit.engine.passport import CURRENT, Passport, parse_targets, reason
from deploykit.errors import DependencyError, MissingError, ParityError
from deploykit.inference.engines import Engine, engines_outdated
from deploykit.specs.engine import Flavour, Profile, TensorRT
from deploykit.specs.model import Precision
from deploykit.specs.value import choice
from deploykit.system.gpu import Gpu, find_gpu
from deploykit.system.progress import Note, Progress, Step, silent

BUILD_PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32", "int8")
_TIMING_CACHE = "cache/timing.cache"
_HISTORY = "cache/builds.json"


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        precision: ``fp16``, ``int8`` or ``fp32``.
        flavour: Which TensorRT; None for the one that is installed and fits.
        targets: See :func:`deploykit.engine.passport.parse_targets`.
        profile: The batch sizes.
        workspace_bytes: The most device memory that a layer may use while it computes; None for
            all there is.
        images: A folder of photos to make the FP16 or INT8 graph anew on, and to verify on; None to
            take the graph that is there, or the photos given at export.
        search_seconds: How long the search for its FP32 nodes may begin new trials.
    """

    precision: Precision = "fp16"
    flavour: Flavour | None = None
    targets: tuple[str, ...] = ()
    profile: Profile = field(default_factory=Profile)
    workspace_bytes: int | None = None
    images: Path | None = None
    search_seconds: float = SEARCH_SECONDS


@dataclass(frozen=True)
class BuildResult:
    """An engine of a bundle.

    Attributes:
        bundle: The bundle, which has the engine now.
        engine: Relative to the bundle.
        passport: What it is, where it runs, and the proof that it rests on.
        tuning: What it took to make the FP16 or INT8 graph; None when the bundle had it.
        audit: The layers' precisions, where there is a GPU to load the engine.
        verification: The engine's own comparison, where there is a GPU to run it.
        outdated: The engines that were built from an earlier graph, and run no longer.
    """

    bundle: Bundle
    engine: str
    passport: Passport
    tuning: QuantizedGraph | None
    audit: Audit | None
    verification: Verification | None
    outdated: tuple[Engine, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing that could be checked here failed."""
        return self.verification is None or self.verification.passed


def build_engine(
    bundle: Bundle, request: BuildRequest | None = None, progress: Progress = silent
) -> BuildResult:
    """Build an engine from a bundle's deploy graph, and verify it where there is a GPU.

    Args:
        bundle: The bundle.
        request: What to build.
        progress: Called with what is being done and what was chosen.

    Raises:
        UsageError: Targets, batch sizes or a flavour that make no sense.
        ParityError: The deploy graph is not proven, or cannot be made in FP16; or an FP16 engine
            has no layer in FP16. The bundle has no new engine.
        GraphError: TensorRT does not take the graph.
        MissingError: TensorRT is not installed, or a GPU is needed and not there.
    """
    request = request or BuildRequest()
    choice(request.precision, BUILD_PRECISIONS, "precision for engines")
    gpu = find_gpu()
    flavour = _choose_flavour(request, gpu, progress)
    targets = parse_targets(request.targets, flavour)
    if targets == (CURRENT,):
        current_gpu()  # or the FP16 graph would be made first, and in vain
    tensorrt = open_flavour(flavour)
    before = bundle
    bundle, proof, tuning = proven_graph(
        bundle, request.precision, request.images, request.search_seconds, progress
    )
    built = _build(bundle, proof.graph, request, tensorrt, targets, progress)
    passport = passport_of(
        bundle,
        built,
        tensorrt=tensorrt,
        precision=request.precision,
        targets=targets,
        profile=request.profile,
        workspace_bytes=request.workspace_bytes,
        proof=proof,
    )
    audit = _audit(tensorrt, built, passport, gpu, progress)
    bundle, engine = publish_engine(bundle, passport, built.plan)
    verification = None if audit is None else _verify(bundle, request, engine, progress)
    now = open_bundle(bundle.folder)
    return BuildResult(
        *(now, engine, passport, tuning, audit, verification),
        outdated=engines_outdated(before, now),
    )


def _audit(
    tensorrt: TensorRT,
    built: BuiltEngine,
    passport: Passport,
    gpu: Gpu | None,
    progress: Progress,
) -> Audit | None:
    """Look at the precision of the engine's layers, on the GPU that it is for.

    Returns:
        None where there is no such GPU, or it does not load the engine, which may be for another.

    Raises:
        ParityError: An engine that is to compute in FP16 has no layer that does.
        MissingError: It was built for this very GPU, which does not load it.
    """
    if gpu is None or reason(passport, tensorrt_version=tensorrt.version, gpu=gpu):
        return None
    progress(Step("auditing the engine's layers"))
    try:
        audit = audit_engine(tensorrt, built.plan, inputs=built.inputs, profile=passport.profile)
    except MissingError as exc:
        if passport.targets == (CURRENT,):
            raise
        progress(Note(f"not run on {gpu.name}: {exc.message}"))
        return None
    if not audit.tells:
        # The types of a strongly typed network are those of its graph, so it is kept all the same.
        progress(Note("the engine does not tell in which precision its layers compute"))
    why = audit.reason(passport.precision)
    if why is not None:
        raise ParityError(
            f"{passport.engine}: {why}. It was not kept.",
            hint="Build it from the FP32 graph, which is what it computes: --precision fp32",
        )
    return audit


def _verify(
    bundle: Bundle, request: BuildRequest, engine: str, progress: Progress
) -> Verification | None:
    """Compare the engine itself, on the photos for proofs; the proof tells what a search used."""
    precision = "fp16" if request.precision == "fp32" else request.precision
    _, photos = quantization_photos(bundle, precision, request.images, silent)
    try:
        return verify_bundle(bundle, VerifyRequest(engine=engine, photos=photos), progress)
    except MissingError as exc:
        progress(Note(f"built, but not verified here: {exc.message}"))
        return None


def _choose_flavour(request: BuildRequest, gpu: Gpu | None, progress: Progress) -> Flavour:
    """The flavour that was asked for, else the one that is installed and fits.

    TensorRT builds for the GPU at hand; TensorRT for RTX builds for others, and without any.
    """
    if request.flavour is not None:
        return request.flavour
    installed = installed_flavours()
    here = gpu is not None and request.targets in ((), (CURRENT,))
    if here and "tensorrt" in installed:
        progress(Note("building with tensorrt, for the GPU of this machine (--flavour chooses)"))
        return "tensorrt"
    if "tensorrt_rtx" in installed:
        reason = "for other GPUs" if gpu else "which needs no GPU to build"
        progress(Note(f"building with tensorrt_rtx, {reason} (--flavour chooses)"))
        return "tensorrt_rtx"
    raise DependencyError(
        "TensorRT for RTX is not installed"
        + (", and without a GPU nothing else builds engines." if gpu is None else "."),
        hint='Install it: pip install "deploykit[rtx]"'
        + (', or for this GPU: pip install "deploykit[tensorrt]"' if gpu else ""),
    )


def _build(
    bundle: Bundle,
    graph: str,
    request: BuildRequest,
    tensorrt: TensorRT,
    targets: tuple[str, ...],
    progress: Progress,
) -> BuiltEngine:
    history = BuildHistory(bundle.folder / _HISTORY)
    expected = history.estimate_seconds(
        tensorrt.flavour,
        request.precision,
        targets,
        request.profile,
        request.workspace_bytes,
    )
    stage = "building" if expected is None else f"building (~{expected:.0f} s)"

    def on_step(phase: str, done: int, total: int) -> None:
        progress(Step(stage, done, total, detail=phase.lower()))

    progress(Step(stage))
    built = engine_from_onnx(
        tensorrt,
        bundle.checked(graph),
        profile=request.profile,
        targets=targets,
        workspace_bytes=request.workspace_bytes,
        timing_cache=bundle.folder / _TIMING_CACHE,
        on_step=on_step,
        on_cancel=lambda: progress(Note("stopping at TensorRT's next step")),
    )
    history.add(
        Build(
            flavour=tensorrt.flavour,
            precision=request.precision,
            targets=targets,
            profile=request.profile,
            workspace_bytes=request.workspace_bytes,
            seconds=built.seconds,
        )
    )
    return built
