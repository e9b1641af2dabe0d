"""Identify: which architectures a checkpoint fits, and why the closest others do not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.specs.value import Value
from deploykit.system.deps import need
from deploykit.system.progress import Progress, Step, silent

if TYPE_CHECKING:
    from deploykit.models.identify import Match
    from deploykit.models.loading import Shapes
    from deploykit.models.registry import Origin

_NEAR_MISSES = 3


class Fit(Value, frozen=True):
    """An architecture whose names and shapes are a checkpoint's.

    Attributes:
        architecture: As ``--arch`` takes it.
        classes: The number of classes that the weights then have.
    """

    architecture: str
    classes: int


class NearMiss(Value, frozen=True):
    """An architecture that has much in common with a checkpoint, and does not fit.

    Attributes:
        architecture: As ``--arch`` takes it; meant with its default arguments.
        shared: Entries that fit.
        missing: Entries that the file lacks.
        unexpected: Entries that the network lacks.
        misshapen: Entries of another shape.
        difference: What differs, with examples.
    """

    architecture: str
    shared: int
    missing: int
    unexpected: int
    misshapen: int
    difference: str


class Identification(Value, frozen=True):
    """What a checkpoint may be.

    Attributes:
        path: The checkpoint.
        tensors: How many it holds.
        fits: The zoo's first, then torchvision's, then timm's. Names and shapes alone cannot tell
            which of several was trained.
        near_misses: The closest of the others; empty when one fits.
        compared: How many architectures were held against it.
        left_out: Which were not, and why.
        family: Whose names these are, where known.
        trust_pickle: Whether reading it might run the code in it: an export must be let, too.
    """

    path: str
    tensors: int
    fits: tuple[Fit, ...]
    near_misses: tuple[NearMiss, ...]
    compared: int
    left_out: tuple[str, ...]
    family: str | None
    trust_pickle: bool = False


def identify_checkpoint(
    path: Path,
    *,
    all_timm: bool = False,
    trust_pickle: bool = False,
    progress: Progress = silent,
) -> Identification:
    """Hold a checkpoint against every architecture that ``--arch`` can name.

    A family of networks, one source file of its library, is left out when the names of its first
    network are not like the checkpoint's; timm is, when the zoo or torchvision has one that fits.

    Args:
        path: The checkpoint.
        all_timm: Compare with every network of timm, which takes minutes.
        trust_pickle: Whether reading the checkpoint may run the code in it.
        progress: Called after every family.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind; asks for code; or holds no
            weights.
        DependencyError: torch is not installed; or timm, which was asked for.
    """
    need("torch")
    if all_timm:
        need("timm")
    from deploykit.models.contents import read_contents
    from deploykit.models.registry import list_architectures

    contents = read_contents(path, trust_pickle=trust_pickle)
    known = list_architectures()
    found: list[Match] = []
    left_out: list[str] = []
    for origin, names in known.items():
        if origin == "timm" and not all_timm and _fits(found):
            left_out.append(f"timm's {len(names)} networks, since another fits: --timm")
            continue
        alike = _alike(origin, names, contents.tensors, all_timm and origin == "timm", progress)
        others = len(names) - sum(map(len, alike))
        if others:
            told = " (--timm compares with all)" if origin == "timm" else ""
            left_out.append(f"{others} of {origin}'s, whose names are of another kind{told}")
        found += _compare(alike, contents.tensors, progress)
    if "timm" not in known:
        left_out.append('timm\'s networks: timm is not installed: pip install "deploykit[timm]"')
    fits = _fits(found)
    return Identification(
        path=str(path),
        tensors=len(contents.tensors),
        fits=tuple(fits),
        near_misses=() if fits else tuple(_near_misses(found)),
        compared=len(found),
        left_out=tuple(left_out),
        family=contents.family,
        trust_pickle=trust_pickle,
    )


def _alike(
    origin: Origin, names: list[str], shapes: Shapes, everything: bool, progress: Progress
) -> list[list[str]]:
    """The families that may have such names, or all."""
    from deploykit.models.identify import families, is_alike

    grouped = families(names, origin)
    if everything:
        return grouped
    kept = []
    for done, family in enumerate(grouped):
        progress(Step(f"looking through {origin}", done, len(grouped)))
        if is_alike(family, shapes):
            kept.append(family)
    return kept


def _compare(alike: list[list[str]], shapes: Shapes, progress: Progress) -> list[Match]:
    from deploykit.models.identify import matches

    total = sum(map(len, alike))
    found: list[Match] = []
    for family in alike:
        for match in matches(family, shapes):
            found.append(match)
            progress(Step("comparing", len(found), total, match.architecture))
    return found


def _fits(found: Iterable[Match]) -> list[Fit]:
    return [Fit(architecture=m.architecture, classes=m.classes) for m in found if m.classes]


def _near_misses(found: Iterable[Match]) -> list[NearMiss]:
    """Those that share most, the fewest differences first among equals."""
    ranked = sorted(
        (match for match in found if match.mismatch.shared),
        key=lambda match: (
            len(match.mismatch.missing)
            + len(match.mismatch.unexpected)
            + len(match.mismatch.misshapen)
            - match.mismatch.shared
        ),
    )
    return [
        NearMiss(
            architecture=match.architecture,
            shared=match.mismatch.shared,
            missing=len(match.mismatch.missing),
            unexpected=len(match.mismatch.unexpected),
            misshapen=len(match.mismatch.misshapen),
            difference=match.mismatch.message,
        )
        for match in ranked[:_NEAR_MISSES]
    ]
