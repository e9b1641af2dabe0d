"""What a checkpoint tells, without any of its code being run unless it is trusted."""

from __future__ import annotations

from pathlib import Path

from deploykit.commands.inspect.results import CheckpointInspection
from deploykit.errors import CheckpointError
from deploykit.system.deps import need

_CONTAINERS = {
    "zip": "torch.save",
    "legacy": "torch.save, from before torch 1.6",
    "safetensors": "safetensors",
}
_TAKEN = "inspect takes a bundle's name or folder, an ONNX graph, an engine and PyTorch weights."


def inspect_checkpoint(path: Path, *, trust_pickle: bool = False) -> CheckpointInspection:
    """Look into a checkpoint.

    Args:
        path: The file.
        trust_pickle: Whether reading it may run the code in it.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind; asks for code; or holds no
            weights.
        DependencyError: torch is not installed, or safetensors for such a file.
    """
    need("torch")
    from deploykit.models.contents import read_contents
    from deploykit.models.file_kinds import SAVE_WEIGHTS

    try:
        contents = read_contents(path, trust_pickle=trust_pickle)
    except CheckpointError as exc:
        raise CheckpointError(
            exc.message, hint=_TAKEN if exc.hint == SAVE_WEIGHTS else exc.hint
        ) from exc
    return CheckpointInspection(
        path=str(path),
        bytes=path.stat().st_size,
        container=_CONTAINERS[contents.container],
        entry=contents.entry,
        tensors=len(contents.tensors),
        parameters=contents.parameters,
        dtypes=contents.dtypes,
        non_finite=contents.non_finite,
        classes=contents.classes,
        last_layer=contents.last_layer,
        family=contents.family,
        told=contents.told,
        notes=contents.notes,
    )
