"""Inspect: what is in a bundle, an ONNX graph, an engine or a checkpoint; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from deploykit.bundle.folder import (
    GOLDEN,
    Bundle,
    default_artifacts,
    find_bundle,
    is_replaced,
    open_bundle,
)
from deploykit.bundle.manifest import MANIFEST_NAME
from deploykit.commands.inspect.bundle import BundleInspection, inspect_bundle
from deploykit.commands.inspect.engine import (
    ENGINE_ENDINGS,
    EngineInspection,
    inspect_engine,
    is_engine,
)
from deploykit.commands.inspect.graph import GraphInspection, inspect_graph
from deploykit.commands.python import BundleLike, PathLike
from deploykit.engine.passport import passport_path
from deploykit.errors import CheckpointError, InputError, UsageError
from deploykit.specs.value import Shown
from deploykit.system.deps import need
from deploykit.system.progress import Progress, silent
from deploykit.system.text import command_line

if TYPE_CHECKING:
    from deploykit.models.contents import Contents

_TAKEN = "inspect takes a bundle's name or folder, an ONNX graph, an engine and PyTorch weights."


@dataclass(frozen=True, repr=False)
class CheckpointInspection(Shown):
    """A checkpoint.

    Attributes:
        path: The file.
        bytes: Its size.
        contents: What is in it.
    """

    path: str
    bytes: int
    contents: Contents

    @property
    def sound(self) -> bool:
        """Whether its weights are finite."""
        return not self.contents.non_finite


Inspection: TypeAlias = BundleInspection | GraphInspection | EngineInspection | CheckpointInspection

_PASSPORT_ENDINGS = tuple(passport_path(Path(f"x{ending}")).name[1:] for ending in ENGINE_ENDINGS)


def inspect(
    what: BundleLike | None = None,
    *,
    trust_pickle: bool = False,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Inspection:
    """Look into a bundle or a file.

    Args:
        what: A bundle, its name, its folder or its ``.zip`` file; or an ONNX graph, an engine or a
            checkpoint. None for the one bundle there is, or the newest.
        trust_pickle: Run the code in a checkpoint; only for files you made yourself.
        artifacts: The folder of all bundles; None for ``artifacts``.
        progress: Called with a note when there was a bundle to choose.

    Returns:
        What was found. What is missing or changed is told by it, not raised; ``sound`` tells
        whether there is any of that.

    Raises:
        UsageError: Code is trusted of what is no checkpoint.
        InputError: There is nothing of that name; a bundle's manifest is damaged; or a file is, or
            is none of an ONNX graph, an engine, an engine's passport and a checkpoint.
        DependencyError: onnx, for a graph, or torch, for a checkpoint, is not installed.
    """
    if isinstance(what, Bundle):
        what = what.place
    path = Path(what or "")
    found: Inspection
    try:
        is_file = what is not None and path.is_file() and path.name != MANIFEST_NAME
    except OSError as exc:
        raise InputError(
            f"{path} cannot be read: {exc.strerror or exc}.",
            hint="Check that the file and the folders that it lies in may be read.",
        ) from exc
    if is_file and path.suffix.lower() == ".zip":
        found = inspect_bundle(open_bundle(path))
    elif is_file:
        found = _inspect_file(path, trust_pickle=trust_pickle)
    else:
        home = default_artifacts() if artifacts is None else Path(artifacts)
        found = inspect_bundle(_named_bundle(None if what is None else str(what), home, progress))
    if trust_pickle and not isinstance(found, CheckpointInspection):
        raise UsageError(
            "--trust-pickle is for a checkpoint; reading anything else runs no code.",
            hint="Leave out --trust-pickle.",
        )
    return found


def _named_bundle(what: str | None, artifacts: Path, progress: Progress) -> Bundle:
    path = Path(what or "")
    if path.name == MANIFEST_NAME and path.is_file():
        return open_bundle(path.parent)
    if what is not None and path.exists() and not (path.is_dir() or path.is_file()):
        raise InputError(f"{path} is a device or a pipe.", hint=_TAKEN)
    if what is not None and not (artifacts / what).exists() and not is_replaced(artifacts / what):
        if not path.exists() and not is_replaced(path):
            raise InputError(
                f"There is no file or folder {what}, and no bundle of that name in {artifacts}.",
                hint="Check the path, or say where bundles are with --artifacts.",
            )
        if path.exists() and not (path / MANIFEST_NAME).exists():
            hint = "Name a bundle's folder, an ONNX graph, an engine or a checkpoint."
            if inside := sorted(each.parent.name for each in path.glob(f"[!.]*/{MANIFEST_NAME}")):
                example = command_line(["deploykit", "inspect", str(path / inside[0])])
                hint = f"There are bundles in it: {', '.join(inside)}. Name one: {example}"
            raise InputError(
                f"The folder {path} is not a bundle: it has no {MANIFEST_NAME}.", hint=hint
            )
    return find_bundle(what, artifacts, progress)


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
    need("torch")
    from deploykit.models.contents import read_contents
    from deploykit.models.file_kinds import SAVE_WEIGHTS

    try:
        contents = read_contents(path, trust_pickle=trust_pickle)
    except CheckpointError as exc:
        hint = _TAKEN if exc.hint == SAVE_WEIGHTS else exc.hint
        raise CheckpointError(exc.message, hint=hint) from exc
    return CheckpointInspection(str(path), contents.bytes, contents)
