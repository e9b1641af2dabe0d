"""The candidate that the user accepted from ``bench``: kept for a machine, and taken on it."""

from __future__ import annotations

from collections.abc import Container

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.folder import Bundle, require_unchanged
from deploykit.bundle.manifest import Manifest, read_manifest, update_manifest
from deploykit.inference.candidates import Candidate, this_machine
from deploykit.specs.model import Precision
from deploykit.system.progress import Note, Progress


def accepted_here(
    bundle: Bundle,
    precision: Precision | None,
    candidates: Container[Candidate],
    progress: Progress,
) -> Accepted | None:
    """What was accepted on this machine, if it is still what was measured.

    Args:
        bundle: The bundle.
        precision: What was asked for; None for any.
        candidates: What the bundle has.
        progress: Told why what was accepted is not taken.

    Returns:
        What was accepted; None where nothing was, or it cannot be tried.
    """
    kept = [each for each in bundle.manifest.accepted if precision in (None, each.precision)]
    if not kept:
        return None
    machine = this_machine()
    accepted = min(reversed(kept), key=lambda each: each.machine.distance_to(machine))
    record = bundle.manifest.files.get(accepted.file)
    if changes := accepted.machine.changes_to(machine):
        same = accepted.machine.hardware == machine.hardware
        where = "measured with other versions" if same else "accepted on another machine"
        reason = f"{where}: {'; '.join(changes)}"
    elif record is None or record.sha256 != accepted.sha256:
        reason = f"{accepted.file} is not the one that was measured"
    elif candidate_of(accepted) not in candidates:
        reason = "the bundle has it no longer, or it is damaged"
    else:
        return accepted
    tell_accepted(bundle, accepted, reason, progress)
    return None


def candidate_of(accepted: Accepted) -> Candidate:
    """What was accepted, as what is opened."""
    return Candidate(accepted.file, accepted.runtime, accepted.precision)


def tell_accepted(bundle: Bundle, accepted: Accepted, reason: str, progress: Progress) -> None:
    """Say that what was accepted is taken, or the reason why not; empty for none."""
    if reason:
        again = bundle.command("bench", "--accept")
        progress(Note(f"not taken: {accepted}: {reason}\nto choose again:\n{again}"))
        return
    within = f" ({accepted.budget})" if accepted.budget else ""
    progress(
        Note(
            f"taking {accepted}, accepted from bench on {accepted.created[:10]}: "
            f"{accepted.status}{within}, {accepted.images_per_second:.1f} images/s then"
        )
    )


def keep_accepted(bundle: Bundle, accepted: Accepted) -> None:
    """Put a choice into the manifest, in place of an earlier one for the same machine.

    Raises:
        BundleError: The bundle's file was changed meanwhile, or the bundle cannot be written.
    """

    def change(manifest: Manifest) -> Manifest:
        require_unchanged(bundle, manifest, accepted.file)
        return manifest.with_accepted(accepted)

    update_manifest(bundle.folder, change)


def forget_accepted(bundle: Bundle) -> Accepted | None:
    """Take this machine's choice out of the manifest, whatever was installed when it was made.

    Returns:
        What was accepted; None where nothing was.

    Raises:
        BundleError: The bundle cannot be written.
    """
    machine = this_machine()
    forgotten: list[Accepted] = []

    def change(manifest: Manifest) -> Manifest:
        here = (each for each in manifest.accepted if each.machine.hardware == machine.hardware)
        forgotten[:] = here
        return manifest.without_accepted(machine)

    now_there = read_manifest(bundle.folder)
    if change(now_there) != now_there:
        update_manifest(bundle.folder, change)
    return next(iter(forgotten), None)
