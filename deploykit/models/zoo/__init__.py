"""The tutorials' networks, under the parameter names that their checkpoints have.

One file a family. A file in this folder is found by itself, and a ``@register()`` in it is all
that a new architecture takes.
"""

import importlib
import pkgutil

from deploykit.models.zoo._registry import ENTRIES, Entry, register

__all__ = ["ENTRIES", "Entry", "register"]

for _family in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_family.name}")
