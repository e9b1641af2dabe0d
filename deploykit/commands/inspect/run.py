"""Inspect: what is in a bundle, an ONNX graph, an engine or a checkpoint; nothing is changed."""

from __future__ import annotations

from pathlib import Path

from deploykit.bundle.folder import GOLDEN, find_bundle, open_bundle
from deploykit.bundle.manifest import MANIFEST_NAME
from deploykit.commands.inspect.bundle import inspect_bundle
from deploykit.commands.inspect.checkpoint import inspect_checkpoint
from deploykit.commands.inspect.engine import ENGINE_ENDINGS, inspect_engine, is_engine
from deploykit.commands.inspect.graph import inspect_graph
from deploykit.commands.inspect.results import (
    CheckpointInspection,
    EngineInspection,
    GraphInspection,
    Inspection,
)
from deploykit.engine.passport import passport_path
from deploykit.errors import InputError, UsageError
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import command_line

_PASSPORT_ENDINGS = tuple(passport_path(Path(f"x{ending}")).name[1:] for ending in ENGINE_ENDINGS)


def inspect_path(
    what: str | None, artifacts: Path, progress: Progress = silent, *, trust_pickle: bool = False
) -> Inspection:
    """Look into a bundle or a file.

    Args:
        what: A file; or a bundle's name or folder; None for the one bundle there is, or the newest.
        artifacts: The home of bundles.
        progress: Called with a note when there was a bundle to choose.
        trust_pickle: Whether reading a checkpoint may run the code in it.

    Returns:
        What was found. What is missing or changed in a bundle is told by it, not raised.

    Raises:
        UsageError: Code is trusted of what is no checkpoint.
        InputError: There is nothing of that name; a bundle's manifest is damaged; or a file is, or
            is none of an ONNX graph, an engine, an engine's passport and a checkpoint.
        DependencyError: onnx, for a graph, or torch, for a checkpoint, is not installed.
    """
    found = _inspect(what, artifacts, progress, trust_pickle=trust_pickle)
    if trust_pickle and not isinstance(found, CheckpointInspection):
        raise UsageError(
            "--trust-pickle is for a checkpoint; reading anything else runs no code.",
            hint="Leave out --trust-pickle.",
        )
    return found


def _inspect(
    what: str | None, artifacts: Path, progress: Progress, *, trust_pickle: bool
) -> Inspection:
    path = Path(what or "")
    if what is not None and path.is_file():
        if path.name == MANIFEST_NAME:
            return inspect_bundle(open_bundle(path.parent))
        return _inspect_file(path, trust_pickle=trust_pickle)
    if what is not None and not (artifacts / what).exists():
        if not path.exists():
            raise InputError(
                f"There is no file or folder {what}, and no bundle of that name in {artifacts}.",
                hint="Check the path, or say where bundles are with --artifacts.",
            )
        _check_is_bundle(path)
    bundle, note = find_bundle(what, artifacts)
    if note:
        progress(Note(note))
    return inspect_bundle(bundle)


def _check_is_bundle(folder: Path) -> None:
    """Refuse a folder that is no bundle, with the bundles that it may hold."""
    if (folder / MANIFEST_NAME).exists():
        return
    hint = "Name a bundle's folder, an ONNX graph, an engine or a checkpoint."
    if inside := sorted(path.parent.name for path in folder.glob(f"[!.]*/{MANIFEST_NAME}")):
        example = command_line(["deploykit", "inspect", str(folder / inside[0])])
        hint = f"There are bundles in it: {', '.join(inside)}. Name one: {example}"
    raise InputError(f"The folder {folder} is not a bundle: it has no {MANIFEST_NAME}.", hint=hint)


def _inspect_file(
    path: Path, *, trust_pickle: bool
) -> GraphInspection | EngineInspection | CheckpointInspection:
    """Look into a file: its kind is told by its content, a graph's by its ending."""
    if path.name.endswith(_PASSPORT_ENDINGS):
        return inspect_engine(path.with_suffix(""))
    if path.name == GOLDEN:
        inspect_bundle = command_line(["deploykit", "inspect", str(path.parent)])
        raise InputError(
            f"{path} holds a bundle's golden images and answers.",
            hint=f"Inspect the bundle: {inspect_bundle}",
        )
    if is_engine(path):
        return inspect_engine(path)
    if path.suffix.lower() == ".onnx":
        return inspect_graph(path)
    return inspect_checkpoint(path, trust_pickle=trust_pickle)
