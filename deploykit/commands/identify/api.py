"""``deploykit.identify``: which architectures a checkpoint fits, from Python."""

from __future__ import annotations

from pathlib import Path

from deploykit.commands.identify.run import Identification, identify_checkpoint
from deploykit.commands.python import PathLike, verb
from deploykit.system.progress import Progress, silent


@verb
def identify(
    checkpoint: PathLike,
    *,
    timm: bool = False,
    trust_pickle: bool = False,
    progress: Progress = silent,
) -> Identification:
    """Tell which architectures a checkpoint fits, and why the closest others do not.

    Args:
        checkpoint: The weights' file.
        timm: Compare with every network of timm, which takes minutes.
        trust_pickle: Let the checkpoint run the code in it; only for files you made yourself.
        progress: Called as architectures are compared.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind, or holds no weights.
        DependencyError: torch is not installed; or timm, which was asked for.
    """
    return identify_checkpoint(
        Path(checkpoint), all_timm=timm, trust_pickle=trust_pickle, progress=progress
    )
