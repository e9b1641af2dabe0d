"""Engines: what was built, as text and as values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from deploykit.bundle.proofs import Proof
from deploykit.commands.build.run import BuildResult
from deploykit.commands.quantize.text import kept_text, not_taken_text, outdated_text, weakness_text
from deploykit.commands.verify.text import verdict_text, verification_text, verification_value
from deploykit.proof.text import flips_shown, photos_text, verdict_value

_SHOWN_NODES = 12


def build_text(result: BuildResult) -> str:
    """The FP32 nodes, the proof, the engine and where it runs."""
    passport = result.passport
    profile, proof = passport.profile, passport.proof
    lines = [
        *kept_text(passport.kept, result.tuning),
        f"graph    {passport.deploy_graph}: {_proof_text(proof) if proof else 'not proven'}",
        f"engine   {result.bundle.folder / result.engine} "
        f"({passport.engine_bytes / 1e6:.0f} MB, in {passport.build_seconds:.1f} s)",
        f"runs on  {passport.needs}, with {passport.flavour} "
        f"{passport.version}, {passport.precision}, batches of {profile.min_batch} to "
        f"{profile.max_batch} (best at {profile.opt_batch})",
    ]
    if result.audit is not None:
        counts = ", ".join(f"{n} in {name}" for name, n in result.audit.layers.most_common())
        lines.append(f"layers   {counts}")
    if proof is not None and proof.kind == "rehearsed" and not proof.decides:
        lines.append(f"WEAK     {weakness_text(proof)}")
    lines += outdated_text(result.outdated)
    if result.verification is not None:
        found = result.verification
        lines += (verification_text(found), *_not_taken_text(result), verdict_text(found.passed))
    else:
        lines.append(
            "It has not been run: on the machine with the GPU, run "
            f"deploykit verify --runtime {passport.flavour}"
        )
    return "\n".join(lines)


def _not_taken_text(result: BuildResult) -> Iterator[str]:
    """Where the engine itself was proven, and not so that anything goes by it."""
    for proof in result.bundle.manifest.proofs:
        if proof.graph == result.engine and proof.reference_kind != "golden" and not proof.decides:
            yield f"NOT TAKEN  {not_taken_text(proof)}"


def build_value(result: BuildResult) -> dict[str, Any]:
    """The passport, what it took, and what was verified."""
    tuning = result.tuning
    return {
        "bundle": str(result.bundle.folder),
        "engine": result.engine,
        "passport": msgspec.json.decode(msgspec.json.encode(result.passport)),
        "tuning": None
        if tuning is None
        else {
            "searched_photos": tuning.searched,
            "trials": tuning.trials,
            "minimal": tuning.minimal,
            "verdict": verdict_value(tuning.verdict),
        },
        "audit": None if result.audit is None else dict(result.audit.layers),
        "outdated": [engine.file for engine in result.outdated],
        "verification": None
        if result.verification is None
        else verification_value(result.verification),
    }


def _proof_text(proof: Proof) -> str:
    found = proof.measurement
    return (
        f"{proof.kind} on {photos_text(proof.photos)}, flips {flips_shown(proof)}, "
        f"error {found.max_relative_error:.1e} of the scale, |dp| "
        f"{found.max_probability_change:.1e}"
    )
