"""The classes' names."""

from __future__ import annotations

from collections import Counter
from typing import Self

import msgspec

from deploykit.errors import UsageError
from deploykit.specs.value import Value

#: Under these keys of an ONNX file's ``metadata_props`` stand the labels (a JSON list) and the
#: preprocessing (a JSON object), so that a graph that left its bundle still tells how to feed it.
LABELS_KEY = "deploykit.labels"


class Labels(Value, frozen=True):
    """The classes' names, in the order of the logits.

    Attributes:
        names: One unique name a class.
        source: Where they come from, in words: ``folder bird_photos``, ``assumed``.
    """

    names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if repeated:
            raise UsageError(f"Class names must be unique; repeated: {', '.join(repeated)}.")

    @classmethod
    def numbered(cls, count: int) -> Self:
        """``class_0`` ... for a model whose class names nobody gave."""
        return cls(names=tuple(f"class_{i}" for i in range(count)), source="assumed")

    def __len__(self) -> int:
        return len(self.names)

    def to_metadata(self) -> str:
        """What stands under :data:`LABELS_KEY`."""
        return msgspec.json.encode(self.names).decode()
