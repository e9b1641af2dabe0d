"""Results that show themselves, in a Python session and in a notebook."""

from __future__ import annotations

import importlib
from typing import Any

#: What words a result. A string, because this layer knows no command.
_WORDS = "deploykit.commands.python"


class Shown:
    """A result that prints as the text of its command.

    A dataclass that is one says ``repr=False``, or it would make a ``__repr__`` of its own.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        words: Any = importlib.import_module(_WORDS)
        return str(words.text_of(self))

    def _repr_html_(self) -> str:
        """The same for a notebook, with its tables as tables."""
        words: Any = importlib.import_module(_WORDS)
        return str(words.html_of(self))
