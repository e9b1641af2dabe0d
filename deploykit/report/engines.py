"""Engines: what was built, as text and as values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from deploykit.engine.passport import how_to_build_again
from deploykit.jobs._indecision import proven_on, why_indecisive
from deploykit.jobs.build import BuildResult
from deploykit.jobs.candidates import how_to_prove
from deploykit.jobs.engines import Engine
from deploykit.jobs.searches import SearchedGraph
from deploykit.proofs import ENOUGH_PHOTOS, Proof
from deploykit.report.inspection import flips_shown
from deploykit.report.terminal import photos_text, verdict_text, verification_text
from deploykit.report.values import verdict_value, verification_value
from deploykit.specs import KeptNode, counted

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


def weakness_text(proof: Proof) -> str:
    """What a rehearsal that decides nothing is worth, and what to do."""
    on_gpu = "deploykit verify on the GPU shows what the engine does"
    if not proof.is_vague:
        changed = counted(proof.measurement.flips, "changed decision")
        return f"{proof.graph}: its rehearsal has {changed}; {on_gpu}"
    return (
        f"{proof.graph}: its rehearsal is on {proven_on(proof)}, too few for a precision below "
        f"FP32; {on_gpu}, on {ENOUGH_PHOTOS} photos or more; or make the graph anew from "
        f"{2 * ENOUGH_PHOTOS} different ones: "
        f"deploykit build-trt --precision {proof.precision} --images DIR"
    )


def not_taken_text(proof: Proof) -> str:
    """Why ``predict`` leaves what was just proven alone, and what to do."""
    why = why_indecisive(proof, how_to_prove(proof.runtime, proof.precision))
    what = f"{proof.graph} on {proof.runtime}"
    return f"{what} by `predict`, nor recommended by `bench`: {why}"


def outdated_text(engines: Sequence[Engine]) -> list[str]:
    """A line for each engine that a new graph has made useless, with the command."""
    return [
        f"OUTDATED {engine.file} was built from an earlier {engine.passport.deploy_graph} and runs "
        f"no longer: {how_to_build_again(engine.passport)}"
        for engine in engines
    ]


def _not_taken_text(result: BuildResult) -> Iterator[str]:
    """Where the engine itself was proven, and not so that anything goes by it."""
    for proof in result.bundle.manifest.proofs:
        if proof.graph == result.engine and proof.reference_kind != "golden" and not proof.decides:
            yield f"NOT TAKEN  {not_taken_text(proof)}"


def kept_text(kept: tuple[KeptNode, ...], search: SearchedGraph | None) -> list[str]:
    """The nodes that stay in FP32, a line each, with where they are and why."""
    lines = [
        f"FP32     {node.node} ({node.operator}{f' of {node.module}' if node.module else ''}): "
        f"{node.reason}"
        for node in kept[:_SHOWN_NODES]
    ]
    if len(kept) > _SHOWN_NODES:
        lines.append(f"         ... and {len(kept) - _SHOWN_NODES} more nodes")
    if search is not None and kept:
        verdict = "none of them can be spared" if search.minimal else "perhaps not all are needed"
        sets = "set" if search.trials == 1 else "sets"
        lines.append(f"         {verdict}: {search.trials} {sets} tried")
    return lines


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
