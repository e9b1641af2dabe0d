"""What is in a bundle's folder, and changes to it behind its back."""

from pathlib import Path

import msgspec

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.bundle.manifest import Manifest, record_file, update_manifest
from deploykit.bundle.verdicts import KeptVerdict


def contents(bundle: Bundle) -> dict[str, bytes]:
    """Every file of a bundle's folder, hidden ones too, but for the manifest's lock."""
    return {
        path.relative_to(bundle.folder).as_posix(): path.read_bytes()
        for path in Path(bundle.folder).rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def edited(bundle: Bundle, **fields: object) -> Bundle:
    """The bundle with other fields in its manifest."""
    update_manifest(bundle.folder, lambda manifest: msgspec.structs.replace(manifest, **fields))
    return open_bundle(bundle.folder)


def acknowledged(bundle: Bundle, file: str) -> Bundle:
    """The bundle whose manifest calls a file that was changed its own."""
    files = {**bundle.manifest.files, file: record_file(bundle.folder / file)}
    return edited(bundle, files=files)


def kept(bundle: Bundle | Manifest, graph: str, runtime: str, device: str) -> KeptVerdict | None:
    """The last verdict on a graph as it is now, on a runtime and a device; None without one."""
    manifest = bundle.manifest if isinstance(bundle, Bundle) else bundle
    key = (manifest.files[graph].sha256, runtime, device)
    found = [
        each for each in manifest.verdicts if (each.graph_sha256, each.runtime, each.device) == key
    ]
    return found[-1] if found else None
