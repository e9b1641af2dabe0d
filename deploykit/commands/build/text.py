"""Engines: what was built, as text and as values."""

from __future__ import annotations

from typing import Any

import msgspec

from deploykit.commands.build.run import BuildResult
from deploykit.commands.quantize.text import kept_text, not_proven_text, outdated_text
from deploykit.commands.verify.text import verdict_text, verification_text, verification_value
from deploykit.proof.text import kept_verdict_text, verdict_value
from deploykit.system.gpu import EXPERIMENTAL


def build_text(result: BuildResult) -> str:
    """The FP32 nodes, the proof, the engine and where it runs."""
    passport = result.passport
    profile, proof = passport.profile, passport.proof
    lines = [
        *kept_text(passport.kept, result.tuning),
        f"graph    {passport.deploy_graph}: {kept_verdict_text(proof) if proof else 'not proven'}",
        f"engine   {result.bundle.folder / result.engine} "
        f"({passport.engine_bytes / 1e6:.0f} MB, in {passport.build_seconds:.1f} s)",
        f"runs on  {passport.needs}, with {passport.flavour} "
        f"{passport.version}, {passport.precision}, batches of {profile.min_batch} to "
        f"{profile.max_batch} (best at {profile.opt_batch})",
    ]
    if result.audit is not None:
        counts = ", ".join(f"{n} in {name}" for name, n in result.audit.layers.most_common())
        lines.append(f"layers   {counts}")
    if proof is not None and proof.kind == "rehearsed":
        lines += not_proven_text(result.bundle, [proof])
    lines += outdated_text(result.outdated)
    if result.verification is not None:
        found = result.verification
        engine = [each for each in result.bundle.manifest.verdicts if each.graph == result.engine]
        lines += (
            verification_text(found),
            *not_proven_text(result.bundle, (each for each in engine if not each.is_recorded)),
            verdict_text(found),
        )
    else:
        lines += (
            f"It has not been run; engines are {EXPERIMENTAL}. On the machine with the GPU:",
            result.bundle.command("verify", "--runtime", passport.flavour),
        )
    return "\n".join(lines)


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
            "searched_images": tuning.searched,
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
