"""The tutorials' networks, under the parameter names that their checkpoints have.

One file a family. A file in this folder is found by itself, and a ``@register()`` in it is all
that a new architecture takes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from deploykit.specs.preprocessing import Preprocessing

Build = TypeVar("Build", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        build: Makes it, randomly initialised; takes ``num_classes`` and the ``--arch-arg`` values.
        preprocessing: What its training did to the images; None where the caller's preset holds.
    """

    build: Callable[..., nn.Module]
    preprocessing: Preprocessing | None


ENTRIES: dict[str, Entry] = {}


def register(*, preprocessing: Preprocessing | None = None) -> Callable[[Build], Build]:
    """Enter a function that makes a network into the zoo, under the function's name.

    Args:
        preprocessing: What its training did to the images, if not what the presets do.

    Raises:
        ValueError: The name is taken.
    """

    def enter(build: Build) -> Build:
        name = build.__name__
        if name in ENTRIES:
            raise ValueError(f"The zoo has two networks named {name!r}.")
        ENTRIES[name] = Entry(build, preprocessing)
        return build

    return enter


for _family in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_family.name}")
