"""What counts as proven: the one answer that everybody asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from deploykit.bundle.embeddings import KeptSimilarity
from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import Manifest
from deploykit.bundle.verdicts import ImageKind, ImageSet, KeptVerdict
from deploykit.inference.candidates import Candidate
from deploykit.parity.budget import Budget
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import MIN_IMAGES, tolerance_for
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import SessionSpec
from deploykit.system.deps import installed_versions, runtime_version
from deploykit.system.text import counted, visible

#: Golden images are few, come near other decisions and have no labels: no rate of theirs is held
#: against a budget. A graph that may change decisions must keep half of them to pass a self-test.
_ON_GOLDEN = Budget(max_flip_rate=0.5)

#: What one image of a kind is called.
IMAGE_NAMES: dict[ImageKind, str] = {
    "photos": "photo",
    "golden": "golden image",
    "generated": "generated image",
}

StatusWord: TypeAlias = Literal["proven", "within budget", "failed", "unproven"]
_BEST_FIRST: tuple[StatusWord, ...] = ("proven", "within budget", "failed", "unproven")


class Status(NamedTuple):
    """Whether a candidate may be trusted.

    Attributes:
        word: ``proven``: it passed without a flip, executed on this device by the installed version
            of its runtime, below FP32 on photos enough. ``within budget``: the same, with flips
            that its tolerance allows, or within what the user allows. ``failed``: it broke its
            tolerance here. ``unproven``: else.
        verdict: The kept verdict that shows it; None where nothing is known here.
        reason: Why it is not proven; a clause without a full stop, empty where it is proven.
        command: What proves it, or accepts it within its budget, for a shell; empty where nothing
            does.
    """

    word: StatusWord
    verdict: KeptVerdict | None = None
    reason: str = ""
    command: str = ""

    @property
    def why(self) -> str:
        """The reason, and the command on a line of its own: text for a terminal."""
        reason = visible(self.reason)
        does = "accepts" if self.word == "within budget" else "compares"
        return f"{reason}; this {does} it:\n{self.command}" if self.command else reason

    @property
    def proof(self) -> KeptVerdict | None:
        """The verdict, where it passed and counts."""
        return self.verdict if self.word in ("proven", "within budget") else None

    def is_within(self, budget: Budget | None) -> bool:
        """Whether it passed, and is proven or changes no more than somebody allows.

        Args:
            budget: What is allowed; None for what the precision allows.
        """
        proof = self.proof
        if proof is None or self.word == "proven":
            return proof is not None
        return not tolerance_for(proof.precision, budget).reasons(proof.measurement)


def status(
    bundle: Bundle,
    candidate: Candidate,
    device: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> Status:
    """Whether a candidate is proven to decide as its reference does.

    Args:
        bundle: The bundle.
        candidate: One of its graphs or engines, on a runtime.
        device: The device that it runs on, as its session tells it: another one has other kernels.
            None for the device with the best answer, where none is open yet.
        versions: What is installed; None to look.
    """
    sha256 = bundle.manifest.files[candidate.file].sha256
    known = [each for each in bundle.manifest.verdicts if each.graph_sha256 == sha256]
    return status_by(bundle, known, candidate, device, versions)


def status_of(bundle: Bundle, verdict: KeptVerdict) -> Status:
    """The status, on its own device, of the candidate that a kept verdict is about."""
    candidate = Candidate(verdict.graph, verdict.runtime, verdict.precision)
    return status(bundle, candidate, verdict.device)


def has_run(bundle: Bundle, candidate: Candidate, device: str) -> bool:
    """Whether a candidate was ever compared on a device by the installed version of its runtime.

    A self-test is enough.
    """
    key = bundle.manifest.key_of(candidate.file, candidate.runtime, candidate.precision, device)
    installed = runtime_version(candidate.runtime, installed_versions())
    return any(
        each.key == key and each.runtime_version == installed for each in bundle.manifest.verdicts
    )


def similarity_of_run(bundle: Bundle, spec: SessionSpec) -> KeptSimilarity | None:
    """How near a session's embeddings are to the trained network's, as far as that counts.

    It was measured on the graph as it is now, on this device and by the installed version of the
    runtime. Of a session in TF32 only a failure counts.

    Args:
        bundle: The bundle.
        spec: Of the session.

    Returns:
        What is kept; None where nothing counts, or the session gives no embeddings.
    """
    record = bundle.manifest.embeddings
    if record is None or spec.graph != record.graph:
        return None
    key = bundle.manifest.key_of(spec.graph, spec.runtime, spec.precision, spec.device)
    found = record.similarity_on(key, runtime_version(spec.runtime, installed_versions()))
    return None if found and found.similarity.passed and spec.tf32 else found


def status_by(
    bundle: Bundle,
    verdicts: Iterable[KeptVerdict],
    candidate: Candidate,
    device: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> Status:
    """The same by verdicts on a candidate's file that no bundle has kept yet."""
    kind = candidate.runtime, candidate.precision
    known = [each for each in verdicts if (each.runtime, each.precision) == kind]
    if versions is None:
        versions = installed_versions()
    installed = runtime_version(candidate.runtime, versions)
    on_device: dict[str, list[KeptVerdict]] = {}
    for each in known:
        on_device.setdefault(each.device, []).append(each)
    if device is not None:
        here = on_device.pop(device, [])
        proven = [
            where
            for where, verdicts in on_device.items()
            if any(each.passed and not each.is_recorded for each in verdicts)
        ]
        if proven and not here:
            how = how_to_prove(bundle, candidate.runtime, candidate.precision)
            reason = f"it is proven on {', '.join(proven)}, not on {device}"
            return Status("unproven", None, reason, how)
        return _on_device(bundle, here, candidate, installed)
    found = [_on_device(bundle, known, candidate, installed) for known in on_device.values()]
    return min(
        found or [_on_device(bundle, [], candidate, installed)],
        key=lambda each: _BEST_FIRST.index(each.word),
    )


def _on_device(
    bundle: Bundle, known: list[KeptVerdict], candidate: Candidate, installed: str
) -> Status:
    """The status by what is known of a candidate on one device."""
    how = how_to_prove(bundle, candidate.runtime, candidate.precision)
    current = [each for each in known if each.runtime_version == installed]
    for failed in current:
        if not failed.passed:
            return Status("failed", failed, _failure(failed), how)
    proofs = [each for each in current if not each.is_recorded]
    if proofs:
        return _by_proof(bundle, proofs[-1], candidate, how)
    if older := [each for each in known if not each.is_recorded]:
        verdict = older[-1]
        then = verdict.runtime_version or "an unknown version"
        passed = "passed" if verdict.passed else "failed"
        return Status(
            "unproven",
            verdict,
            f"it {passed} with {candidate.runtime} {then}, and {installed or 'another version'} is "
            "installed",
            how,
        )
    if current:
        return Status(
            "unproven",
            current[-1],
            "it gives the recorded golden answers, and nothing shows more",
            how,
        )
    where = " on a GPU" if is_flavour(candidate.runtime) else ""
    return Status("unproven", None, f"it is not proven{where}", how)


def _by_proof(bundle: Bundle, proof: KeptVerdict, candidate: Candidate, how: str) -> Status:
    if proof.kind == "rehearsed" and candidate.runtime != REHEARSAL:
        return Status("unproven", proof, "it was rehearsed, and never executed", how)
    if too_few := too_few_images(proof.precision, proof.measurement, proof.images):
        return Status("unproven", proof, too_few, how)
    # FP32 allows no flip, whatever a manifest that was edited says of it.
    if reasons := tolerance_for(proof.precision, proof.budget).reasons(proof.measurement):
        reason = f"its verdict contradicts itself: it is kept as passed, but {reasons[0]}"
        return Status("unproven", proof, reason, how)
    found = proof.measurement
    beyond = tolerance_for(proof.precision).exceeded(found)
    if not (found.flips or beyond):
        return Status("proven", proof)
    changes = f"it changes {counted(found.flips, 'decision')} of {found.decidable}"
    if beyond and not found.flips:
        changes = f"it changes no decision, but {beyond[0]}"
    takes = f"--runtime {proof.runtime} --precision {proof.precision} takes it"
    if not beyond:
        return Status("within budget", proof, f"{changes}, which its tolerance allows; {takes}")
    options = () if proof.budget is None else proof.budget.options
    # bench times what computes for users, and a rehearsal does not.
    is_benched = candidate.runtime != REHEARSAL
    return Status(
        "within budget",
        proof,
        f"{changes}, within the budget that it was given ({proof.budget}); {takes}",
        bundle.command("bench", "--accept", *options) if is_benched else "",
    )


def too_few_images(precision: Precision, found: Measurement, images: ImageSet) -> str:
    """Why a proof below FP32 is on too few photos to count; empty where it is not.

    FP32 gives the checkpoint's numbers but for rounding, which any image shows. What a lower
    precision does to decisions only photos show.

    Args:
        precision: The candidate's.
        found: What was measured of it.
        images: On which images.
    """
    # So many without a flip have that bound; with flips that a budget allows it may be above.
    if precision == "fp32" or (found.flip_rate_bound is not None and found.decidable >= MIN_IMAGES):
        return ""
    if images.kind != "photos":
        on = f"{images.kind} images, which are no sample of photos"
    else:
        on = counted(images.count, "photo")
        if found.undecidable:
            on += f", {found.undecidable} of them undecidable"
    changed = f", with {counted(found.flips, 'changed decision')}" if found.flips else ""
    return f"its proof is on {on}{changed}; below FP32 {MIN_IMAGES} photos are the least"


def budgets_of(manifest: Manifest, files: Iterable[str], kind: ImageKind) -> dict[str, Budget]:
    """By what graphs and engines are judged that were made within a budget, by the file.

    Args:
        manifest: The bundle's.
        files: Some of its graphs and engines.
        kind: Of the images that they are judged on.
    """
    made = {file: manifest.searches[file].budget for file in files if file in manifest.searches}
    golden = kind == "golden"
    return {file: _ON_GOLDEN if golden else each for file, each in made.items() if each}


def _failure(failed: KeptVerdict) -> str:
    where = f" of {failed.images.source}" if failed.images.source else ""
    return (
        f"it failed on {counted(failed.among, IMAGE_NAMES[failed.images.kind])}{where} on "
        f"{failed.created[:10]} ({'; '.join(failed.reasons)}); only as many or more change that"
    )


def how_to_prove(bundle: Bundle, runtime: str, precision: Precision, *options: str) -> str:
    """The command that proves what a runtime makes of a bundle's precision.

    Below FP32 only photos show that, and the command asks for them.
    """
    option = () if is_flavour(runtime) else ("--precision", precision)
    photos = () if precision == "fp32" else ("--images", "DIR")
    return bundle.command("verify", "--runtime", runtime, *option, *photos, *options)
