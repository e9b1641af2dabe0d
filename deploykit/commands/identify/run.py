"""Identify: which architectures a checkpoint fits, and why the closest others do not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.commands.python import PathLike
from deploykit.errors import CheckpointError
from deploykit.specs.value import Shown
from deploykit.system.deps import need
from deploykit.system.progress import Progress, Step, silent

if TYPE_CHECKING:
    from deploykit.models.identify import Match

_NEAR_MISSES = 3
#: The largest networks of timm have some 3,000; comparing takes long where a file has far more.
_MOST_TENSORS = 10_000


@dataclass(frozen=True, repr=False)
class Identification(Shown):
    """What a checkpoint may be.

    Attributes:
        path: The checkpoint.
        tensors: How many it holds.
        fits: The number of classes by each architecture that fits: the zoo's first, then
            torchvision's, then timm's. Names and shapes alone cannot tell which was trained.
        near_misses: The closest of the others; empty when one fits.
        compared: How many architectures were compared with it.
        skipped: Which were not, and the reason.
        trust_pickle: Whether reading it might run the code in it: an export must be let, too.
    """

    path: str
    tensors: int
    fits: dict[str, int]
    near_misses: tuple[Match, ...]
    compared: int
    skipped: tuple[str, ...]
    trust_pickle: bool = False


def identify(
    checkpoint: PathLike,
    *,
    timm: bool = False,
    trust_pickle: bool = False,
    progress: Progress = silent,
) -> Identification:
    """Compare a checkpoint with every architecture that ``--arch`` can name.

    A family of networks, one source file of its library, is skipped when the names of its first
    network are not like the checkpoint's; timm is, when the zoo or torchvision has one that fits.

    Args:
        checkpoint: The weights' file.
        timm: Compare with every network of timm, which takes minutes.
        trust_pickle: Run the code in the checkpoint; only for files you made yourself.
        progress: Called after every family.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind; asks for code; holds no
            weights, or more than any known network has.
        DependencyError: torch is not installed; or timm, which was asked for.
    """
    path = Path(checkpoint)
    need("torch")
    if timm:
        need("timm")
    from deploykit.models.contents import read_contents
    from deploykit.models.identify import families, is_alike, matches
    from deploykit.models.registry import list_architectures

    contents = read_contents(path, trust_pickle=trust_pickle)
    known = list_architectures()
    _check_size(path, contents.tensors)
    found: list[Match] = []
    fits: dict[str, int] = {}
    skipped: list[str] = []
    for origin, names in known.items():
        if origin == "timm" and fits and not timm:
            skipped.append(f"timm's {len(names)} networks, since another fits: --timm")
            continue
        alike: list[list[str]] = []
        grouped = families(names, origin)
        for done, family in enumerate(grouped):
            progress(Step(f"looking through {origin}", done, len(grouped)))
            if (timm and origin == "timm") or is_alike(family, contents.tensors):
                alike.append(family)
        total = sum(map(len, alike))
        if others := len(names) - total:
            told = " (--timm compares with all)" if origin == "timm" else ""
            skipped.append(f"{others} of {origin}'s, whose names are of another kind{told}")
        every = (match for family in alike for match in matches(family, contents.tensors))
        for done, match in enumerate(every, 1):
            found.append(match)
            if match.classes and contents.arch in ("", match.architecture):
                fits[match.architecture] = match.classes
            progress(Step("comparing", done, total, match.architecture))
    if "timm" not in known:
        skipped.append('timm\'s networks: timm is not installed: pip install "deploykit[timm]"')
    near = sorted((match for match in found if match.mismatch.shared), key=_distance)
    return Identification(
        path=str(path),
        tensors=len(contents.tensors),
        fits=fits,
        near_misses=() if fits else tuple(near[:_NEAR_MISSES]),
        compared=len(found),
        skipped=tuple(skipped),
        trust_pickle=trust_pickle,
    )


def _check_size(path: Path, tensors: Collection[str]) -> None:
    if len(tensors) > _MOST_TENSORS:
        raise CheckpointError(
            f"{path} has {len(tensors):,} tensors, more than any architecture known here.",
            hint="Name your own network by its file: "
            "deploykit export --arch train.py:Net --ckpt FILE",
        )


def _distance(match: Match) -> int:
    """The fewer differences and the more in common, the nearer."""
    differs = match.mismatch
    different = len(differs.missing) + len(differs.unexpected) + len(differs.misshapen)
    return different - differs.shared
