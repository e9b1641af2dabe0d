"""What a checkpoint tells, without any of its code being run."""

from __future__ import annotations

from pathlib import Path

from deploykit.deps import need
from deploykit.jobs.inspections import CheckpointInspection

_CONTAINERS = {
    "zip": "torch.save",
    "legacy": "torch.save, from before torch 1.6",
    "safetensors": "safetensors",
}


def inspect_checkpoint(path: Path) -> CheckpointInspection:
    """Look into a checkpoint.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind; asks for code; or holds no
            weights.
        DependencyError: torch is not installed, or safetensors for such a file.
    """
    need("torch")
    from deploykit.models.contents import read_contents

    contents = read_contents(path)
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
