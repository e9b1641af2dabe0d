"""Which known networks have a checkpoint's names and shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from deploykit.errors import ArchitectureError, CheckpointError
from deploykit.models.loading import (
    PROBE_CLASSES,
    SkippingRandomInit,
    count_classes,
    find_head,
    is_extra,
    shapes_of,
)
from deploykit.models.mismatch import Mismatch, Shapes, compare
from deploykit.models.names import align_names
from deploykit.models.registry import NO_ARGUMENTS, Architecture, Origin, resolve_architecture
from deploykit.system.deps import need

#: A family is looked through when one of its networks has this part of the file's kinds of names.
_ALIKE = 0.5
#: Changing the number of classes changes a weight and a bias, or those of a few heads.
_MOST_HEAD_ENTRIES = 8
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Match:
    """A checkpoint's weights held against an architecture's, with its default arguments.

    Attributes:
        architecture: The architecture's name.
        classes: The number of classes; None where the weights do not fit.
        mismatch: What differs; empty where the weights fit.
    """

    architecture: str
    classes: int | None
    mismatch: Mismatch


def families(names: Sequence[str], origin: Origin) -> list[list[str]]:
    """Group a library's architectures by the source file that defines them, whose names are alike.

    Args:
        names: Canonical names.
        origin: Whose they are; each of the zoo's is a family of its own.
    """
    if origin not in ("timm", "torchvision"):
        return [[name] for name in names]
    library = need("timm" if origin == "timm" else "torchvision.models")
    find = library.model_entrypoint if origin == "timm" else library.get_model_builder
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        grouped[find(name.partition("/")[2]).__module__].append(name)
    return list(grouped.values())


def is_alike(family: Sequence[str], found: Shapes) -> bool:
    """Whether a family's networks may have a checkpoint's names.

    One network is made, the one with the shortest name, and names are compared without their
    numbers: layers are counted differently from one network to the next.
    """
    shortest = resolve_architecture(min(family, key=len), allow_user_code=False)
    expected = _shapes_without_weights(shortest)
    theirs = {_NUMBER.sub("#", name) for name in _renamed(found, expected, shortest)}
    ours = {_NUMBER.sub("#", name) for name in expected}
    return len(theirs & ours) >= _ALIKE * len(theirs)


def matches(family: Sequence[str], found: Shapes) -> Iterator[Match]:
    """Hold a checkpoint's shapes against each network of a family.

    Args:
        family: Names of architectures.
        found: The shapes by their names in the file.

    Yields:
        A match for each, whether it fits or not.
    """
    for name in family:
        architecture = resolve_architecture(name, allow_user_code=False)
        expected = _shapes_without_weights(architecture)
        mismatch = compare(_renamed(found, expected, architecture), expected)
        classes = None
        if not (mismatch.missing or mismatch.unexpected) and (
            len(mismatch.misshapen) <= _MOST_HEAD_ENTRIES
        ):
            classes, mismatch = _with_its_classes(architecture, found, mismatch)
        yield Match(name, classes, mismatch)


def _with_its_classes(
    architecture: Architecture, found: Shapes, before: Mismatch
) -> tuple[int | None, Mismatch]:
    """Compare again with the number of classes that the checkpoint has."""
    head = find_head(architecture, NO_ARGUMENTS)
    renamed = _renamed(found, head.shapes, architecture)
    try:
        classes = count_classes(head, renamed)
    except CheckpointError:
        return None, before  # the weights disagree on the number: not this network's
    if classes is None:
        return None, before
    with SkippingRandomInit():
        module = architecture.build(classes)
    mismatch = compare(renamed, shapes_of(module, architecture.name))
    return (None if mismatch else classes), mismatch


def _shapes_without_weights(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """A network's shapes, made without its weights where it lets itself be made so."""
    try:
        with torch.device("meta"):
            module = architecture.build(PROBE_CLASSES)
    except ArchitectureError:  # it computes with its weights when it is made
        with SkippingRandomInit():
            module = architecture.build(PROBE_CLASSES)
    return shapes_of(module, architecture.name)


def _renamed(found: Shapes, expected: Shapes, architecture: Architecture) -> Shapes:
    """A checkpoint's shapes under the network's names, without what only training uses."""
    names = align_names(found, expected)[0]
    return {
        names[name]: shape
        for name, shape in found.items()
        if not names[name].startswith(architecture.training_only)
        and (names[name] in expected or not is_extra(names[name]))
    }
