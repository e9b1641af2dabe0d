"""Build: a proven deploy graph becomes a TensorRT engine with a passport."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle, open_bundle
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.build.engine_files import publish_engine, withdraw_engine, write_engine
from deploykit.commands.build.proven_graph import PROOF_RUNTIMES, proven_graph
from deploykit.commands.diagnose.layers.failed import failure_lines, kept_files
from deploykit.commands.quantize.request import SEARCH_SECONDS, QuantizeRequest
from deploykit.commands.quantize.run import QuantizedGraph, quantization_images, verdict_lines
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.run import verify_bundle
from deploykit.engine.audit import Audit, audit_engine
from deploykit.engine.build import BuiltEngine, current_gpu, engine_from_onnx
from deploykit.engine.flavour import installed_flavours, open_flavour
from deploykit.engine.passport import (
    CURRENT,
    SCHEMA,
    BuiltOn,
    Passport,
    parse_targets,
    reason,
    runs_on,
    size_options,
)
from deploykit.errors import BundleError, DependencyError, MissingError, ParityError, UsageError
from deploykit.inference.engines import Engine, engines_outdated
from deploykit.parity.budget import Budget
from deploykit.proof.images import ImageSample, require_labels
from deploykit.specs.engine import Flavour, Profile, TensorRT
from deploykit.specs.model import Precision
from deploykit.specs.value import Shown, choice
from deploykit.system.files import staged
from deploykit.system.gpu import Gpu, find_gpu
from deploykit.system.progress import Note, Progress, Step, silent
from deploykit.system.text import now

BUILD_PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32", "int8")
_TIMING_CACHE = "cache/timing.cache"


@dataclass(frozen=True)
class BuildRequest:
    """The arguments of :func:`deploykit.build_engine`.

    Attributes:
        flavour: None for the one that is installed and fits.
        targets: See :func:`deploykit.engine.passport.parse_targets`.
    """

    precision: Precision = "fp16"
    flavour: Flavour | None = None
    targets: tuple[str, ...] = ()
    profile: Profile = field(default_factory=Profile)
    workspace_bytes: int | None = None
    images: Path | None = None
    search_seconds: float = SEARCH_SECONDS
    diagnose: bool = True
    expected: Path | None = None
    budget: Budget | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The command and the options that the engine alone needs, as words of a shell."""
        flavour = () if self.flavour is None else ("--flavour", self.flavour)
        targets = (word for target in self.targets for word in ("--target", target))
        sizes = size_options(self.profile, self.workspace_bytes)
        return ("build-trt", *flavour, *targets, *sizes)


@dataclass(frozen=True, repr=False)
class BuildResult(Shown):
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
        """Whether what could be compared here passed."""
        return self.verification is None or self.verification.passed


def build_engine(
    bundle: Bundle, request: BuildRequest | None = None, progress: Progress = silent
) -> BuildResult:
    """Build an engine from a bundle's deploy graph, and verify it where there is a GPU.

    Raises:
        DeploykitError: See :func:`deploykit.build_engine`. ParityError also where the engine fails
            its comparison, or has no layer in FP16: it is kept in ``.failed``.
    """
    request = request or BuildRequest()
    choice(request.precision, BUILD_PRECISIONS, "precision for engines")
    if request.precision == "fp32" and (
        request.budget is not None or request.search_seconds != SEARCH_SECONDS
    ):
        raise UsageError(
            "--max-flips, --max-accuracy-drop and --search-seconds are for what is below FP32: no "
            "decision may change in it, and no node is searched for.",
            hint="Leave them out, or build --precision fp16 or int8.",
        )
    gpu = find_gpu()
    flavour = _choose_flavour(request, gpu, progress)
    targets = parse_targets(request.targets, flavour)
    if targets == (CURRENT,):
        current_gpu()  # or the FP16 graph would be made first, and in vain
    tensorrt = open_flavour(flavour)
    sample = None
    runs_here = gpu is not None and (targets == (CURRENT,) or runs_on(targets, gpu))
    if runs_here or request.images is not None or request.expected is not None:
        # The engine may be compared at the end: what is wrong with its images is said now.
        sample = _proof_sample(bundle, request)
        require_labels(request.budget, sample.expected, sample.source)
    before = bundle
    making = QuantizeRequest(
        request.precision,
        request.images,
        request.search_seconds,
        diagnose=request.diagnose,
        expected=request.expected,
        budget=request.budget,
        asked_by=request.words,
    )
    bundle, proof, tuning = proven_graph(bundle, making, progress)
    built = _build(bundle, proof.graph, request, tensorrt, targets, progress)
    passport = _passport(bundle, built, request, tensorrt, targets, proof)
    audit = None
    # Only the GPU that it is for loads it.
    if gpu and not reason(passport, tensorrt_version=tensorrt.version, gpu=gpu):
        audit = _audit(bundle, tensorrt, built, passport, gpu, progress)
    bundle, engine = publish_engine(bundle, passport, built.plan)
    verification = None
    if audit is not None:
        sample = sample or _proof_sample(bundle, request)
        verifying = VerifyRequest(engine=engine, sample=sample, budget=request.budget)
        try:
            verification = verify_bundle(bundle, verifying, progress)
        except MissingError as exc:
            progress(Note(f"built, but not verified here: {exc.message}"))
    if verification is not None and any(verdict.failed for verdict in verification.verdicts):
        raise _failed_engine(bundle, engine, passport, built.plan, verification, request, progress)
    bundle = open_bundle(bundle.folder)
    return BuildResult(
        *(bundle, engine, passport, tuning, audit, verification),
        outdated=engines_outdated(before, bundle),
    )


def _passport(
    bundle: Bundle,
    built: BuiltEngine,
    request: BuildRequest,
    tensorrt: TensorRT,
    targets: tuple[str, ...],
    proof: KeptVerdict,
) -> Passport:
    """Write down what an engine is.

    Raises:
        BundleError: It was built from another graph than the proof is about.
    """
    if built.graph_sha256 != proof.graph_sha256:
        raise BundleError(
            f"{proof.graph} changed while it was built: its SHA-256 was "
            f"{built.graph_sha256[:12]}..., that of the proven graph is "
            f"{proof.graph_sha256[:12]}...",
            hint="Run the command again.",
        )
    gpu, manifest = built.gpu, bundle.manifest
    return Passport(
        schema=SCHEMA,
        flavour=tensorrt.flavour,
        version=tensorrt.version,
        targets=targets,
        precision=request.precision,
        profile=request.profile,
        workspace_bytes=request.workspace_bytes,
        gpu=None
        if gpu is None
        else BuiltOn(name=gpu.name, compute_capability=gpu.compute_capability),
        inputs=built.inputs,
        outputs=built.outputs,
        kept=manifest.kept_in(proof.graph),
        deploy_graph=proof.graph,
        deploy_graph_sha256=built.graph_sha256,
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        engine_bytes=len(built.plan),
        build_seconds=round(built.seconds, 3),
        created=now(),
        proof=proof,
    )


def _audit(
    bundle: Bundle,
    tensorrt: TensorRT,
    built: BuiltEngine,
    passport: Passport,
    gpu: Gpu,
    progress: Progress,
) -> Audit | None:
    """Look at the precision of the engine's layers.

    Returns:
        None where this GPU does not load the engine, which may be for another.

    Raises:
        ParityError: An engine that is to compute in FP16 has no layer that does.
        MissingError: It was built for this very GPU, which does not load it.
    """
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
    if why := audit.reason(passport.precision):
        with staged(bundle.folder) as folder:
            write_engine(folder / "made", passport, built.plan)
            _, kept = kept_files(folder / "made", bundle.folder)
        raise ParityError(
            f"{passport.engine}: {why}. It is not in the bundle.\n{kept}",
            hint="Build it from the FP32 graph, which is what it computes: --precision fp32",
        )
    return audit


def _failed_engine(
    bundle: Bundle,
    engine: str,
    passport: Passport,
    plan: bytes,
    verification: Verification,
    request: BuildRequest,
    progress: Progress,
) -> ParityError:
    """Take an engine that failed out of its bundle, keep it elsewhere, and diagnose its graph.

    TensorRT hands out no tensor between nodes: the graph is diagnosed as it was proven.
    """
    (verdict,) = verification.verdicts
    graph, precision = passport.deploy_graph, request.precision
    made_from = CANONICAL_GRAPH if precision == "fp32" else bundle.deploy_graph("fp32")
    withdraw_engine(bundle, engine)
    drawn = {
        name: image
        for names, images in _proof_sample(bundle, request)
        for name, image in zip(names, images.copy(), strict=True)
    }
    with staged(bundle.folder) as folder:
        made = folder / "made"
        write_engine(made, passport, plan)
        for file in (graph, made_from):
            (made / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(bundle.folder / file, made / file)
        lines = failure_lines(
            made,
            bundle.folder,
            msgspec.structs.replace(
                verdict.candidate, graph=graph, runtime=PROOF_RUNTIMES[precision]
            ),
            made_from,
            np.stack([drawn[name] for name in verification.answers.paths]),
            verification.answers.reference,
            bundle.manifest.preprocessing,
            progress,
            found=verdict.measurement if verdict.exceeded else None,
            diagnose=request.diagnose,
        )
    first = f"{engine} does not give the checkpoint's answers, so it is not in the bundle."
    return ParityError(
        "\n".join([first, *verdict_lines(verdict), *lines]),
        hint="Build it with --precision fp32, or with another version of TensorRT.",
    )


def _proof_sample(bundle: Bundle, request: BuildRequest) -> ImageSample:
    """The photos for proofs; the proof tells what a search used."""
    precision = "fp16" if request.precision == "fp32" else request.precision
    return quantization_images(bundle, precision, request.images, silent, request.expected)[1]


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
        why = "for other GPUs" if gpu else "which needs no GPU to build"
        progress(Note(f"building with tensorrt_rtx, {why} (--flavour chooses)"))
        return "tensorrt_rtx"
    raise DependencyError(
        "TensorRT for RTX is not installed"
        + (", and without a GPU nothing else builds engines." if gpu is None else "."),
        hint='Install it: pip install "deploykit[rtx]"'
        + ('\nOr install TensorRT, for this GPU: pip install "deploykit[tensorrt]"' if gpu else ""),
    )


def _build(
    bundle: Bundle,
    graph: str,
    request: BuildRequest,
    tensorrt: TensorRT,
    targets: tuple[str, ...],
    progress: Progress,
) -> BuiltEngine:
    def on_step(phase: str, done: int, total: int) -> None:
        progress(Step("building", done, total, detail=phase.lower()))

    progress(Step("building"))
    return engine_from_onnx(
        tensorrt,
        bundle.checked(graph),
        profile=request.profile,
        targets=targets,
        workspace_bytes=request.workspace_bytes,
        timing_cache=bundle.folder / _TIMING_CACHE,
        on_step=on_step,
        on_cancel=lambda: progress(Note("stopping at TensorRT's next step")),
    )
