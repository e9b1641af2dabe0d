"""What a build leaves in a bundle: the engine, its passport, and the manifest that names both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploykit.bundle.folder import Bundle, open_bundle, require_unchanged
from deploykit.bundle.manifest import FileRecord, Manifest, record_file, update_manifest
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.engine.build import BuiltEngine
from deploykit.engine.passport import (
    SCHEMA,
    BuiltOn,
    Passport,
    engine_name,
    passport_path,
    write_passport,
)
from deploykit.errors import BundleError
from deploykit.specs.engine import Profile, TensorRT
from deploykit.specs.model import Precision
from deploykit.system.files import staged
from deploykit.system.text import now

ENGINES = "engines"


def passport_of(
    bundle: Bundle,
    built: BuiltEngine,
    *,
    tensorrt: TensorRT,
    precision: Precision,
    targets: tuple[str, ...],
    profile: Profile,
    workspace_bytes: int | None,
    proof: KeptVerdict,
) -> Passport:
    """Write down what an engine is.

    Args:
        bundle: The bundle that it was built from.
        built: The engine.
        tensorrt: What built it.
        precision: Of the deploy graph.
        targets: What it was built for.
        profile: The batch sizes.
        workspace_bytes: The most device memory that a layer may work in; None for all.
        proof: Of the deploy graph.

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
    gpu = built.gpu
    return Passport(
        schema=SCHEMA,
        flavour=tensorrt.flavour,
        version=tensorrt.version,
        targets=targets,
        gpu=None
        if gpu is None
        else BuiltOn(name=gpu.name, compute_capability=gpu.compute_capability),
        profile=profile,
        workspace_bytes=workspace_bytes,
        inputs=built.inputs,
        outputs=built.outputs,
        precision=precision,
        kept=bundle.manifest.kept_for_tensorrt
        if precision == "int8"
        else bundle.manifest.kept.get(precision, ()),
        deploy_graph=proof.graph,
        deploy_graph_sha256=built.graph_sha256,
        engine=engine_name(
            flavour=tensorrt.flavour,
            version=tensorrt.version,
            targets=targets,
            gpu=gpu,
            precision=precision,
            profile=profile,
            workspace_bytes=workspace_bytes,
        ),
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        engine_bytes=len(built.plan),
        build_seconds=round(built.seconds, 3),
        created=now(),
        proof=proof,
    )


def publish_engine(bundle: Bundle, passport: Passport, plan: bytes) -> tuple[Bundle, str]:
    """Put an engine and its passport into a bundle, both or neither.

    Returns:
        The bundle as it is now, and the engine's path in it.

    Raises:
        BundleError: The bundle has another deploy graph by now.
        OSError: The system fails to write them.
    """
    engine = f"{ENGINES}/{passport.engine}"
    _, passport_file = _pair(engine)
    with staged(bundle.folder) as folder:
        files = {engine: folder / "engine", passport_file: folder / "passport"}
        files[engine].write_bytes(plan)
        write_passport(files[passport_file], passport)
        records = {name: record_file(path) for name, path in files.items()}

        def change(manifest: Manifest) -> Manifest:
            require_unchanged(bundle, manifest, passport.deploy_graph)
            changed = _without_lost_engines(bundle.folder, manifest, engine, records)
            search = manifest.searches.get(passport.deploy_graph)
            searches = changed.searches | ({} if search is None else {engine: search})
            return msgspec.structs.replace(changed, searches=searches)

        update_manifest(bundle.folder, change, files)
    return open_bundle(bundle.folder), engine


def _without_lost_engines(
    folder: Path, manifest: Manifest, engine: str, records: Mapping[str, FileRecord]
) -> Manifest:
    """Add an engine, and forget those whose files are not there any more."""
    others = [name for name in manifest.engines if name != engine]
    there = [name for name in others if all((folder / each).is_file() for each in _pair(name))]
    lost = {each for name in others if name not in there for each in _pair(name)}
    return msgspec.structs.replace(
        manifest,
        engines=(*there, engine),
        files={name: r for name, r in manifest.files.items() if name not in lost} | dict(records),
        verdicts=tuple(each for each in manifest.verdicts if each.graph not in lost),
        searches={name: s for name, s in manifest.searches.items() if name not in lost | {engine}},
    )


def _pair(engine: str) -> tuple[str, str]:
    """An engine's file and its passport's."""
    return engine, passport_path(Path(engine)).as_posix()
