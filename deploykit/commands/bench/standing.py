"""Whether an option decides as the reference does: what is proven here, and what can be."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.bench.results import TORCH, Benchmark, Measured, Option, Standing
from deploykit.commands.verify.run import VerifyRequest, verify_bundle
from deploykit.errors import DeploykitError
from deploykit.inference.engines import is_flavour
from deploykit.proof.policy import Status, status, status_by
from deploykit.proof.reference import OpenReference, ReferenceRequest, open_reference
from deploykit.proof.verdict import kept_verdict
from deploykit.specs.session import SessionSpec
from deploykit.system.deps import installed_versions, runtime_version
from deploykit.system.progress import Note, Progress


class Stand(NamedTuple):
    """Where an option stands.

    Attributes:
        standing: In a word.
        proof: What shows it; None without.
        reasons: Why there is no better one.
        outdated: Whether the runtime's version is all that speaks against a proof that there is.
    """

    standing: Standing
    proof: KeptVerdict | None = None
    reasons: tuple[str, ...] = ()
    outdated: bool = False


def standing_of(
    bundle: Bundle, option: Option, spec: SessionSpec, versions: Mapping[str, str]
) -> Stand:
    """What the manifest has to say of an option, as its file is now, on this device.

    Args:
        bundle: The bundle.
        option: One of its own.
        spec: What really ran.
        versions: What is installed.
    """
    if option.runtime == TORCH:
        return Stand("reference")
    return _stand(status(bundle, option.candidate, spec.device, versions))


def _stand(known: Status) -> Stand:
    verdict = known.verdict
    return Stand(
        "flips" if known.word == "within budget" else known.word,
        known.proof,
        (known.reason,) if known.reason else (),
        outdated=known.word == "unproven"
        and verdict is not None
        and verdict.passed
        and not verdict.measurement.flips
        and verdict.runtime_version != runtime_version(verdict.runtime, installed_versions()),
    )


@dataclass(frozen=True)
class Photographs:
    """What is proven on.

    Attributes:
        folder: The photos.
        at_most: No more than so many, even over the classes.
    """

    folder: Path
    at_most: int


def with_proofs(
    bundle: Bundle, benchmark: Benchmark, photographs: Photographs, progress: Progress
) -> Benchmark:
    """Verify what would be recommended if it were proven, the fastest first, until one passes.

    What goes wrong with one is said of that one: what was measured stays.
    """
    benchmark = msgspec.structs.replace(benchmark, verified=True)
    if not benchmark.faster_unproven:
        return benchmark
    with ExitStack() as stack:
        try:
            reference = open_reference(bundle, ReferenceRequest(), progress)
        except DeploykitError as exc:
            return msgspec.structs.replace(benchmark, obstacle=exc.message)
        stack.enter_context(reference.session)
        if reference.reason is not None:
            how = "deploykit verify --arch NAME --ckpt FILE compares it"
            return msgspec.structs.replace(benchmark, obstacle=f"{reference.reason}: {how}")
        for measured in benchmark.faster_unproven:
            progress(Note(f"verifying {measured.option.name}, faster than what is proven"))
            stand = _verified(bundle, measured, reference, photographs, progress)
            judged = msgspec.structs.replace(measured, **stand._asdict())
            others = tuple(judged if each is measured else each for each in benchmark.options)
            benchmark = msgspec.structs.replace(benchmark, options=others)
            if stand.standing == "proven":
                break
    return benchmark


def _verified(
    bundle: Bundle,
    measured: Measured,
    reference: OpenReference,
    photographs: Photographs,
    progress: Progress,
) -> Stand:
    """Compare an option with the reference; the verdict counts, whether it can be kept or not."""
    option = measured.option
    is_engine = is_flavour(option.runtime)
    request = VerifyRequest(
        images=photographs.folder,
        max_images=photographs.at_most,
        runtime=None if is_engine else option.runtime,
        precision=None if is_engine else option.precision,
        engine=option.file if is_engine else None,
    )
    try:
        found = verify_bundle(bundle, request, progress, reference=reference)
        now = open_bundle(bundle.folder)
    except DeploykitError as exc:
        return Stand("unproven", reasons=(exc.message,))
    (verdict,) = found.verdicts
    if not verdict.passed:
        standing: Standing = "failed" if verdict.failed else "unproven"
        return Stand(standing, reasons=verdict.reasons)
    kept = standing_of(now, option, measured.spec, found.versions)
    if kept.proof is not None:
        return kept
    # The bundle cannot be written; the verdict counts all the same.
    proof = kept_verdict(
        verdict, bundle.manifest.files[option.file].sha256, reference, found.photos
    )
    return _stand(status_by([proof], option.candidate, measured.spec.device, found.versions))
