"""The names of all architectures, read from the libraries' sources: importing them takes seconds.

:mod:`deploykit.models.registry` asks the libraries themselves, and gives the same names.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

#: A function that a library, or our zoo, registers under its name or under the one that is given:
#: the decorator at the start of a line, its arguments perhaps over several, perhaps more of them.
_REGISTERED = re.compile(
    r"""^@(?:register_model|register)\b
    (?:\((?:\s*(?:name\s*=\s*)?["'](?P<given>\w+)["'])?[^@]*?\))?\s*\n
    (?:@[^@]*?\n)*?
    def\ (?P<function>\w+)""",
    re.MULTILINE | re.VERBOSE,
)


def architecture_names() -> dict[str, list[str]]:
    """The canonical names by origin; torchvision's and timm's only where they are installed."""
    names = {"zoo": sorted(_registered("deploykit", "models/zoo"))}
    for library, order in (("torchvision", None), ("timm", _by_numbers)):
        if importlib.util.find_spec(library) is None:
            continue
        found = _registered(library, "models")
        if not found:  # installed without its sources, or as no version was so far
            from deploykit.models.registry import list_architectures

            return {str(origin): names for origin, names in list_architectures().items()}
        names[library] = [f"{library}/{name}" for name in sorted(found, key=order)]
    return names


def _registered(package: str, folder: str) -> set[str]:
    """The names that the files of a package's folder register."""
    spec = importlib.util.find_spec(package)
    return {
        found["given"] or found["function"]
        for place in (spec and spec.submodule_search_locations) or ()
        for file in Path(place, folder).glob("*.py")
        for found in _REGISTERED.finditer(file.read_text(encoding="utf-8"))
    }


def _by_numbers(name: str) -> list[str | int]:
    """The order of ``timm.list_models``: ``resnet9`` before ``resnet10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
