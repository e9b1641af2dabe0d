"""What a build leaves in a bundle: the engine, its passport, and the manifest that names both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploykit.bundle.folder import Bundle, open_bundle, require_unchanged
from deploykit.bundle.manifest import FileRecord, Manifest, record_file, update_manifest
from deploykit.engine.passport import Passport, passport_path, write_passport
from deploykit.system.files import staged

ENGINES = "engines"


def publish_engine(bundle: Bundle, passport: Passport, plan: bytes) -> tuple[Bundle, str]:
    """Put an engine and its passport into a bundle, both or neither.

    Returns:
        The bundle as it is now, and the engine's path in it.

    Raises:
        BundleError: The bundle has another deploy graph by now, or cannot be changed.
        OSError: The system fails to write them.
    """
    engine = f"{ENGINES}/{passport.engine}"
    with staged(bundle.folder) as folder:
        files = write_engine(folder, passport, plan)
        records = {name: record_file(path) for name, path in files.items()}

        def change(manifest: Manifest) -> Manifest:
            require_unchanged(bundle, manifest, passport.deploy_graph)
            changed = _with_engines(bundle.folder, manifest, engine, records)
            search = manifest.searches.get(passport.deploy_graph)
            searches = changed.searches | ({} if search is None else {engine: search})
            return msgspec.structs.replace(
                changed, engines=(*changed.engines, engine), searches=searches
            )

        update_manifest(bundle.folder, change, files)
    return open_bundle(bundle.folder), engine


def withdraw_engine(bundle: Bundle, engine: str) -> None:
    """Take an engine and its passport out of a bundle.

    Raises:
        BundleError: The manifest cannot be changed.
    """
    update_manifest(
        bundle.folder,
        lambda manifest: _with_engines(bundle.folder, manifest, engine, {}),
        remove=_pair(engine),
    )


def write_engine(folder: Path, passport: Passport, plan: bytes) -> dict[str, Path]:
    """Write an engine and its passport where a bundle has them; by the names there, the files."""
    engine, beside = _pair(f"{ENGINES}/{passport.engine}")
    (folder / ENGINES).mkdir(parents=True, exist_ok=True)
    (folder / engine).write_bytes(plan)
    write_passport(folder / beside, passport)
    return {engine: folder / engine, beside: folder / beside}


def _with_engines(
    folder: Path, manifest: Manifest, engine: str, records: Mapping[str, FileRecord]
) -> Manifest:
    """Forget an engine, and those whose files are not there any more; add records of files."""
    there = [
        name
        for name in manifest.engines
        if name != engine and all((folder / each).is_file() for each in _pair(name))
    ]
    lost = {each for name in manifest.engines if name not in there for each in _pair(name)}
    # An engine that is built again keeps its verdicts: they tell of which file they are.
    forgotten = lost - set(records)
    return msgspec.structs.replace(
        manifest,
        engines=tuple(there),
        files={name: r for name, r in manifest.files.items() if name not in lost} | dict(records),
        verdicts=tuple(each for each in manifest.verdicts if each.graph not in forgotten),
        searches={name: s for name, s in manifest.searches.items() if name not in lost},
    )


def _pair(engine: str) -> tuple[str, str]:
    """An engine's file and its passport's."""
    return engine, passport_path(Path(engine)).as_posix()
