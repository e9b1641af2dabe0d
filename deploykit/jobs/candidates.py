"""Candidates: what of a bundle can run on what."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.bundle import Bundle
from deploykit.errors import BundleError, UsageError
from deploykit.jobs.engines import Engine, engines_of, is_flavour, named_engine, open_bundle_engine
from deploykit.jobs.sessions import open_bundle_graph
from deploykit.proofs import Proof
from deploykit.runtime.opener import RUNTIMES, precisions_of
from deploykit.session import Session
from deploykit.specs import PRECISIONS, Precision


@dataclass(frozen=True)
class Candidate:
    """One of a bundle's graphs or engines on a runtime.

    Attributes:
        file: Relative to the bundle: ``deploy/fp16.onnx``, ``engines/....engine``.
        runtime: What executes it.
        precision: The precision of its arithmetic.
    """

    file: str
    runtime: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.file} on {self.runtime}"


def all_candidates(bundle: Bundle) -> list[Candidate]:
    """Every engine, the newest first, and every deploy graph on every runtime that computes in it.

    Raises:
        BundleError: An engine's passport is missing or damaged.
    """
    engines = [engine_candidate(engine) for engine in engines_of(bundle)]
    graphs = [
        Candidate(graph, runtime, precision)
        for precision, graph in bundle.manifest.deploy.items()
        for runtime, able in RUNTIMES.items()
        if precision in able and not is_flavour(runtime)
    ]
    return [*engines, *graphs]


def engine_candidate(engine: Engine) -> Candidate:
    """An engine on its flavour of TensorRT."""
    return Candidate(engine.file, engine.passport.flavour, engine.passport.precision)


def named_candidates(
    bundle: Bundle, runtime: str | None, precision: Precision | None
) -> list[Candidate]:
    """What is meant by a runtime, a precision, or both; of engines the newest first.

    Raises:
        UsageError: There is no such runtime, or it does not compute in that precision.
        BundleError: The bundle has nothing of that kind.
    """
    able = PRECISIONS if runtime is None else precisions_of(runtime)
    if precision not in (None, *able):
        raise UsageError(
            f"{runtime} does not compute in {precision}; it does in {', '.join(able)}."
        )
    found = [
        candidate
        for candidate in all_candidates(bundle)
        if runtime in (None, candidate.runtime) and precision in (None, candidate.precision)
    ]
    if found:
        return found
    if runtime is not None and is_flavour(runtime):
        raise BundleError(
            f"Bundle {bundle.name} has no {precision or ''} engine for {runtime}.".replace(
                "  ", " "
            ),
            hint=f"Build one: deploykit build-trt --flavour {runtime}",
        )
    wanted = precision or " or ".join(able)
    have = ", ".join(bundle.manifest.deploy)
    raise BundleError(
        f"Bundle {bundle.name} has no {wanted} graph; it has {have}.",
        hint="deploykit build-trt makes the fp16 graph." if wanted == "fp16" else None,
    )


def open_candidate(
    bundle: Bundle, candidate: Candidate, *, threads: int | None = None, tf32: bool = False
) -> Session:
    """Open a candidate, once its hash has been checked.

    Raises:
        BundleError: Its file is missing or changed.
        MissingError: Its runtime's package or device is not here.
        DeploykitError: See :func:`deploykit.jobs.sessions.open_bundle_graph`.
    """
    if is_flavour(candidate.runtime):
        return open_bundle_engine(bundle, named_engine(bundle, candidate.file))
    return open_bundle_graph(
        bundle,
        candidate.file,
        runtime=candidate.runtime,
        precision=candidate.precision,
        threads=threads,
        tf32=tf32,
    )


def decisive_proofs(bundle: Bundle, candidate: Candidate) -> list[Proof]:
    """The executed proofs, without a decidable flip, of a candidate's file as it is now.

    The recorded golden answers are too few to decide by.
    """
    sha256 = bundle.manifest.files[candidate.file].sha256
    return [
        proof
        for proof in bundle.manifest.proofs
        if (proof.graph, proof.graph_sha256, proof.runtime)
        == (candidate.file, sha256, candidate.runtime)
        and (proof.kind, proof.measurement.flips) == ("executed", 0)
        and proof.reference_kind != "golden"
    ]
