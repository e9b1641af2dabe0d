"""Why a proof that passed is not one to go by unasked."""

from __future__ import annotations

from collections.abc import Callable

from deploykit.bundle.folder import Bundle
from deploykit.bundle.proofs import ENOUGH_PHOTOS, Proof
from deploykit.errors import BundleError, DeviceError, GraphError
from deploykit.inference.candidates import Candidate
from deploykit.inference.engines import (
    is_flavour,
)
from deploykit.proof.ledger import refutation_words, refutations_of
from deploykit.specs.precision import Precision
from deploykit.specs.session import Session
from deploykit.system.gpu import need_gpu
from deploykit.system.text import counted


def why_indecisive(proof: Proof, how: str) -> str:
    """Why ``auto`` does not go by a proof that does not decide, and what to do.

    Args:
        proof: By another reference than the recorded golden answers.
        how: The command that proves the same anew.

    Returns:
        A clause, without a full stop.
    """
    flips = proof.measurement.flips
    changed = counted(flips, "changed decision")
    if flips and not proof.is_vague:
        return (
            f"its proof has {changed}; name it with --runtime {proof.runtime} --precision "
            f"{proof.precision} to have it"
        )
    where = f"on {proven_on(proof)}{f', with {changed}' if flips else ''}"
    return (
        f"its proof is {where}, too few for a precision below FP32: {how} --images DIR decides on "
        f"{ENOUGH_PHOTOS} or more that had no part in making it"
    )


def proven_on(proof: Proof) -> str:
    """``22 photos, 3 of which decide nothing``."""
    if proof.photos.kind != "photos":
        return f"{proof.photos.kind} images, which are no sample of photos"
    words = counted(proof.measurement.distinct, "photo")
    if proof.measurement.undecidable:
        words += f", {proof.measurement.undecidable} of which decide nothing"
    if proof.searched:
        words += f", {proof.searched} of which had a part in making it"
    return words


def executed_proofs(bundle: Bundle, candidate: Candidate) -> list[Proof]:
    """The executed proofs of a candidate's file as it is now that nothing has refuted since.

    The recorded golden answers are too few to decide by.
    """
    sha256 = bundle.manifest.files[candidate.file].sha256
    return [
        proof
        for proof in bundle.manifest.proofs
        if (proof.graph, proof.graph_sha256, proof.runtime, proof.precision)
        == (candidate.file, sha256, candidate.runtime, candidate.precision)
        and proof.kind == "executed"
        and proof.reference_kind != "golden"
        and not any(each.refutes(proof) for each in bundle.manifest.refutations)
    ]


def decisive_proofs(bundle: Bundle, candidate: Candidate) -> list[Proof]:
    """Those of :func:`executed_proofs` that are without a decidable flip, on photos enough."""
    return [proof for proof in executed_proofs(bundle, candidate) if proof.decides]


def open_proven(
    bundle: Bundle, candidate: Candidate, open_it: Callable[[Bundle, Candidate], Session]
) -> tuple[Session | None, str]:
    """Open a candidate if it is proven on this very device: another GPU has other kernels.

    Args:
        bundle: The bundle.
        candidate: One of its own.
        open_it: Opens it.

    Returns:
        The session, or why there is none; an engine that is damaged is a reason as well.

    Raises:
        MissingError: Its runtime's package or device is not here.
        InputError: It is a graph, and damaged.
    """
    proofs = decisive_proofs(bundle, candidate)
    if not proofs:
        return None, why_unproven(bundle, candidate)
    try:
        session = open_it(bundle, candidate)
    except (BundleError, GraphError) as exc:
        if not is_flavour(candidate.runtime):
            raise
        return None, exc.message
    if any(proof.device == session.spec.device for proof in proofs):
        return session, ""
    session.close()
    return None, f"it is proven, but not on {session.spec.device}"


def why_unproven(bundle: Bundle, candidate: Candidate) -> str:
    """Why ``auto`` does not take what no proof of decides, and what to do."""
    if is_flavour(candidate.runtime):
        try:
            need_gpu()
        except DeviceError as exc:
            return exc.message  # without one a proof would not help
    how = how_to_prove(candidate.runtime, candidate.precision)
    known = (bundle.manifest, candidate.file, candidate.runtime, candidate.precision)
    if refuted := refutations_of(*known):
        return f"{refutation_words(refuted[-1])}; {how} with those photos among others decides"
    proofs = executed_proofs(bundle, candidate)
    if proofs:
        return why_indecisive(proofs[-1], how)
    if is_flavour(candidate.runtime):
        return f"it is not proven on a GPU yet: {how}"
    if _gives_golden_answers(bundle, candidate):
        return f"it gives the recorded golden answers, and nothing shows more: {how} --images DIR"
    return "it is not proven"


def _gives_golden_answers(bundle: Bundle, candidate: Candidate) -> bool:
    """Whether its self-test is all that there is."""
    sha256 = bundle.manifest.files[candidate.file].sha256
    return any(
        (proof.graph, proof.graph_sha256, proof.runtime, proof.precision, proof.reference_kind)
        == (candidate.file, sha256, candidate.runtime, candidate.precision, "golden")
        for proof in bundle.manifest.proofs
    )


def how_to_prove(runtime: str, precision: Precision) -> str:
    """The command that proves what a runtime makes of a precision."""
    if is_flavour(runtime):
        return how_to_prove_engines(runtime)
    return f"deploykit verify --runtime {runtime} --precision {precision}"


def how_to_prove_engines(flavour: str) -> str:
    """The command that proves the engines of a flavour of TensorRT."""
    return f"deploykit verify --runtime {flavour}"
