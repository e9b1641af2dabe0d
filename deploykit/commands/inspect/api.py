"""``deploykit.inspect``: what is in a bundle, a graph, an engine or a checkpoint, from Python."""

from __future__ import annotations

import os

from deploykit.bundle.folder import Bundle, default_artifacts
from deploykit.commands.inspect.results import Inspection
from deploykit.commands.inspect.run import inspect_path
from deploykit.commands.python import BundleLike, PathLike, optional_path, verb
from deploykit.system.progress import Progress, silent


@verb
def inspect(
    what: BundleLike | None = None,
    *,
    trust_pickle: bool = False,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Inspection:
    """Tell what is in a bundle or a file, and whether it is whole; nothing is changed.

    Args:
        what: What :func:`deploykit.export` returned, a bundle's name or folder; or an ONNX graph,
            an engine or a checkpoint. None for the one bundle there is, or the newest.
        trust_pickle: Let a checkpoint run the code in it; only for files you made yourself.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with a note when there was a bundle to choose.

    Returns:
        What was found; ``sound`` tells whether nothing is missing or changed.

    Raises:
        InputError: There is nothing of that name, or it cannot be read.
        DependencyError: onnx, for a graph, or torch, for a checkpoint, is not installed.
    """
    named = what.folder if isinstance(what, Bundle) else what
    return inspect_path(
        None if named is None else os.fspath(named),
        optional_path(artifacts) or default_artifacts(),
        progress,
        trust_pickle=trust_pickle,
    )
